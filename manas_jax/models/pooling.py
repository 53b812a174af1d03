"""Pooled features that the attention gates look at."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from manas_jax.ops import XLA, Ops


class PooledFeatures:
    """Pooled versions of a feature map, each computed once, on first use.

    Averages and maxima over pixels are those of the whole image, or with `side` those of a window
    around each square of side x side pixels (see `Network.pool_side`). They are (N, C), or with
    `side` (N, rows of squares, columns of squares, C). What lies outside of `Ops.region` is no part
    of the image.

    Attributes:
      x: the feature map (N, H, W, C).
      side: side of the squares in pixels; None for the whole image.
    """

    def __init__(self, x: jax.Array, side: int | None = None, ops: Ops = XLA):
        self.x = x
        self.side = side
        self._ops = ops

    @functools.cached_property
    def spatial(self) -> jax.Array:
        """Maximum and mean over channels: (N, H, W, 2)."""
        return jnp.stack([self._ops.reduce_max(self.x, -1), self.x.mean(axis=-1)], axis=-1)

    @functools.cached_property
    def average(self) -> jax.Array:
        """Mean over pixels."""
        if self.side is None and self._ops.region is None:
            return self.x.mean(axis=(1, 2))
        inside = jnp.ones((1, *self.x.shape[1:3], 1), self.x.dtype)
        total, pixels = (self._reduce(y, jnp.sum, 0.0) for y in (self.x, inside))
        return total / pixels

    @functools.cached_property
    def maximum(self) -> jax.Array:
        """Maximum over pixels."""
        if self.side is None and self._ops.region is None:
            return self._ops.reduce_max(self.x, (1, 2))
        return self._reduce(self.x, jnp.max, -jnp.inf)

    def _reduce(self, x: jax.Array, reduce: Callable[..., jax.Array], neutral: float) -> jax.Array:
        if self._ops.region is not None:
            x = self._ops.region.mask(x, neutral)
        if self.side is None:
            return reduce(x, (1, 2))
        return _reduce_windows(x, self.side, reduce, neutral)

    def broadcast(self, gate: jax.Array) -> jax.Array:
        """A gate of pooled pixels as a map: (N, 1, 1, C), or with `side` (N, H, W, C)."""
        if self.side is None:
            return gate[:, None, None, :]
        if self._ops.region is not None:
            gate = self._ops.region.extend(gate)
        height, width = self.x.shape[1:3]
        columns = _interpolate(gate, self.side, axis=2)
        return _interpolate(columns, self.side, axis=1)[:, :height, :width]


def _reduce_windows(
    x: jax.Array, side: int, reduce: Callable[..., jax.Array], neutral: float
) -> jax.Array:
    """Reduces 3x3 squares of side x side pixels around each square; nothing lies outside of x.

    With reshapes and slices, which other runtimes support better than windows of any size.
    """
    for axis in (1, 2):
        x = _pad(x, axis, 0, -x.shape[axis] % side, neutral)
        squares = (*x.shape[:axis], x.shape[axis] // side, side, *x.shape[axis + 1 :])
        x = reduce(x.reshape(squares), axis + 1)
        count = x.shape[axis]
        x = _pad(x, axis, 1, 1, neutral)
        neighbours = [jax.lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(3)]
        x = reduce(jnp.stack(neighbours), 0)
    return x


def _pad(x: jax.Array, axis: int, before: int, after: int, value: float) -> jax.Array:
    widths = [(before, after) if i == axis else (0, 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def _interpolate(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """Linear enlargement of an axis by an integer factor; the outer samples extend outwards."""
    ends = [jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, x.shape[axis] - 1)]
    padded = jnp.concatenate([ends[0], x, ends[1]], axis)
    offset = (np.arange(factor) + 0.5) / factor - 0.5  # of each new sample from the old one
    weights = (np.maximum(-offset, 0), 1 - np.abs(offset), np.maximum(offset, 0))
    shape = [factor if i == axis + 1 else 1 for i in range(x.ndim + 1)]
    enlarged = sum(
        jnp.expand_dims(jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis), axis + 1)
        * weight.reshape(shape).astype(x.dtype)
        for i, weight in enumerate(weights)
    )
    return enlarged.reshape(*x.shape[:axis], x.shape[axis] * factor, *x.shape[axis + 1 :])
