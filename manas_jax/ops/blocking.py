"""Squares of pixels as channels, and back."""

import jax


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
