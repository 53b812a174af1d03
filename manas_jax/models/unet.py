"""A small U-Net: the segmenter of `manas_jax.downstream` and the features of the feature loss.

Ronneberger, Fischer and Brox: U-Net. MICCAI 2015; here with residual blocks and GroupNorm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class UNet(nn.Module):
    """(N, H, W, 3) in [0, 1] -> logits (N, H / 2, W / 2, classes).

    Attributes:
      classes: their number.
      widths: channels at a half, a quarter, an eighth … of the input's size; multiples of 8.
    """

    classes: int
    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array, decode: bool = True) -> jax.Array | list[jax.Array]:
        """Encodes, then decodes with the features of each scale."""
        x, scales = 2 * x - 1, []
        for level, width in enumerate(self.widths):
            x = _layer(x, width, stride=2)
            for _ in range(min(level, 2)):
                x = nn.relu(x + _norm(_conv(_layer(x, width), width)))
            scales.append(x)
        if not decode:
            return scales
        for skip in scales[-2::-1]:
            x = _conv(x, skip.shape[-1], size=1)
            x = jax.image.resize(x, skip.shape, "bilinear")
            x = _layer(x + skip, skip.shape[-1])
        return _conv(x, self.classes, size=1)

    def encode(self, x: jax.Array) -> list[jax.Array]:
        """The features of each scale, (N, H / 2^i, W / 2^i, widths[i - 1]) from i = 1 on."""
        return self(x, decode=False)


def param_shapes(network: UNet) -> Any:
    """Shapes and types of the network's parameters; computes nothing."""
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), images)["params"]


def _conv(x: jax.Array, features: int, size: int = 3, stride: int = 1) -> jax.Array:
    return nn.Conv(features, (size, size), stride)(x)


def _norm(x: jax.Array) -> jax.Array:
    return nn.GroupNorm(num_groups=None, group_size=8)(x)


def _layer(x: jax.Array, features: int, stride: int = 1) -> jax.Array:
    return nn.relu(_norm(_conv(x, features, stride=stride)))
