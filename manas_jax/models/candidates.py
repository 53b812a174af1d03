"""The nine candidates of an attention edge, each a gate that its input is multiplied by.

A gate is a full map (N, H, W, C), a map a pixel (N, H, W, 1), a vector a channel (N, 1, 1, C) or
a number. So a mixture needs one multiplication: sum the weighted gates, then gate once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from manas_jax import space
from manas_jax.models import layers

SHORT = 16  # channels


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def largest(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """`x.max(axis)`, the gradient shared by all maxima, as JAX has it, but never NaN.

    JAX divides by the number of entries that equal the maximum. A compiler that computes the
    entries twice, in two fused loops that round apart, finds none: 0 / 0. It also keeps a map of
    which entries those are, as large as `x`; here they are found again.
    """
    return x.max(axis)


def _largest_forward(x, axis):
    return x.max(axis), x


def _largest_backward(axis, x, gradient):
    # Not the maximum of the forward pass: `x` may be made again here, rounded otherwise.
    top = x.max(axis, keepdims=True)
    maxima = x == top
    if axis == -1 and x.shape[-1] <= SHORT:
        # Channel by channel: on CPU XLA runs that much faster than sums over a short last axis that
        # are spread over it again.
        count = sum((x[..., i : i + 1] == top).astype(x.dtype) for i in range(x.shape[-1]))
    else:
        count = maxima.sum(axis, dtype=x.dtype, keepdims=True)
    shared = jnp.expand_dims(gradient, axis) / jnp.maximum(count, 1)
    return (jnp.where(maxima, shared, 0),)


largest.defvjp(_largest_forward, _largest_backward)


class Pools:
    """What gates look at besides the input itself; each computed once, when first asked for.

    Averages and maxima over pixels are those of the whole image, or with `cell` those of a window
    around each square of cell x cell pixels (`Network.pool_cell` says why). They are (N, C), or
    with `cell` (N, rows of squares, columns of squares, C).
    """

    def __init__(self, x: jax.Array, cell: int | None = None):
        self.x = x
        self.cell = cell

    @functools.cached_property
    def spatial(self) -> jax.Array:
        """Maximum and mean over channels: (N, H, W, 2)."""
        return jnp.stack([largest(self.x, -1), self.x.mean(axis=-1)], axis=-1)

    @functools.cached_property
    def average(self) -> jax.Array:
        """Mean over pixels."""
        if self.cell is None:
            return self.x.mean(axis=(1, 2))
        inside = jnp.ones((1, *self.x.shape[1:3], 1), self.x.dtype)
        total, pixels = (_windows(y, self.cell, jnp.sum, 0.0) for y in (self.x, inside))
        return total / pixels

    @functools.cached_property
    def maximum(self) -> jax.Array:
        """Maximum over pixels."""
        if self.cell is None:
            return largest(self.x, (1, 2))
        return _windows(self.x, self.cell, jnp.max, -jnp.inf)

    def spread(self, gate: jax.Array) -> jax.Array:
        """A gate made of such pools, as a map: (N, 1, 1, C), or with `cell` (N, H, W, C)."""
        if self.cell is None:
            return gate[:, None, None, :]
        height, width = self.x.shape[1:3]
        columns = layers.stored(_interpolate(gate, self.cell, 2))
        return _interpolate(columns, self.cell, 1)[:, :height, :width]


def _windows(
    x: jax.Array, cell: int, reduce: Callable[..., jax.Array], neutral: float
) -> jax.Array:
    """Reduces 3x3 squares of cell x cell pixels around each square; nothing lies outside of x.

    In reshapes and slices, which other runtimes understand better than windows of any size.
    """
    for axis in (1, 2):
        x = _padded(x, axis, 0, -x.shape[axis] % cell, neutral)
        squares = (*x.shape[:axis], x.shape[axis] // cell, cell, *x.shape[axis + 1 :])
        x = reduce(x.reshape(squares), axis + 1)
        count = x.shape[axis]
        x = _padded(x, axis, 1, 1, neutral)
        neighbours = [jax.lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(3)]
        x = reduce(jnp.stack(neighbours), 0)
    return x


def _padded(x: jax.Array, axis: int, before: int, after: int, value: float) -> jax.Array:
    widths = [(before, after) if i == axis else (0, 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def _interpolate(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """Linear enlargement of one axis by a whole factor; beyond the outer samples they are kept."""
    ends = [jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, x.shape[axis] - 1)]
    padded = jnp.concatenate([ends[0], x, ends[1]], axis)
    at = (np.arange(factor) + 0.5) / factor - 0.5  # of the new samples, from the old one
    shares = (np.maximum(-at, 0), 1 - np.abs(at), np.maximum(at, 0))
    shape = [factor if i == axis + 1 else 1 for i in range(x.ndim + 1)]
    made = sum(
        jnp.expand_dims(jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis), axis + 1)
        * share.reshape(shape).astype(x.dtype)
        for i, share in enumerate(shares)
    )
    return made.reshape(*x.shape[:axis], x.shape[axis] * factor, *x.shape[axis + 1 :])


class FactoredConv(nn.Module):
    """A 3x3 convolution followed by a pointwise one, with nothing between the two.

    The product of their kernels is then the kernel of the one dense convolution that they make:
    same function, same parameters. So they run but for one a channel on CPU, which has a form of
    its own, see `layers.separable_convolution`.

    Attributes:
      features: outputs of the pointwise convolution.
      depthwise: whether the 3x3 convolution is one a channel, or full with one output.
      dilation: dilation of the 3x3 convolution.
    """

    features: int
    depthwise: bool = True
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) -> (N, H, W, features)."""
        inputs = x.shape[-1]
        spatial_shape = (3, 3, 1, inputs) if self.depthwise else (3, 3, inputs, 1)
        middle = inputs if self.depthwise else 1
        spatial = self.param("spatial", layers.KERNEL_INIT, spatial_shape)
        pointwise = self.param("pointwise", layers.KERNEL_INIT, (1, 1, middle, self.features))
        if self.depthwise:
            return layers.separable_convolution(x, spatial, pointwise, self.dilation)
        return layers.same_convolution(x, (spatial * pointwise).astype(x.dtype), self.dilation)


class SeparableGate(nn.Module):
    """sigmoid(BN(pw(dw3(relu(BN(pw(dw3(x)))))))), BatchNorm without scale and bias."""

    spatial: bool

    @nn.compact
    def __call__(self, pools: Pools, train: bool) -> jax.Array:
        """A full map, or with `spatial` a map a pixel made of the pooled channels."""
        x = pools.spatial if self.spatial else pools.x
        features = 1 if self.spatial else x.shape[-1]
        y = FactoredConv(x.shape[-1], name="conv0")(x)
        y = nn.relu(layers.normalize(y, train, name="norm0", affine=False))
        y = FactoredConv(features, name="conv1")(y)
        return nn.sigmoid(layers.normalize(y, train, name="norm1", affine=False))


class DilatedGate(nn.Module):
    """sigmoid(BN(pw(conv3 with dilation 2 (x)))), BatchNorm without scale and bias."""

    spatial: bool

    @nn.compact
    def __call__(self, pools: Pools, train: bool) -> jax.Array:
        """A full map, or with `spatial` a map a pixel; the latter's 3x3 convolution is full."""
        x = pools.spatial if self.spatial else pools.x
        features = 1 if self.spatial else x.shape[-1]
        y = FactoredConv(features, depthwise=not self.spatial, dilation=2, name="conv0")(x)
        return nn.sigmoid(layers.normalize(y, train, name="norm0", affine=False))


class ChannelGate(nn.Module):
    """Squeeze-excitation, over the average alone or with one MLP over average and maximum."""

    reduction: int
    use_maximum: bool = False
    bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, pools: Pools, train: bool = False) -> jax.Array:
        """A number a channel."""
        hidden = space.squeezed(pools.x.shape[-1], self.reduction)
        mlp = layers.DenseGate(hidden, self.bias, self.dtype, name="mlp")
        pooled = (pools.average, pools.maximum) if self.use_maximum else (pools.average,)
        return pools.spread(nn.sigmoid(mlp(*pooled)))


class CBAMGate(nn.Module):
    """Channel gate, then spatial gate on what it leaves.

    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018. Its spatial BatchNorm
    moves a tenth as fast as the others (PyTorch momentum 0.01).
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, pools: Pools, train: bool) -> jax.Array:
        """A full map, the product of both gates."""
        channel = ChannelGate(
            space.CANDIDATE_REDUCTION,
            use_maximum=True,
            bias=True,
            dtype=self.dtype,
            name="channel",
        )(pools)
        pooled = Pools(pools.x * channel).spatial
        y = layers.convolution(1, 7, dtype=self.dtype, name="conv")(pooled)
        y = layers.normalize(y, train, name="norm", momentum=0.99)
        return channel * nn.sigmoid(y)


def _gate(name: str, dtype: Any) -> nn.Module:
    """The parametric gate of this name, under its own name."""
    gates: dict[str, Callable[..., nn.Module]] = {
        "sep_conv_3x3": functools.partial(SeparableGate, spatial=False),
        "dil_conv_3x3": functools.partial(DilatedGate, spatial=False),
        "sep_conv_3x3_spatial": functools.partial(SeparableGate, spatial=True),
        "dil_conv_3x3_spatial": functools.partial(DilatedGate, spatial=True),
        "SE": functools.partial(ChannelGate, space.CANDIDATE_REDUCTION, dtype=dtype),
        "SE_A_M": functools.partial(
            ChannelGate, space.CANDIDATE_REDUCTION, use_maximum=True, dtype=dtype
        ),
        "CBAM": functools.partial(CBAMGate, dtype=dtype),
    }
    return gates[name](name=name)


class Edge(nn.Module):
    """One searched edge: its input times a gate, or times a mixture of gates.

    Attributes:
      candidates: the names to mix, or the one that was chosen.
      dtype: type of the computation.
      pool_cell: see `Pools`.
    """

    candidates: tuple[str, ...]
    dtype: Any = None
    pool_cell: int | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, probabilities: jax.Array | None = None
    ) -> jax.Array:
        """(N, H, W, C) -> the same shape.

        Args:
          x: the edge's input.
          train: whether BatchNorm uses the batch.
          probabilities: one a candidate; may be left out for a single candidate.
        """
        pools = Pools(x, self.pool_cell)

        def gate(name: str) -> jax.Array | float:
            if name in ("none", "skip_connect"):
                return float(name == "skip_connect")
            return _gate(name, self.dtype)(pools, train)

        if probabilities is None:
            (name,) = self.candidates
            return x if name == "skip_connect" else x * gate(name)
        weights = probabilities.astype(x.dtype)
        # Those of one shape first: what is spread over pixels or channels is then one sum.
        by_shape: dict[tuple[int, ...], jax.Array] = {}
        for weight, name in zip(weights, self.candidates, strict=True):
            one = gate(name)
            by_shape[jnp.shape(one)] = by_shape.get(jnp.shape(one), 0) + weight * one
        return x * sum(by_shape.values())
