"""Kernels that XLA:CPU runs fast where no gradient is wanted.

On top of those of `cpu_train`: 3x3 convolutions with half of the multiplications, row folding up to
16 channels, and barriers that XLA:CPU respects with `COMPILER_OPTIONS`. What each gains in a whole
picture is in docs/performance_log.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from manas_jax.ops import cpu_train
from manas_jax.ops.cpu_train import WIDE, conv_row_folded, fold_kernel_rows, shift

MANY = 16  # channels

COMPILER_OPTIONS = (
    ("xla_disable_hlo_passes", "cse_barrier_expander"),
    ("xla_backend_optimization_level", "1"),
)
"""Keep optimization barriers until XLA:CPU has fused, and let LLVM optimise briefly.

XLA:CPU drops them before, and then recomputes a producer with several consumers in the loop of each
of them: the sum at the end of a fusion column up to five times. LLVM's further passes take nearly
half of the compilation and make no picture faster.
"""


def materialize(x: jax.Array) -> jax.Array:
    """Writes `x` to memory before the loops that read it."""
    return jax.lax.optimization_barrier(x)


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """Convolution, by the implementation that is fastest for its size."""
    side, _, inputs, outputs = kernel.shape
    # With fewer outputs than inputs, winograd's sums over inputs cost more than they save.
    if (side, stride, dilation) == (3, 1, 1) and MANY <= inputs <= outputs:
        return winograd_conv3x3(materialize(x), kernel)
    if side > 1 and stride == 1 and max(inputs, outputs) <= MANY:
        return conv_row_folded(materialize(x), kernel, dilation)
    return cpu_train.conv(x, kernel, stride, dilation)


# F(4, 3) of the points 0, 1, -1, 2, -2 and infinity: four outputs of three taps g are
# _AT @ ((_G @ g) * (_BT @ d)), of the six inputs d that they read.
_BT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_AT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def winograd_conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution with half of the multiplications: (N, H, W, C) -> (N, H, W, F).

    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1,
    here along columns alone, which takes fewer sums: four rows of outputs are sums of six
    convolutions along rows, each of another sum of the six rows of inputs that they read. All rows
    lie one behind the other, separated by a zero pixel, folded into blocks as in `conv_row_folded`:
    XLA:CPU convolves short rows on a single core.
    """
    (n, height, width, inputs), outputs = x.shape, kernel.shape[3]
    tiles, block = -(-height // len(_AT)), max(1, WIDE // max(inputs, outputs))
    length = -(-(1 + width) // block)  # of a row, in blocks
    rows = jnp.pad(x.reshape(n, height, -1), ((0, 0), (0, -height % len(_AT)), (0, 0)))
    inside = [rows.reshape(n, tiles, len(_AT), -1)[:, :, i] for i in range(len(_AT))]
    seen = [shift(inside[-1], 1, axis=1), *inside, shift(inside[0], -1, axis=1)]
    padding = (inputs, (block * length - width - 1) * inputs)

    def along_rows(weights: np.ndarray, taps: jax.Array) -> jax.Array:
        row = jnp.pad(_weighted_sum(weights, seen), ((0, 0), (0, 0), padding))
        y = jax.lax.conv_general_dilated(
            row.reshape(n, 1, tiles * length, block * inputs),
            taps[None],
            window_strides=(1, 1),
            padding=((0, 0), (0, len(taps) - 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y.reshape(n, tiles, block * length, outputs)[:, :, :width]

    taps = jnp.tensordot(jnp.asarray(_G, kernel.dtype), kernel, 1, precision="highest")
    products = [along_rows(*pair) for pair in zip(_BT, fold_kernel_rows(taps, block), strict=True)]
    y = jnp.stack([_weighted_sum(weights, products) for weights in _AT], 2)
    return y.reshape(n, -1, width, outputs)[:, :height]


def _weighted_sum(weights: np.ndarray, arrays: Iterable[jax.Array]) -> jax.Array:
    return sum(float(weight) * x for weight, x in zip(weights, arrays, strict=True) if weight)


CPU_INFERENCE = dataclasses.replace(
    cpu_train.CPU_TRAIN,
    name="cpu_inference",
    conv=conv,
    materialize=materialize,
    compiler_options=COMPILER_OPTIONS,
)
