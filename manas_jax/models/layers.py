"""Building blocks shared by all parts of the network. Arrays are NHWC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

KERNEL_INIT = nn.initializers.he_normal()

# PyTorch's momentum 0.1 is 0.9 in Flax's terms. Flax keeps the biased variance in the running
# statistics where PyTorch keeps the unbiased one: they differ by 1 / (pixels - 1).
BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON = 0.9, 1e-5


def normalize(
    x: jax.Array, train: bool, *, name: str, affine: bool = True, momentum: float | None = None
) -> jax.Array:
    """BatchNorm over batch, height and width; to be called in a compact method.

    With `train` the statistics are those of the (global) batch, and the running ones move.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=BATCH_NORM_MOMENTUM if momentum is None else momentum,
        epsilon=BATCH_NORM_EPSILON,
        use_bias=affine,
        use_scale=affine,
        dtype=x.dtype,
        name=name,
    )(x)


def convolution(
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    dtype: Any = None,
    name: str,
    kernel_init: Callable[..., Any] = KERNEL_INIT,
) -> nn.Conv:
    """A convolution without bias, zero padded on all sides alike, as PyTorch pads.

    XLA's "SAME" pads one side only at stride 2, which would shift released weights by a pixel.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        kernel_dilation=dilation,
        padding=dilation * (kernel // 2),
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=_pointwise if kernel == stride == 1 else None,
        name=name,
    )


def _pointwise(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """A 1x1 convolution as the matrix product it is.

    On CPU XLA runs that faster than the convolution, its kernel's gradient five times as fast.
    """
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:-1], -1)


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and, if asked for, ReLU: (N, H, W, _) -> (N, H/s, W/s, features)."""

    features: int
    kernel: int = 3
    stride: int = 1
    relu: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the layer."""
        conv = convolution(
            self.features, self.kernel, stride=self.stride, dtype=self.dtype, name="conv"
        )
        x = normalize(conv(x), train, name="norm")
        return nn.relu(x) if self.relu else x


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut: (N, H, W, _) -> (N, H, W, expansion * features).

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, figure 5 (right).
    """

    features: int
    expansion: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the block; the shortcut is a 1x1 convolution where channels change."""
        wide = self.expansion * self.features
        shortcut = x
        if x.shape[-1] != wide:
            shortcut = ConvNorm(wide, 1, relu=False, dtype=self.dtype, name="shortcut")(x, train)
        x = ConvNorm(self.features, 1, dtype=self.dtype, name="layer0")(x, train)
        x = ConvNorm(self.features, 3, dtype=self.dtype, name="layer1")(x, train)
        x = ConvNorm(wide, 1, relu=False, dtype=self.dtype, name="layer2")(x, train)
        return nn.relu(x + shortcut)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, shape kept: He et al., figure 5 (left)."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the block."""
        features = x.shape[-1]
        y = ConvNorm(features, dtype=self.dtype, name="layer0")(x, train)
        y = ConvNorm(features, relu=False, dtype=self.dtype, name="layer1")(y, train)
        return nn.relu(x + y)


class DenseGate(nn.Module):
    """The two dense layers of squeeze-excitation: (N, C) -> (N, C), before the sigmoid.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, equation 3.
    """

    hidden: int
    bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Applies both layers with a ReLU between."""

        def dense(features, name):
            return nn.Dense(
                features,
                use_bias=self.bias,
                dtype=self.dtype,
                kernel_init=KERNEL_INIT,
                name=name,
            )

        x = nn.relu(dense(self.hidden, "squeeze")(pooled))
        return dense(pooled.shape[-1], "excite")(x)


def upsample(x: jax.Array, factor: int) -> jax.Array:
    """Nearest-neighbour enlargement: (N, H, W, C) -> (N, factor * H, factor * W, C)."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, factor, w, factor, c))
    return x.reshape(n, h * factor, w * factor, c)


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


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Mirrors the lower and right edge until height and width are multiples; NHWC."""
    height, width = (-side % multiple for side in x.shape[1:3])
    if not height and not width:
        return x
    return jnp.pad(x, ((0, 0), (0, height), (0, width), (0, 0)), mode="symmetric")
