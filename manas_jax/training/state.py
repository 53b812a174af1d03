"""The states of a search and of a training."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from manas_jax.models.network import Network, init_architecture
from manas_jax.models.variables import init_variables

PyTree = Any


class SearchState(flax.struct.PyTreeNode):
    """State of the search; weights and architecture are separate pytrees with optimizers each.

    Attributes:
      step: steps done, int32.
      params: the supernet's weights.
      batch_stats: its running BatchNorm statistics.
      architecture: logits, see `manas_jax.models.network.Architecture`.
      opt_state: optax state of the weights.
      architecture_opt_state: optax state of the architecture.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    architecture: PyTree
    opt_state: optax.OptState
    architecture_opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, PyTree]:
        """The variables to use the supernet with, besides the architecture."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class TrainState(flax.struct.PyTreeNode):
    """State of the final training.

    Attributes:
      step: steps done, int32.
      params: the derived network's weights.
      batch_stats: its running BatchNorm statistics.
      opt_state: optax state.
      ema: exponential moving average of weights and statistics ('params', 'batch_stats'); None when
        switched off. Averaged statistics belong to the averaged weights, and cover more batches
        than BatchNorm's own momentum does.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    ema: PyTree | None

    @property
    def variables(self) -> dict[str, PyTree]:
        """The variables to use the network with: the averages where there are any."""
        if self.ema is not None:
            return self.ema
        return {"params": self.params, "batch_stats": self.batch_stats}


State = SearchState | TrainState


def init_search(
    network: Network,
    weight_optimizer: optax.GradientTransformation,
    architecture_optimizer: optax.GradientTransformation,
    seed: int,
) -> SearchState:
    """A fresh search state; a pure function of the seed."""
    architecture = init_architecture(network.space, seed)
    variables = init_variables(network, seed)
    return SearchState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        architecture=architecture,
        opt_state=_init(weight_optimizer, variables["params"]),
        architecture_opt_state=_init(architecture_optimizer, architecture),
    )


def init_train(
    variables: PyTree, optimizer: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """A training state that starts from the given 'params' and 'batch_stats'."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=_init(optimizer, variables["params"]),
        ema=jax.tree.map(lambda x: x.copy(), dict(variables)) if ema else None,
    )


def _init(optimizer: optax.GradientTransformation, params: PyTree) -> optax.OptState:
    # As one program; op by op, XLA would compile one for each shape among a thousand parameters.
    return jax.jit(optimizer.init)(params)
