"""Kernels whose gradients XLA:CPU runs fast.

XLA:CPU has fast matrix products and fast convolutions of many channels, but turns the gradients of
convolutions into convolutions with kernels as large as the image, and leaves most of a processor's
vector units idle where channels are few. Each function here has a `jax.custom_vjp` made of matrix
products, shifted sums and convolutions that run at full speed. What each gains in a whole step is
in docs/performance_log.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from manas_jax.ops import xla
from manas_jax.ops.blocking import depth_to_space, space_to_depth
from manas_jax.ops.jax_internals import lower_reduce_precision_as_identity

FEW, NARROW, WIDE = 4, 8, 32  # channels; XLA:CPU convolves at full speed from WIDE on
PATCH = 4  # pixels
EXACT = jax.lax.Precision.HIGHEST  # for products that only copy entries: exact if not rounded


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """`xla.conv` by the implementation that is fastest for its size."""
    side, _, *channels = kernel.shape
    if (side, stride) == (1, 1):
        return matmul(x.reshape(-1, channels[0]), kernel[0, 0]).reshape(*x.shape[:-1], -1)
    if stride == 1 and max(channels) <= FEW:
        return conv_space_to_depth(x, kernel, dilation)
    if (side, stride) == (3, 1):
        return conv3x3(x, kernel, dilation)
    if (side, stride, dilation) == (3, 2, 1) and x.shape[1] % 2 == x.shape[2] % 2 == 0:
        return conv3x3_stride2(x, kernel)
    return xla.conv(x, kernel, stride, dilation)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(M, C) @ (C, F), M large; see `_product_over_rows`."""
    return x @ kernel


def _matmul_backward(residuals, grad):
    x, kernel = residuals
    return grad @ kernel.T, _product_over_rows(x, grad)


matmul.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _matmul_backward)


def _product_over_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    """x.T @ y of many rows: (M, C), (M, D) -> (C, D).

    XLA:CPU takes much longer where C > D: there the product is that of y.T @ x, and the barrier
    keeps the compiler from turning it back.
    """
    if x.shape[1] <= y.shape[1]:
        return x.T @ y
    return jax.lax.optimization_barrier(y.T @ x).T


# --- 3x3 convolutions -----------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """3x3 convolution of stride 1 whose kernel gradient is one matrix product.

    (N, H, W, C), (3, 3, C, F) -> (N, H, W, F).
    """
    return _conv3x3_forward(x, kernel, dilation)[0]


def _conv3x3_forward(x, kernel, dilation):
    run = conv_row_folded if max(kernel.shape[2:]) <= NARROW else xla.conv
    return run(x, kernel, dilation=dilation), (x, kernel)


def _conv3x3_backward(dilation, residuals, grad):
    x, kernel = residuals
    rows = _neighbours(grad, -dilation, axis=1)
    if max(kernel.shape[2:]) <= NARROW:
        dx = _conv3x3_input_grad(rows, kernel, dilation)  # shares `rows` with the kernel's gradient
    else:
        dx = xla.conv(grad, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), dilation=dilation)
    return dx, _conv3x3_kernel_grad(x, rows, dilation).astype(kernel.dtype)


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def _conv3x3_kernel_grad(x: jax.Array, rows: jax.Array, dilation: int) -> jax.Array:
    """Kernel gradient as one matrix product: (N, H, W, C), (N, H, W, 3F) -> (3, 3, C, F).

    The input shifted across three times against the output's gradient shifted up and down three
    times (`rows`): all nine products, each once, without the transposed copies of both that XLA:CPU
    makes for a convolution whose kernel is as large as the image.
    """
    columns = _neighbours(x, dilation, axis=2)
    product = _product_over_rows(*(z.reshape(-1, z.shape[-1]) for z in (columns, rows)))
    product = product.reshape(3, x.shape[-1], 3, -1)
    return jnp.stack([product[:, :, row] for row in range(3)])  # XLA copies a transpose twice


def _conv3x3_input_grad(rows: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Input gradient as one matrix product and three shifts; `rows` as above.

    A few channels, taken three times, fill the vector units, and nothing is multiplied by zero.
    """
    size, _, inputs, outputs = kernel.shape
    taps = kernel.transpose(0, 3, 1, 2).reshape(size * outputs, size * inputs)
    products = rows.reshape(-1, size * outputs) @ taps
    left, here, right = jnp.split(products.reshape(*rows.shape[:-1], -1), size, axis=-1)
    # The left tap reads what lies before the output.
    return shift(left, -dilation) + here + shift(right, dilation)


def conv_row_folded(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """Convolution of few channels with neighbouring pixels of a row folded into the channels.

    The folded kernel multiplies by some zeros, but uses the vector units, which few channels leave
    idle. Shifted by its reach, a block of pixels reads only one more block. Its own kernel gradient
    would be slow.
    """
    size, inputs, outputs = kernel.shape[1:]
    (n, height, width), reach = x.shape[:3], dilation * (size // 2)
    block = max(WIDE // max(inputs, outputs), 2 * reach)
    x = jnp.pad(x, ((0, 0), (0, 0), (reach, block - reach + -width % block), (0, 0)))
    y = jax.lax.conv_general_dilated(
        x.reshape(n, height, -1, block * inputs),
        fold_kernel_rows(kernel, block, dilation),
        window_strides=(1, 1),
        padding=((reach, reach), (0, 0)),
        rhs_dilation=(dilation, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(n, height, -1, outputs)[:, :, :width]


def fold_kernel_rows(kernel: jax.Array, block: int, dilation: int = 1) -> jax.Array:
    """Kernel along pixels of a row (_, k, C, F) -> along blocks (_, b, block * C, block * F).

    A block's first pixel reads from b blocks, the first of which is its own.
    """
    if block == dilation == 1:
        return kernel
    size, inputs, outputs = kernel.shape[1:]
    blocks = 1 + -(-dilation * (size - 1) // block)
    other, source, target, tap = np.ogrid[:blocks, :block, :block, :size]
    matches = jnp.asarray(block * other + source == target + dilation * tap, kernel.dtype)
    folded = jnp.einsum("bsxt,yxio->ybsito", matches.swapaxes(2, 3), kernel, precision=EXACT)
    return folded.reshape(-1, blocks, block * inputs, block * outputs)


# --- 3x3 convolutions of stride 2 -----------------------------------------------------------------


@jax.custom_vjp
def conv3x3_stride2(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution of stride 2, H and W even: (N, H, W, C) -> (N, H / 2, W / 2, F).

    XLA:CPU makes dilated convolutions of its gradients. Here they are a convolution to squares of
    2x2 pixels and two matrix products.
    """
    return xla.conv(x, kernel, stride=2)


def _conv3x3_stride2_forward(x, kernel):
    return xla.conv(x, kernel, stride=2), (x, kernel)


def _conv3x3_stride2_backward(residuals, grad):
    x, kernel = residuals
    # Tap 1 leads from the first pixel of a pair to the output there, tap 2 from the second one,
    # tap 0 from the second one to the next output.
    output, source, tap = np.ogrid[:2, :2, :3]
    matches = 2 * output - source == 1 - tap
    matches = jnp.asarray(np.einsum("ysa,xtb->yxstab", matches, matches), kernel.dtype)
    taps = jnp.einsum("yxstab,abio->yxosti", matches, kernel, precision=EXACT)
    squares = jax.lax.conv_general_dilated(
        grad,
        taps.reshape(2, 2, grad.shape[-1], -1),
        window_strides=(1, 1),
        padding=[(0, 1), (0, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return depth_to_space(squares, 2), _conv3x3_stride2_kernel_grad(x, grad).astype(kernel.dtype)


conv3x3_stride2.defvjp(_conv3x3_stride2_forward, _conv3x3_stride2_backward)


def _conv3x3_stride2_kernel_grad(x: jax.Array, grad: jax.Array) -> jax.Array:
    """As `_conv3x3_kernel_grad`: even rows of the input meet one row of outputs, odd rows two."""
    n, height, width, outputs = grad.shape
    inputs = x.shape[-1]
    rows = x.reshape(n, height, 2, width, 2 * inputs)

    def taps(row):  # the last pixel before a pair and those of the pair: taps 0, 1 and 2
        before = shift(row[..., inputs:], 1, channels=3 * inputs)
        pair = shift(row, 0, offset=inputs, channels=3 * inputs)
        return (before + pair).reshape(-1, 3 * inputs)

    def product(row, grads):
        return _product_over_rows(taps(row), grads.reshape(-1, grads.shape[-1]))

    following = shift(grad, -1, axis=1, offset=outputs, channels=2 * outputs)
    both = following + shift(grad, 0, channels=2 * outputs)
    even = product(rows[:, :, 0], grad)
    odd = product(rows[:, :, 1], both).reshape(-1, 2, outputs)
    return jnp.stack([odd[:, 1], even, odd[:, 0]]).reshape(3, 3, inputs, outputs)


# --- other convolutions ---------------------------------------------------------------------------


def conv_space_to_depth(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """Convolution of very few channels with squares of pixels folded into the channels.

    The kernel becomes the 3x3 kernel on squares that does the same. It multiplies by many zeros,
    but XLA:CPU convolves two channels at a hundredth of the speed of 32.
    """
    size, height, width = kernel.shape[0], *x.shape[1:3]
    patch = max(PATCH, dilation * (size // 2))  # no pixel reads beyond the next square
    square, source, target, tap = np.ogrid[-1:2, :patch, :patch, :size]
    matches = patch * square + source - target == dilation * (tap - size // 2)
    matches = jnp.asarray(matches, kernel.dtype)
    folded = jnp.einsum("ysab,xtcd,bdio->yxstiaco", matches, matches, kernel, precision=EXACT)
    folded = folded.reshape(3, 3, patch**2 * x.shape[-1], -1)
    x = jnp.pad(x, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)))
    y = conv3x3(space_to_depth(x, patch), folded.astype(x.dtype))
    return depth_to_space(y, patch)[:, :height, :width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def separable_conv(
    x: jax.Array, depthwise: jax.Array, pointwise: jax.Array, dilation: int = 1
) -> jax.Array:
    """Depthwise convolution as a sum of shifted arrays, pointwise as a matrix product.

    XLA:CPU's grouped convolution is slower than the dense one of `xla.separable_conv`; this is
    faster than both.
    """
    return _separable_conv_forward(x, depthwise, pointwise, dilation)[0]


def _separable_conv_forward(x, depthwise, pointwise, dilation):
    y = _depthwise_blocks(x, depthwise, dilation)
    block = y.shape[3] // x.shape[3]
    matrix = jnp.kron(jnp.eye(block, dtype=x.dtype), pointwise[0, 0])
    y = y.reshape(-1, y.shape[-1]) @ matrix
    return y.reshape(*x.shape[:3], pointwise.shape[3]), (x, depthwise, pointwise)


def _separable_conv_backward(dilation, residuals, grad):
    x, depthwise, pointwise = residuals
    dense, dense_pullback = jax.vjp(xla.dense_kernel, depthwise, pointwise)
    if x.shape[-1] <= NARROW:
        _, pullback = jax.vjp(functools.partial(conv, dilation=dilation), x, dense)
        dx, ddense = pullback(grad)
    else:
        dx = _depthwise_blocks(grad @ pointwise[0, 0].T, depthwise, -dilation).reshape(x.shape)
        ddense = _conv3x3_kernel_grad(x, _neighbours(grad, -dilation, axis=1), dilation)
    return dx, *dense_pullback(ddense)


separable_conv.defvjp(_separable_conv_forward, _separable_conv_backward)


def _depthwise_blocks(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Depthwise 3x3 convolution as a sum of nine shifted arrays.

    Args:
      x: (N, H, W, C).
      kernel: (3, 3, 1, C).
      dilation: of the kernel; negative for the kernel turned by 180 degrees.

    Returns:
      (N, H, W / block, block * C), with as many pixels in a block as fill the vector units.
    """
    n, height, width, channels = x.shape
    block = math.gcd(width, max(1, WIDE // channels))
    # The kernel repeated for each pixel of a block, by a matrix product, which XLA:CPU writes to
    # memory; it would index into the kernel inside the sum's loop, several times as slow.
    repeated = jnp.asarray(np.tile(np.eye(channels), block), x.dtype)
    taps = jnp.matmul(kernel[:, :, 0], repeated, precision=EXACT)
    reach, step = abs(dilation), dilation * channels
    rows = x.reshape(n, height, width * channels)
    rows = jnp.pad(rows, ((0, 0), (reach, reach), (abs(step), abs(step))))

    def shifted(down: int, across: int) -> jax.Array:
        top, left = reach + (down - 1) * dilation, abs(step) + (across - 1) * step
        window = rows[:, top : top + height, left : left + width * channels]
        return window.reshape(n, height, width // block, block * channels)

    return sum(shifted(i, j) * taps[i, j] for i, j in np.ndindex(3, 3))


# --- shifts ---------------------------------------------------------------------------------------


def shift(
    x: jax.Array, step: int, axis: int = 2, offset: int = 0, channels: int | None = None
) -> jax.Array:
    """x[i - step] along an axis, zero beyond the borders.

    With `channels`, the result has so many, zero but for those of `x`, which start at `offset`.
    """
    after = 0 if channels is None else channels - offset - x.shape[-1]
    padding = [(0, 0, 0)] * (x.ndim - 1) + [(offset, after, 0)]
    padding[axis] = (step, -step, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)


def _neighbours(x: jax.Array, step: int, axis: int) -> jax.Array:
    """x[i - step], x[i] and x[i + step] along an axis, concatenated along the channels.

    As a sum of padded arrays, which XLA:CPU writes in one pass; concatenating takes twice as long.
    """
    c = x.shape[-1]
    before, here, after = (shift(x, (1 - i) * step, axis, i * c, 3 * c) for i in range(3))
    return before + here + after


CPU_TRAIN = dataclasses.replace(
    xla.XLA,
    name="cpu_train",
    conv=conv,
    separable_conv=separable_conv,
)

lower_reduce_precision_as_identity()
