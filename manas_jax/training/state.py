"""What a search and a training carry from step to step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Literal

from manas_jax.models.network import Network, init_architecture, init_variables

PyTree = Any


class SearchState(flax.struct.PyTreeNode):
    """State of the search; weights and architecture are separate pytrees with optimizers each.

    Attributes:
      step: steps done, int32.
      weights: the supernet's parameters.
      batch_stats: its running BatchNorm statistics.
      architecture: logits, see `manas_jax.models.network.Architecture`.
      weight_optimizer: optax state.
      architecture_optimizer: optax state.
    """

    step: jax.Array
    weights: PyTree
    batch_stats: PyTree
    architecture: PyTree
    weight_optimizer: optax.OptState
    architecture_optimizer: optax.OptState

    @property
    def variables(self) -> dict[str, PyTree]:
        """What the supernet is to be used with, besides the architecture."""
        return {"params": self.weights, "batch_stats": self.batch_stats}


class TrainState(flax.struct.PyTreeNode):
    """State of the final training.

    Attributes:
      step: steps done, int32.
      weights: the derived network's parameters.
      batch_stats: its running BatchNorm statistics.
      optimizer: optax state.
      average: exponential moving average of weights and statistics ('params', 'batch_stats');
        None when switched off. The statistics are averaged with the weights that they belong to,
        and over more batches than BatchNorm's own momentum does.
    """

    step: jax.Array
    weights: PyTree
    batch_stats: PyTree
    optimizer: optax.OptState
    average: PyTree | None

    @property
    def variables(self) -> dict[str, PyTree]:
        """What the network is to be used with: the averages where there are any."""
        if self.average is not None:
            return self.average
        return {"params": self.weights, "batch_stats": self.batch_stats}


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
        weights=variables["params"],
        batch_stats=variables["batch_stats"],
        architecture=architecture,
        weight_optimizer=init_optimizer(weight_optimizer, variables["params"]),
        architecture_optimizer=init_optimizer(architecture_optimizer, architecture),
    )


def init_train(
    variables: PyTree, optimizer: optax.GradientTransformation, *, average: bool
) -> TrainState:
    """A training state that starts from the given 'params' and 'batch_stats'."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        weights=variables["params"],
        batch_stats=variables["batch_stats"],
        optimizer=init_optimizer(optimizer, variables["params"]),
        average=jax.tree.map(lambda x: x.copy(), dict(variables)) if average else None,
    )


def init_optimizer(optimizer: optax.GradientTransformation, parameters: PyTree) -> optax.OptState:
    """`optimizer.init(parameters)`, its constants filled in on the host.

    Op by op, XLA would compile a program for every shape among a thousand parameters, which takes
    seconds.
    """
    traced, shapes = jax.make_jaxpr(optimizer.init, return_shape=True)(parameters)
    known = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
    known |= zip(traced.jaxpr.invars, jax.tree.leaves(parameters), strict=True)

    def value(variable):
        if isinstance(variable, Literal):
            return np.asarray(variable.val, variable.aval.dtype)
        return known[variable]

    for equation in traced.jaxpr.eqns:
        first, (made,) = equation.invars[0], equation.outvars
        if equation.primitive.name != "broadcast_in_dim" or np.ndim(value(first)):
            return optimizer.init(parameters)  # more than constants
        known[made] = np.full(made.aval.shape, value(first), made.aval.dtype)
    return jax.tree.unflatten(jax.tree.structure(shapes), map(value, traced.jaxpr.outvars))
