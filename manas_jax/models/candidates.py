"""The nine candidates of an attention edge, each a gate that multiplies the edge's input.

A gate is a full map (N, H, W, C), a spatial map (N, H, W, 1), a channel vector (N, 1, 1, C) or a
number. So a mixture needs one multiplication: sum the weighted gates, then multiply once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from manas_jax import space
from manas_jax.models.layers import KERNEL_INIT, Conv
from manas_jax.models.pooling import PooledFeatures
from manas_jax.ops import XLA, Ops
from manas_jax.registry import registered


class FactoredConv(nn.Module):
    """A 3x3 convolution followed by a pointwise one, with nothing in between.

    Attributes:
      features: outputs of the pointwise convolution.
      depthwise: whether the 3x3 convolution is depthwise, or full with one output.
      dilation: dilation of the 3x3 convolution.
    """

    features: int
    depthwise: bool = True
    dilation: int = 1
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) -> (N, H, W, features)."""
        inputs = x.shape[-1]
        spatial_shape = (3, 3, 1, inputs) if self.depthwise else (3, 3, inputs, 1)
        middle = inputs if self.depthwise else 1
        spatial = self.param("spatial", KERNEL_INIT, spatial_shape)
        pointwise = self.param("pointwise", KERNEL_INIT, (1, 1, middle, self.features))
        if self.depthwise:
            kernels = spatial.astype(x.dtype), pointwise.astype(x.dtype)
            return self.ops.separable_conv(x, *kernels, self.dilation)
        # The product of both kernels is the kernel of the one dense convolution that they are.
        return self.ops.conv(x, (spatial * pointwise).astype(x.dtype), 1, self.dilation)


class SeparableGate(nn.Module):
    """sigmoid(BN(pw(dw3(relu(BN(pw(dw3(x)))))))), BatchNorm without scale and bias.

    Attributes:
      spatial: whether the gate is a spatial map of the pooled channels.
    """

    spatial: bool
    ops: Ops = XLA

    @nn.compact
    def __call__(self, pooled: PooledFeatures, train: bool) -> jax.Array:
        """A full map, or with `spatial` a spatial map computed from the pooled channels."""
        x = pooled.spatial if self.spatial else pooled.x
        features = 1 if self.spatial else x.shape[-1]
        y = FactoredConv(x.shape[-1], ops=self.ops, name="conv0")(x)
        y = nn.relu(self.ops.norm(affine=False, name="norm0")(y, train))
        y = FactoredConv(features, ops=self.ops, name="conv1")(y)
        return nn.sigmoid(self.ops.norm(affine=False, name="norm1")(y, train))


class DilatedGate(nn.Module):
    """sigmoid(BN(pw(conv3 with dilation 2 (x)))), BatchNorm without scale and bias.

    Attributes:
      spatial: as in `SeparableGate`.
    """

    spatial: bool
    ops: Ops = XLA

    @nn.compact
    def __call__(self, pooled: PooledFeatures, train: bool) -> jax.Array:
        """A full map, or with `spatial` a spatial map, whose 3x3 convolution is full."""
        x = pooled.spatial if self.spatial else pooled.x
        features = 1 if self.spatial else x.shape[-1]
        conv = FactoredConv(
            features, depthwise=not self.spatial, dilation=2, ops=self.ops, name="conv0"
        )
        return nn.sigmoid(self.ops.norm(affine=False, name="norm0")(conv(x), train))


class ChannelMLP(nn.Module):
    """The two dense layers of squeeze-excitation: (N, ..., C) -> the same shape, no sigmoid.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, equation 3. Of several pooled vectors
    it returns the sum of the outputs.

    Attributes:
      hidden: channels between both layers.
      bias: whether they have one.
    """

    hidden: int
    bias: bool = False
    ops: Ops = XLA

    @nn.compact
    def __call__(self, *pooled: jax.Array) -> jax.Array:
        """Applies both layers with a ReLU in between."""
        dense = functools.partial(
            nn.Dense, use_bias=self.bias, dtype=self.ops.dtype, kernel_init=KERNEL_INIT
        )
        x = nn.relu(dense(self.hidden, name="squeeze")(jnp.stack(pooled)))
        return dense(pooled[0].shape[-1], name="excite")(x).sum(0)


class ChannelGate(nn.Module):
    """Squeeze-excitation, over the average alone or with one MLP over average and maximum.

    Attributes:
      reduction: input channels per channel between the layers of the MLP.
      use_maximum: whether the MLP sees the maximum as well.
      bias: whether its layers have one.
    """

    reduction: int
    use_maximum: bool = False
    bias: bool = False
    ops: Ops = XLA

    @nn.compact
    def __call__(self, pooled: PooledFeatures, train: bool = False) -> jax.Array:
        """A channel vector; with `PooledFeatures.cell` a full map."""
        hidden = space.squeezed(pooled.x.shape[-1], self.reduction)
        mlp = ChannelMLP(hidden, self.bias, self.ops, name="mlp")
        vectors = (pooled.average, pooled.maximum) if self.use_maximum else (pooled.average,)
        return pooled.broadcast(nn.sigmoid(mlp(*vectors)))


class CBAMGate(nn.Module):
    """Channel gate, then a spatial gate computed from the gated input.

    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018. The running statistics of
    its spatial BatchNorm move a tenth as fast as others (PyTorch momentum 0.01).
    """

    ops: Ops = XLA

    @nn.compact
    def __call__(self, pooled: PooledFeatures, train: bool) -> jax.Array:
        """A full map, the product of both gates."""
        channel = ChannelGate(
            space.CANDIDATE_REDUCTION, use_maximum=True, bias=True, ops=self.ops, name="channel"
        )(pooled)
        y = PooledFeatures(pooled.x * channel, ops=self.ops).spatial
        y = Conv(1, 7, ops=self.ops, name="conv")(y)
        y = self.ops.norm(momentum=0.99, name="norm")(y, train)
        return channel * nn.sigmoid(y)


GATES: dict[str, Callable[..., nn.Module]] = {
    "sep_conv_3x3": functools.partial(SeparableGate, spatial=False),
    "dil_conv_3x3": functools.partial(DilatedGate, spatial=False),
    "sep_conv_3x3_spatial": functools.partial(SeparableGate, spatial=True),
    "dil_conv_3x3_spatial": functools.partial(DilatedGate, spatial=True),
    "SE": functools.partial(ChannelGate, space.CANDIDATE_REDUCTION),
    "SE_A_M": functools.partial(ChannelGate, space.CANDIDATE_REDUCTION, use_maximum=True),
    "CBAM": CBAMGate,
}
"""The paper's candidates with parameters; 'none' and 'skip_connect' are the numbers 0 and 1."""


class Edge(nn.Module):
    """One searched edge: its input times a gate, or times a mixture of gates.

    Attributes:
      candidates: the names to mix, or the chosen one.
      pool_side: see `PooledFeatures`.
    """

    candidates: tuple[str, ...]
    pool_side: int | None = None
    ops: Ops = XLA

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, probabilities: jax.Array | None = None
    ) -> jax.Array:
        """(N, H, W, C) -> the same shape.

        Args:
          x: the edge's input.
          train: whether BatchNorm uses the batch.
          probabilities: one per candidate; None for a single candidate.
        """
        pooled = PooledFeatures(x, self.pool_side, self.ops)

        def gate(name: str) -> jax.Array | float:
            if name in ("none", "skip_connect"):
                return float(name == "skip_connect")
            make = GATES.get(name) or registered(name).module
            return make(ops=self.ops, name=name)(pooled, train)

        if probabilities is None:
            (name,) = self.candidates
            return x * gate(name)
        # Gates of one shape are summed first: then only one sum is broadcast for each shape.
        by_shape: dict[tuple[int, ...], jax.Array] = {}
        for weight, name in zip(probabilities.astype(x.dtype), self.candidates, strict=True):
            one = gate(name)
            by_shape[jnp.shape(one)] = by_shape.get(jnp.shape(one), 0) + weight * one
        return x * sum(by_shape.values())
