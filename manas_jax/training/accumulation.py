"""Gradient accumulation: a batch worked on in parts, one after the other, to need less memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
Batch = Mapping[str, jax.Array]


def in_parts(
    function: Callable[[Batch, PyTree | None], PyTree],
    batch: Batch,
    parts: int,
    carried: str | None = None,
) -> PyTree:
    """The mean of what a function makes of each part of a batch.

    For gradients of a mean over scenes this is the gradient of the whole batch, but that BatchNorm
    normalises by the statistics of a part. With one part the function is called on the batch as it
    is.

    Args:
      function: (part, what it made of the part before or None) -> a pytree.
      batch: arrays whose first axis is that of the scenes, divisible by `parts`.
      parts: how many.
      carried: a field or key of what the function makes that is not averaged: each part starts
        from that of the part before, and the last one counts.
    """
    if parts == 1:
        return function(batch, None)
    total = made = None
    for index in range(parts):
        made = function(_part(batch, index, parts), made)
        total = made if total is None else _add(total, made)
    mean = _divide(total, parts)
    if carried is None:
        return mean
    if isinstance(mean, dict):
        return mean | {carried: made[carried]}
    return mean._replace(**{carried: getattr(made, carried)})


def part_shapes(batch: Mapping[str, Any], parts: int) -> Mapping[str, Any]:
    """Shape, type and place of a part of a batch, which is given by shapes or arrays.

    With one part it is the batch itself.
    """
    if parts == 1:
        return batch
    return {
        key: jax.ShapeDtypeStruct((x.shape[0] // parts, *x.shape[1:]), x.dtype, sharding=x.sharding)
        for key, x in batch.items()
    }


@functools.partial(jax.jit, static_argnums=2)
def _part(batch, index, parts):
    """Every so manieth scene: each device finds its share of the part in its share of the batch."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(
            x.reshape(-1, parts, *x.shape[1:]), index, axis=1, keepdims=False
        ),
        batch,
    )


_add = jax.jit(functools.partial(jax.tree.map, jnp.add), donate_argnums=0)


@functools.partial(jax.jit, static_argnums=1)
def _divide(total, parts):
    return jax.tree.map(lambda x: x / parts, total)
