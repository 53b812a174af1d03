"""Layers that all parts of the network share. Arrays are NHWC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from manas_jax.ops import XLA, Ops

KERNEL_INIT = nn.initializers.he_normal()


class Conv(nn.Module):
    """Convolution without bias, zero padded as PyTorch pads: (N, H, W, C) -> (N, H/s, W/s, F).

    Attributes:
      features: F, output channels.
      side: of the kernel, in pixels.
      stride: s.
    """

    features: int
    side: int = 3
    stride: int = 1
    kernel_init: Callable[..., Any] = KERNEL_INIT
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the convolution."""
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = promote_dtype(x, kernel, dtype=self.ops.dtype)
        return self.ops.conv(x, kernel, self.stride, 1)


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and, if asked for, ReLU: (N, H, W, C) -> (N, H/s, W/s, features).

    Attributes:
      features, side, stride: those of the convolution.
      relu: whether a ReLU follows.
    """

    features: int
    side: int = 3
    stride: int = 1
    relu: bool = True
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the layers."""
        x = Conv(self.features, self.side, self.stride, ops=self.ops, name="conv")(x)
        x = self.ops.norm(name="norm")(x, train)
        return nn.relu(x) if self.relu else x


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut: (N, H, W, C) -> (N, H, W, expansion * features).

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, figure 5 (right).

    Attributes:
      features: channels of the 3x3 convolution.
      expansion: output channels per channel of it.
    """

    features: int
    expansion: int
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the block; the shortcut is a 1x1 convolution where channels change."""
        wide = self.expansion * self.features
        shortcut = x
        if x.shape[-1] != wide:
            shortcut = ConvNorm(wide, 1, relu=False, ops=self.ops, name="shortcut")(x, train)
        x = ConvNorm(self.features, 1, ops=self.ops, name="layer0")(x, train)
        x = ConvNorm(self.features, 3, ops=self.ops, name="layer1")(x, train)
        x = ConvNorm(wide, 1, relu=False, ops=self.ops, name="layer2")(x, train)
        return nn.relu(x + shortcut)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, shape unchanged: He et al., figure 5 (left).

    Attributes:
      hidden: channels between the two; None for those of the input.
    """

    hidden: int | None = None
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Applies the block. `mask` (hidden,) multiplies the channels between."""
        y = ConvNorm(self.hidden or x.shape[-1], ops=self.ops, name="layer0")(x, train)
        y = y if mask is None else y * mask.astype(y.dtype)
        y = ConvNorm(x.shape[-1], relu=False, ops=self.ops, name="layer1")(y, train)
        return nn.relu(x + y)


def upsample(x: jax.Array, factor: int) -> jax.Array:
    """Nearest-neighbour enlargement: (N, H, W, C) -> (N, factor * H, factor * W, C)."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, factor, w, factor, c))
    return x.reshape(n, h * factor, w * factor, c)


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Mirrors the lower and right edge until height and width are multiples; NHWC."""
    height, width = (-side % multiple for side in x.shape[1:3])
    if not height and not width:
        return x
    return jnp.pad(x, ((0, 0), (0, height), (0, width), (0, 0)), mode="symmetric")
