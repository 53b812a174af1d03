"""Kernels that TPUs run fast, by the estimates of their compiler (`manas_jax.preflight`)."""

from __future__ import annotations

import dataclasses

import jax

from manas_jax.ops import xla
from manas_jax.ops.blocking import conv_space_to_depth


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """`xla.conv`; to a single channel, as in the spatial gates, on squares of pixels.

    The compiler gives the input gradient of such a convolution to its slowest algorithm.
    """
    if stride == 1 and kernel.shape[0] > 1 and kernel.shape[-1] == 1:
        return conv_space_to_depth(x, kernel, dilation, xla.conv)
    return xla.conv(x, kernel, stride, dilation)


def separable_conv(
    x: jax.Array, depthwise: jax.Array, pointwise: jax.Array, dilation: int = 1
) -> jax.Array:
    """`xla.separable_conv` by `conv`."""
    return conv(x, xla.dense_kernel(depthwise, pointwise), 1, dilation)


TPU = dataclasses.replace(xla.XLA, name="tpu", conv=conv, separable_conv=separable_conv)
