"""What a search and a training carry from step to step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from manas_jax.models.network import Network, init_architecture

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


class TrainState(flax.struct.PyTreeNode):
    """State of the final training.

    Attributes:
      step: steps done, int32.
      weights: the derived network's parameters.
      batch_stats: its running BatchNorm statistics.
      optimizer: optax state.
      average: exponential moving average of the weights; equal to them when switched off.
    """

    step: jax.Array
    weights: PyTree
    batch_stats: PyTree
    optimizer: optax.OptState
    average: PyTree


def init_search(
    network: Network,
    weight_optimizer: optax.GradientTransformation,
    architecture_optimizer: optax.GradientTransformation,
    key: jax.Array,
) -> SearchState:
    """A fresh search state; a pure function of the key."""
    weights_key, architecture_key = jax.random.split(key)
    architecture = init_architecture(network.space, architecture_key)
    variables = network.init(weights_key, _probe(network), architecture)
    return SearchState(
        step=jnp.zeros((), jnp.int32),
        weights=variables["params"],
        batch_stats=variables["batch_stats"],
        architecture=architecture,
        weight_optimizer=weight_optimizer.init(variables["params"]),
        architecture_optimizer=architecture_optimizer.init(architecture),
    )


def init_train(
    network: Network, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """A fresh training state; a pure function of the key."""
    return train_state(network.init(key, _probe(network)), optimizer)


def train_state(variables: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """A training state that starts from the given 'params' and 'batch_stats'."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        weights=variables["params"],
        batch_stats=variables["batch_stats"],
        optimizer=optimizer.init(variables["params"]),
        average=jax.tree.map(jnp.copy, variables["params"]),
    )


def _probe(network: Network) -> jax.Array:
    """The smallest picture that passes through the network unpadded: shapes are all that counts."""
    side = network.space.multiple
    return jnp.zeros((1, side, side, 3))
