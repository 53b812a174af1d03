"""The reference implementation of the kernels, in plain `jax.lax`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from manas_jax.ops.interface import Ops


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """Convolution.

    XLA's "SAME" pads one side only at stride 2, which would shift released weights by a pixel.
    """
    padding = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def separable_conv(
    x: jax.Array, depthwise: jax.Array, pointwise: jax.Array, dilation: int = 1
) -> jax.Array:
    """Depthwise 3x3 convolution, then pointwise convolution, as the one dense convolution they are.

    With nothing between the two, the product of their kernels is the kernel of a dense convolution:
    the same function of the same parameters, in one convolution that matrix units like.
    """
    return conv(x, dense_kernel(depthwise, pointwise), 1, dilation)


def dense_kernel(depthwise: jax.Array, pointwise: jax.Array) -> jax.Array:
    """(3, 3, 1, C), (1, 1, C, F) -> (3, 3, C, F)."""
    return depthwise.swapaxes(2, 3) * pointwise


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def reduce_max(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """`x.max(axis)`, whose gradient ties share, as JAX has it, but which is never NaN.

    JAX divides by the number of entries that equal the maximum. A compiler that computes these
    entries twice, in two fused loops that round differently, finds none: 0 / 0. JAX also stores a
    mask as large as `x`; here it is recomputed.
    """
    return x.max(axis)


def _reduce_max_forward(x, axis):
    return x.max(axis), x


def _reduce_max_backward(axis, x, grad):
    # Not the forward pass's maximum: `x` may be recomputed here, and be rounded differently.
    ties = x == x.max(axis, keepdims=True)
    count = ties.sum(axis, dtype=x.dtype, keepdims=True)
    shared = jnp.expand_dims(grad, axis) / jnp.maximum(count, 1)
    return (jnp.where(ties, shared, 0),)


reduce_max.defvjp(_reduce_max_forward, _reduce_max_backward)


XLA = Ops("xla", conv, separable_conv, reduce_max)
