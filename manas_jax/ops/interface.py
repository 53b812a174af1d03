"""What an implementation of the kernels consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from manas_jax.ops.norm import BatchNorm
from manas_jax.ops.region import Region


@dataclasses.dataclass(frozen=True, repr=False)
class Ops:
    """An implementation of the kernels.

    Attributes:
      name: of the implementation.
      conv: (x, kernel, stride, dilation) -> (N, H/stride, W/stride, F) of x (N, H, W, C) and kernel
        (k, k, C, F), k odd; zero padded by dilation * (k // 2) on every side, as PyTorch pads.
      separable_conv: (x, depthwise, pointwise, dilation) -> (N, H, W, F) of x (N, H, W, C),
        depthwise (3, 3, 1, C) and pointwise (1, 1, C, F); zero padded likewise.
      reduce_max: (x, axis) -> the maximum over axes; ties share the gradient.
      norm: constructs the module that normalises after a convolution, called with (x, train).
      region: the part of images that counts, whose outside `norm` sets to zero; None for all.
      dtype: type of the computation; None for that of inputs and parameters. Parameters and
        statistics stay float32.
    """

    name: str
    conv: Callable[[jax.Array, jax.Array, int, int], jax.Array]
    separable_conv: Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]
    reduce_max: Callable[[jax.Array, int | tuple[int, ...]], jax.Array]
    norm: Callable[..., nn.Module] = BatchNorm
    region: Region | None = None
    dtype: Any = None

    def __repr__(self) -> str:
        return f"Ops({self.name}, {self.dtype})"
