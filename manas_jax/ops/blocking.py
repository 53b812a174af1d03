"""Squares of pixels as channels, and back."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

PATCH = 4  # pixels
EXACT = jax.lax.Precision.HIGHEST  # for products that only copy entries: exact if not rounded


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """Folds squares of patch x patch pixels into channels: (N, H, W, C) -> (N, H/p, W/p, p*p*C)."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of `space_to_depth`."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h * patch, w * patch, c // patch**2)


def conv_space_to_depth(
    x: jax.Array, kernel: jax.Array, dilation: int, conv3x3: Callable[..., jax.Array]
) -> jax.Array:
    """Convolution of very few channels with squares of pixels folded into the channels.

    The kernel becomes the 3x3 kernel on squares that does the same. It multiplies by many zeros,
    but processors convolve one or two channels at a small part of the speed of 32.

    Args:
      x: (N, H, W, C).
      kernel: (k, k, C, F).
      dilation: of the kernel.
      conv3x3: (x, kernel) -> the convolution of stride 1 with a kernel (3, 3, _, _).

    Returns:
      (N, H, W, F).
    """
    size, height, width = kernel.shape[0], *x.shape[1:3]
    patch = max(PATCH, dilation * (size // 2))  # no pixel reads beyond the next square
    square, source, target, tap = np.ogrid[-1:2, :patch, :patch, :size]
    matches = patch * square + source - target == dilation * (tap - size // 2)
    matches = jnp.asarray(matches, kernel.dtype)
    folded = jnp.einsum("ysab,xtcd,bdio->yxstiaco", matches, matches, kernel, precision=EXACT)
    folded = folded.reshape(3, 3, patch**2 * x.shape[-1], -1)
    x = jnp.pad(x, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)))
    y = conv3x3(space_to_depth(x, patch), folded.astype(x.dtype))
    return depth_to_space(y, patch)[:, :height, :width]
