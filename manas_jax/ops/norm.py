"""BatchNorm, and what is left of it where it is folded into the convolution before it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from manas_jax.ops.region import Region
from manas_jax.space import BATCH_NORM_EPSILON

# PyTorch's momentum 0.1 is 0.9 in Flax's terms. Flax keeps the biased variance in the running
# statistics where PyTorch keeps the unbiased one: they differ by 1 / (pixels - 1).
BATCH_NORM_MOMENTUM = 0.9


@jax.custom_vjp
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the statistics of the batch, then scales and shifts each channel.

    Ioffe and Szegedy, "Batch Normalization", ICML 2015. The gradient is that of section 3 there:
    two sums over the batch and one pass over it, which reads only `x` and the incoming gradient.
    JAX's own derivative makes four sums and stores `x - mean` besides `x`.

    Args:
      x: (..., C).
      scale: (C,).
      bias: (C,).

    Returns:
      The output, and the batch's mean and biased variance (C,), which have no gradient.
    """
    return _batch_norm_forward(x, scale, bias)[0]


def _batch_norm_forward(x, scale, bias):
    mean, variance = _moments(x)
    y = normalize(x, mean, variance, scale, bias)
    return (y, mean, variance), (x, mean, variance, scale)


def _batch_norm_backward(residuals, grads):
    x, mean, variance, scale = residuals
    grad = grads[0].astype(mean.dtype)
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    inverse = jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
    dbias = jnp.sum(grad, axes)
    dscale = inverse * (jnp.sum(grad * x.astype(mean.dtype), axes) - mean * dbias)
    slope = scale * inverse
    x_slope = -slope * inverse * dscale / count
    constant = -slope * dbias / count - mean * x_slope
    dx = (slope * grad + (x_slope * x + constant)).astype(x.dtype)
    return dx, dscale.astype(scale.dtype), dbias.astype(scale.dtype)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel, in float32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    return mean, jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)


def normalize(
    x: jax.Array, mean: jax.Array, variance: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, in shape (..., C) and type of `x`.

    The other arguments are (C,).
    """
    slope = jax.lax.rsqrt(variance + BATCH_NORM_EPSILON) * scale
    return ((x - mean) * slope + bias).astype(x.dtype)


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last; variables are named as `nn.BatchNorm` names them.

    Attributes:
      affine: whether there are a scale and a bias.
      momentum: share of the running statistics that stays at each step.
      groups: number of equal parts of a batch, each of which is normalised by statistics of its
        own; their means update the running ones. Where each device has one of these parts, no
        layer waits for the other devices.
    """

    affine: bool = True
    momentum: float = BATCH_NORM_MOMENTUM
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(N, ..., C) -> the same shape.

        With `train`, by the statistics of the (global) batch, which update the running ones.
        """
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        else:
            scale, bias = jnp.ones(shape, mean.value.dtype), jnp.zeros(shape, mean.value.dtype)
        if not train:
            return normalize(x, mean.value, variance.value, scale, bias)
        y, *moments = self._normalize_batch(x, scale, bias)
        if not self.is_initializing():
            for running, latest in zip((mean, variance), moments, strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * latest
        return y

    def _normalize_batch(self, x, scale, bias):
        if self.groups == 1:
            return batch_norm(x, scale, bias)
        parts = x.reshape(self.groups, -1, *x.shape[1:])
        y, mean, variance = jax.vmap(batch_norm, in_axes=(0, None, None))(parts, scale, bias)
        return y.reshape(x.shape), mean.mean(0), variance.mean(0)


class FoldedNorm(nn.Module):
    """The bias that folding BatchNorm into a convolution leaves; takes BatchNorm's place.

    See `manas_jax.inference.fold_batch_norm`.

    Attributes:
      region: outside of it the output is zero.
    """

    affine: bool = True
    momentum: float = BATCH_NORM_MOMENTUM
    region: Region | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(..., C) -> the same shape; inference alone."""
        if train:
            raise ValueError("a network whose BatchNorm is folded cannot be trained")
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        y = x + bias.astype(x.dtype)
        return y if self.region is None else self.region.mask(y)
