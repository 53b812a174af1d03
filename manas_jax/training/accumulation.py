"""Gradient accumulation: microbatches, one after the other, to bound memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
Batch = Mapping[str, jax.Array]


def accumulate(
    function: Callable[[Batch, PyTree | None], PyTree],
    batch: Batch,
    microbatches: int,
    carry: str | None = None,
) -> PyTree:
    """Averages a function over microbatches, one after the other.

    For gradients of a mean over scenes this is the gradient of the whole batch, except that
    BatchNorm normalises by the statistics of one microbatch at a time. With one microbatch the
    function is called on the batch itself.

    Args:
      function: (microbatch, output for the previous microbatch or None) -> a pytree.
      batch: arrays whose first axis is that of the scenes, divisible by `microbatches`.
      microbatches: their number.
      carry: a field or key of the output that is not averaged; the last microbatch's value counts.
    """
    if microbatches == 1:
        return function(batch, None)
    total = output = None
    for index in range(microbatches):
        output = function(_microbatch(batch, index, microbatches), output)
        # A sum takes the place of its first part; the carry may be the array that was handed on.
        averaged = output if carry is None else _with(output, carry, None)
        total = averaged if total is None else _add(total, averaged)
    mean = _divide(total, microbatches)
    if carry is None:
        return mean
    return _with(mean, carry, output[carry] if isinstance(output, dict) else getattr(output, carry))


def _with(output: PyTree, key: str, value: PyTree) -> PyTree:
    """A dictionary or named tuple with another value of a key or field."""
    return output | {key: value} if isinstance(output, dict) else output._replace(**{key: value})


def microbatch_shapes(batch: Mapping[str, Any], microbatches: int) -> Mapping[str, Any]:
    """Shapes, types and shardings of a microbatch, given those (or the arrays) of a batch.

    With one microbatch it is the batch itself.
    """
    if microbatches == 1:
        return batch
    return {
        key: jax.ShapeDtypeStruct(
            (x.shape[0] // microbatches, *x.shape[1:]), x.dtype, sharding=x.sharding
        )
        for key, x in batch.items()
    }


@functools.partial(jax.jit, static_argnums=2)
def _microbatch(batch, index, microbatches):
    """Every n-th scene: each device finds its microbatch's share in its share of the batch."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(
            x.reshape(-1, microbatches, *x.shape[1:]), index, axis=1, keepdims=False
        ),
        batch,
    )


_add = jax.jit(functools.partial(jax.tree.map, jnp.add), donate_argnums=0)


@functools.partial(jax.jit, static_argnums=1)
def _divide(total, microbatches):
    return jax.tree.map(lambda x: x / microbatches, total)
