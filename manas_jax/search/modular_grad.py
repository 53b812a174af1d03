"""Gradient of the scene loss, one compiled program per block of the network.

Compiling the supernet's gradient as one program takes minutes and gigabytes on XLA:CPU, some of
whose passes are quadratic in the number of operations. Here each block has a forward program, which
returns outputs and residuals, and a backward program; identical blocks, such as the columns of a
cell, share both. Under `jax.jit` the result is the ordinary gradient, in one program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from manas_jax.config import LossWeights
from manas_jax.models.network import Network
from manas_jax.training import losses

PyTree = Any

EXPENSIVE = (
    jax.lax.conv_general_dilated_p,
    jax.lax.dot_general_p,
    jax.lax.reduce_sum_p,
    jax.lax.reduce_max_p,
)


def scene_grad(network: Network, loss_weights: LossWeights, internal_from: int) -> Callable:
    """`jax.grad` of `losses.scene_loss_fn` by parameters and architecture, block by block.

    Args:
      network: the supernet.
      loss_weights: coefficients of the loss terms.
      internal_from: step from which on the internal loss counts.

    Returns:
      A function (params, architecture, batch_stats, step, batch, run=..., path=None) ->
      ((params_grad, architecture_grad), (batch_stats, metrics)). `run(program, *args)` calls a
      jitted program; another one may compile it and return the shapes of its outputs. `path` are
      the blocks to compute in place of all, see `single_path.blocks`: parameters of others have
      the gradient zero, their statistics do not change, and `architecture_grad` is None.
    """
    all_blocks = network.blocks()
    loss = network, loss_weights, internal_from

    def grad_fn(params, architecture, batch_stats, step, batch, run=_call, path=None):
        blocks = all_blocks if path is None else path
        probabilities = run(_probabilities, network, architecture)
        branches = run(_preprocess, network, batch["rainy"])
        new_stats, pullbacks = {} if path is None else batch_stats, []
        for block in blocks:
            own_params, own_stats = (_own(tree, block.name) for tree in (params, batch_stats))
            outputs, stats, pullback = run(
                _forward, block.module(), own_params, own_stats,
                block.select(branches), probabilities.get(block.name, ()),
            )  # fmt: skip
            branches = block.update(branches, outputs)
            new_stats = _replace(new_stats, block.name, stats) if stats else new_stats
            pullbacks.append(pullback)

        head_grad, grads, metrics = run(
            _head_grad, loss, params["head_conv"], branches[0], step, batch
        )
        grads = (grads,)
        params_grad = {} if path is None else run(_zeros, params)
        params_grad, probabilities_grad = params_grad | {"head_conv": head_grad}, {}
        for block in reversed(blocks):
            own_grad, inputs_grad, own_probabilities_grad = run(
                _backward, pullbacks.pop(), block.select(grads)
            )
            grads = block.update(grads, inputs_grad)
            params_grad = _replace(params_grad, block.name, own_grad) if own_grad else params_grad
            if own_probabilities_grad:
                probabilities_grad[block.name] = own_probabilities_grad
        architecture_grad = None
        if path is None:
            architecture_grad = run(_architecture_grad, network, architecture, probabilities_grad)
        return (params_grad, architecture_grad), (new_stats, metrics)

    return grad_fn


def _own(tree: PyTree, name: str) -> PyTree:
    """A block's variables; a transition that adds no branch has none."""
    for key in name.split("/"):
        tree = tree.get(key, {})
    return tree


def _replace(tree: PyTree, name: str, own: PyTree) -> dict[str, Any]:
    """The tree with other variables of a block."""
    key, _, rest = name.partition("/")
    return {**tree, key: _replace(tree.get(key, {}), rest, own) if rest else own}


@jax.jit
def _zeros(params: PyTree) -> PyTree:
    """Zeros with the parameters' sharding, like all gradients; `zeros_like` may choose another."""
    return jax.tree.map(lambda x: jnp.where(False, x, 0), params)


def _call(program: Callable, *args: Any) -> Any:
    return program(*args)


@partial(jax.jit, static_argnums=0)
def _probabilities(network: Network, architecture: PyTree) -> dict[str, Any]:
    return network.probabilities(architecture)


@partial(jax.jit, static_argnums=0)
def _architecture_grad(network: Network, architecture: PyTree, grads: Mapping[str, Any]) -> PyTree:
    return jax.vjp(network.probabilities, architecture)[1](grads)[0]


@partial(jax.jit, static_argnums=0)
def _preprocess(network: Network, rainy: jax.Array) -> PyTree:
    return network.preprocess(rainy.reshape(-1, *rainy.shape[2:]))


@partial(jax.jit, static_argnums=0)
def _forward(
    module: nn.Module,
    params: PyTree,
    batch_stats: PyTree,
    inputs: PyTree,
    probabilities: tuple[Any, ...],
) -> tuple[PyTree, PyTree, Callable]:
    """Outputs, updated statistics, and the pullback, which is a pytree of the residuals."""

    def apply(params, inputs, probabilities):
        outputs, updates = module.apply(
            {"params": params, "batch_stats": batch_stats}, inputs, True, *probabilities,
            mutable=["batch_stats"],
        )  # fmt: skip
        return outputs, updates.get("batch_stats", {})

    checkpointed = jax.checkpoint(apply, policy=_save_expensive, prevent_cse=False)
    outputs, pullback, stats = jax.vjp(checkpointed, params, inputs, probabilities, has_aux=True)
    return outputs, stats, pullback


def _save_expensive(primitive: Any, *_: Any, **__: Any) -> bool:
    """Checkpoint policy: store outputs of convolutions, matrix products and reductions.

    The rest, such as normalised and gated maps, is elementwise, several times as large and cheap to
    recompute.
    """
    return primitive in EXPENSIVE


@jax.jit
def _backward(pullback: Callable, grads: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    """Gradients by a block's parameters, inputs and probabilities."""
    return pullback(grads)


@partial(jax.jit, static_argnums=0)
def _head_grad(
    loss: tuple[Network, LossWeights, int],
    params: PyTree,
    finest: jax.Array,
    step: jax.Array,
    batch: Mapping[str, jax.Array],
) -> tuple[PyTree, jax.Array, dict[str, jax.Array]]:
    """Gradients of the loss by the head's parameters and its input, and the loss's metrics."""
    network, loss_weights, internal_from = loss

    def loss_fn(params, finest):
        rainy = batch["rainy"]
        images = rainy.reshape(-1, *rainy.shape[2:])
        outputs = network.postprocess(network.head().apply({"params": params}, finest), images)
        return losses.scene_loss(
            outputs.reshape(rainy.shape), batch["clean"], step, loss_weights, internal_from
        )

    (params_grad, finest_grad), metrics = jax.grad(loss_fn, (0, 1), has_aux=True)(params, finest)
    return params_grad, finest_grad, metrics
