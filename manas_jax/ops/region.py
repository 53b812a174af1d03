"""The part of padded arrays that counts, known only when the program runs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Region:
    """Upper left part of images; of feature maps at a lower resolution, the same part.

    With zeros outside of it before each convolution, what lies inside is as if nothing lay outside:
    one program serves images of many sizes.

    Attributes:
      size: (2,) integers, rows and columns of pixels; traced. Multiples of the factor between the
        resolutions of images and of the smallest feature maps.
      image: rows and columns of the images.
    """

    size: jax.Array
    image: tuple[int, int]

    def mask(self, x: jax.Array, fill: float = 0.0) -> jax.Array:
        """`x` (N, H, W, C) with `fill` outside."""
        rows, columns = (jnp.arange(x.shape[axis]) < self._length(x, axis) for axis in (1, 2))
        return jnp.where((rows[:, None] & columns)[None, :, :, None], x, fill)

    def extend(self, x: jax.Array) -> jax.Array:
        """`x` (N, H, W, C) with, outside, the nearest value inside."""
        for axis in (1, 2):
            nearest = jnp.minimum(jnp.arange(x.shape[axis]), self._length(x, axis) - 1)
            x = jnp.take(x, nearest, axis)
        return x

    def _length(self, x: jax.Array, axis: int) -> jax.Array:
        return self.size[axis - 1] // (self.image[axis - 1] // x.shape[axis])
