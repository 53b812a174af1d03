"""Building blocks shared by all parts of the network. Arrays are NHWC."""

from __future__ import annotations

import contextlib
import enum
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

KERNEL_INIT = nn.initializers.he_normal()

# PyTorch's momentum 0.1 is 0.9 in Flax's terms. Flax keeps the biased variance in the running
# statistics where PyTorch keeps the unbiased one: they differ by 1 / (pixels - 1).
BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON = 0.9, 1e-5

# A function that is traced once for all arrays of a kind. Programs do not tell it from a plain one.
_traced_once = functools.partial(jax.jit, inline=True)


@jax.custom_vjp
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the statistics of the batch, then scales and shifts each channel.

    Ioffe and Szegedy, "Batch Normalization", ICML 2015. The gradient is that of section 3 there:
    two sums over the batch and one pass over it, which reads nothing but `x` and the incoming
    gradient. JAX's own derivative makes four sums and keeps `x - mean` besides `x`.

    Args:
      x: (..., C).
      scale: (C,).
      bias: (C,).

    Returns:
      The result, and the batch's mean and biased variance (C,), which nothing is derived through.
    """
    return _batch_norm_forward(x, scale, bias)[0]


@_traced_once
def _batch_norm_forward(x, scale, bias):
    mean, variance = _moments(x)
    y = apply_norm(x, mean, variance, scale, bias)
    return (y, mean, variance), (x, mean, variance, scale)


@_traced_once
def _batch_norm_backward(kept, gradients):
    x, mean, variance, scale = kept
    gradient = gradients[0]
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    inverse = jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
    wide = gradient.astype(mean.dtype)
    of_bias = jnp.sum(wide, axes)
    of_scale = inverse * (jnp.sum(wide * x.astype(mean.dtype), axes) - mean * of_bias)
    slope = scale * inverse
    by_x = -slope * inverse * of_scale / count
    constant = -slope * of_bias / count - mean * by_x
    of_x = (slope * wide + (by_x * x + constant)).astype(x.dtype)
    return of_x, of_scale.astype(scale.dtype), of_bias.astype(scale.dtype)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel, in float32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    return mean, jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)


def apply_norm(
    x: jax.Array, mean: jax.Array, variance: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, in the type of `x`."""
    slope = jax.lax.rsqrt(variance + BATCH_NORM_EPSILON) * scale
    return ((x - mean) * slope + bias).astype(x.dtype)


class BatchNorm(nn.Module):
    """`batch_norm` with its parameters and running statistics, named as `nn.BatchNorm` names them.

    Attributes:
      affine: whether there are a scale and a bias.
      momentum: what the running statistics keep at each step.
    """

    affine: bool = True
    momentum: float = BATCH_NORM_MOMENTUM

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(..., C) -> the same shape; with `train` by the batch, and the running ones move."""
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        else:
            scale, bias = jnp.ones(shape, mean.value.dtype), jnp.zeros(shape, mean.value.dtype)
        if not train:
            return apply_norm(x, mean.value, variance.value, scale, bias)
        y, *moments = batch_norm(x, scale, bias)
        if not self.is_initializing():
            for running, latest in zip((mean, variance), moments, strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * latest
        return y


def normalize(
    x: jax.Array,
    train: bool,
    *,
    name: str,
    affine: bool = True,
    momentum: float = BATCH_NORM_MOMENTUM,
) -> jax.Array:
    """BatchNorm over batch, height and width; to be called in a compact method.

    With `train` the statistics are those of the (global) batch, and the running ones move.
    """
    return BatchNorm(affine, momentum, name=name)(x, train)


def convolution(
    features: int,
    kernel: int,
    *,
    stride: int = 1,
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
        padding=kernel // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=functools.partial(_convolve, stride),
        name=name,
    )


def _convolve(stride: int, x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """The convolution in its fastest form, called as `nn.Conv` calls."""
    if stride == 1:
        return same_convolution(x, kernel)
    halves = stride == 2 and kernel.shape[0] == 3 and not (x.shape[1] % 2 or x.shape[2] % 2)
    if halves and _current_forms() is Forms.GRADIENT:
        return _halving_convolution(x, kernel)
    return _plain_convolution(x, kernel, stride=stride)


FEW, NARROW, MANY = 4, 8, 16  # channels
WIDE = 32  # channels from which on XLA's convolutions on CPU reach the speed of its products
PATCH, BLOCK = 4, 8  # pixels


class Forms(enum.Enum):
    """Which forms of convolutions are traced; all are the same functions.

    Attributes:
      PLAIN: XLA's own, for accelerators and other runtimes.
      GRADIENT: those whose gradients XLA:CPU runs fastest; the default there.
      FORWARD: those that XLA:CPU runs fastest where no gradient is wanted.
    """

    PLAIN = enum.auto()
    GRADIENT = enum.auto()
    FORWARD = enum.auto()


_forms: Forms | None = None


@contextlib.contextmanager
def convolution_forms(forms: Forms) -> Iterator[None]:
    """Within, convolutions are traced in these forms, whatever the backend."""
    global _forms
    before, _forms = _forms, forms
    try:
        yield
    finally:
        _forms = before


def _current_forms() -> Forms:
    if _forms is not None:
        return _forms
    return Forms.GRADIENT if jax.default_backend() == "cpu" else Forms.PLAIN


def stored(x: jax.Array) -> jax.Array:
    """Has an array written once, before the loops that read it, where forms are `FORWARD`.

    XLA:CPU otherwise makes it within those loops, again for each time that they read an element,
    and looks up what it is made of by divisions. See `folding.CPU_OPTIONS`.
    """
    return jax.lax.optimization_barrier(x) if _current_forms() is Forms.FORWARD else x


def same_convolution(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """A convolution of stride 1 and odd kernel that keeps the size, in the form that runs fastest.

    Args:
      x: (N, H, W, C), zero beyond its borders.
      kernel: (k, k, C, features).
      dilation: of the kernel.

    Returns:
      (N, H, W, features).
    """
    forms, (side, _, *channels) = _current_forms(), kernel.shape
    if side == 1:
        if forms is Forms.FORWARD and channels[0] <= FEW:
            # It writes many times what it reads; a sum is part of the loop that uses it.
            return sum(x[..., i : i + 1] * kernel[0, 0, i] for i in range(channels[0]))
        # The product it is: on CPU XLA runs that faster.
        product = _product if forms is Forms.GRADIENT else jnp.matmul
        return product(x.reshape(-1, channels[0]), kernel[0, 0]).reshape(*x.shape[:-1], -1)
    if forms is Forms.FORWARD and (side, dilation) == (3, 1) and MANY <= channels[0] <= channels[1]:
        # Of more channels than it makes, its sums cost more than it saves.
        return minimal_convolution(x, kernel)
    if forms is Forms.FORWARD and max(channels) <= WIDE // 2:
        return wide_convolution(x, kernel, dilation)
    if forms is Forms.GRADIENT and side == 3:
        return _convolution3(x, kernel, dilation)
    if forms is Forms.GRADIENT and max(channels) <= FEW:
        return small_convolution(x, kernel, dilation)
    return _plain_convolution(x, kernel, dilation)


def separable_convolution(
    x: jax.Array, spatial: jax.Array, pointwise: jax.Array, dilation: int = 1
) -> jax.Array:
    """A 3x3 convolution of each channel alone, then a pointwise one of all channels.

    Args:
      x: (N, H, W, C), zero beyond its borders.
      spatial: (3, 3, 1, C).
      pointwise: (1, 1, C, features).
      dilation: of the 3x3 convolution.

    Returns:
      (N, H, W, features).
    """
    if _current_forms() is Forms.PLAIN:
        return same_convolution(x, _dense_kernel(spatial, pointwise).astype(x.dtype), dilation)
    return _separable(x, spatial.astype(x.dtype), pointwise.astype(x.dtype), dilation)


def _dense_kernel(spatial: jax.Array, pointwise: jax.Array) -> jax.Array:
    """The kernel of the one convolution that the two make."""
    return spatial.swapaxes(2, 3) * pointwise


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _separable(x: jax.Array, spatial: jax.Array, pointwise: jax.Array, dilation: int) -> jax.Array:
    """`separable_convolution` as a sum of shifted arrays and a product.

    XLA:CPU's grouped convolution is slower than the dense one that both make, this is faster.
    """
    return _separable_forward(x, spatial, pointwise, dilation)[0]


def _separable_forward(x, spatial, pointwise, dilation):
    y = _depthwise_of_blocks(x, spatial, dilation)
    block = y.shape[3] // x.shape[3]
    matrix = jnp.kron(jnp.eye(block, dtype=x.dtype), pointwise[0, 0])
    y = y.reshape(-1, y.shape[-1]) @ matrix
    return y.reshape(*x.shape[:3], pointwise.shape[3]), (x, spatial, pointwise)


def _separable_backward(dilation, kept, gradient):
    x, spatial, pointwise = kept
    dense, of_kernels = jax.vjp(_dense_kernel, spatial, pointwise)
    if x.shape[-1] <= NARROW:
        of_x, of_dense = _convolution3_backward(dilation, (x, dense), gradient)
    else:
        channels = gradient @ pointwise[0, 0].T
        of_x = _depthwise_of_blocks(channels, spatial, -dilation)
        of_dense = _kernel_gradient(x, _shifts(gradient, -dilation, axis=1), dilation)
    return of_x.reshape(x.shape), *of_kernels(of_dense)


_separable.defvjp(_separable_forward, _separable_backward)


def _depthwise_of_blocks(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """A 3x3 convolution a channel as a sum of shifted arrays.

    Args:
      x: (N, H, W, C).
      kernel: (3, 3, 1, C).
      dilation: of the kernel; below zero that of the kernel turned by half a turn.

    Returns:
      (N, H, W / block, block * C), of as many pixels in a block as fill the processor's vectors.
    """
    n, height, width, channels = x.shape
    block = math.gcd(width, max(1, WIDE // channels))
    # The kernel as often as a block has pixels, by a product: XLA makes loops of their own of
    # these, and would else look it up in the loop of the sum, several times as slow then.
    repeated = jnp.asarray(np.tile(np.eye(channels), block), x.dtype)
    taps = jnp.matmul(kernel[:, :, 0], repeated, precision=jax.lax.Precision.HIGHEST)
    reach = abs(dilation)
    rows = x.reshape(n, height, width * channels)
    rows = stored(jnp.pad(rows, ((0, 0), (reach, reach), (reach * channels, reach * channels))))
    return _sum_of_shifted(rows, taps, dilation, channels)


@functools.partial(_traced_once, static_argnums=(2, 3))
def _sum_of_shifted(rows: jax.Array, taps: jax.Array, dilation: int, channels: int) -> jax.Array:
    """The sum of `_depthwise_of_blocks`, of padded rows and of taps (3, 3, block * C)."""
    n, length = rows.shape[0], taps.shape[2]
    reach, step = abs(dilation), dilation * channels
    beside = abs(step)
    height, width = rows.shape[1] - 2 * reach, rows.shape[2] - 2 * beside

    def shifted(down: int, across: int) -> jax.Array:
        top, left = reach + (down - 1) * dilation, beside + (across - 1) * step
        seen = rows[:, top : top + height, left : left + width]
        return seen.reshape(n, height, width // length, length)

    return sum(shifted(i, j) * taps[i, j] for i, j in np.ndindex(3, 3))


def _plain_convolution(
    x: jax.Array, kernel: jax.Array, dilation: int = 1, stride: int = 1
) -> jax.Array:
    reach = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(reach, reach)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """The matrix product (M, C), (C, D) -> (M, D), M large; see `_product_over_rows`."""
    return x @ matrix


def _product_forward(x, matrix):
    return x @ matrix, (x, matrix)


def _product_backward(kept, gradient):
    x, matrix = kept
    return gradient @ matrix.T, _product_over_rows(x, gradient)


_product.defvjp(_product_forward, _product_backward)


def _product_over_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    """The product x^T y over many rows: (M, C), (M, D) -> (C, D).

    XLA:CPU takes much longer where C is the larger one: it is turned then, and the barrier keeps
    the compiler from turning it back.
    """
    if x.shape[1] <= y.shape[1]:
        return x.T @ y
    return jax.lax.optimization_barrier(y.T @ x).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution3(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """3x3 in the form that XLA:CPU runs fastest; each in its own for the three of its gradient."""
    return _convolution3_forward(x, kernel, dilation)[0]


def _convolution3_forward(x, kernel, dilation):
    form = wide_convolution if max(kernel.shape[2:]) <= NARROW else _plain_convolution
    return form(x, kernel, dilation), (x, kernel)


def _convolution3_backward(dilation, kept, gradient):
    x, kernel = kept
    block = math.gcd(x.shape[2], BLOCK)
    if max(kernel.shape[2:]) <= FEW and block >= dilation:
        rows = _shifts(_blocks(gradient, block, dilation), -dilation, axis=1)
        taps = _block_taps(block, dilation)
        of_x = _turned_product_of_blocks(rows, kernel, taps).reshape(x.shape)
        of_kernel = _kernel_gradient_of_blocks(x, rows, taps)
    else:
        rows = _shifts(gradient, -dilation, axis=1)
        if max(kernel.shape[2:]) <= NARROW:
            # Shares the shifts. Forward, a part would keep its products, thrice what they make.
            of_x = _turned_product_of_rows(rows, kernel, dilation)
        else:
            turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
            of_x = _plain_convolution(gradient, turned, dilation)
        of_kernel = _kernel_gradient(x, rows, dilation)
    return of_x, of_kernel.astype(kernel.dtype)


_convolution3.defvjp(_convolution3_forward, _convolution3_backward)


def _turned_product_of_rows(rows: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """The gradient by the input of a 3x3 convolution as one product, then three shifts.

    The product is of `_shifts` of the output's gradient along rows: a few channels, taken three
    times, fill the processor's vectors, and nothing is multiplied by zero.
    """
    size, _, inputs, outputs = kernel.shape
    taps = kernel.transpose(0, 3, 1, 2).reshape(size * outputs, size * inputs)
    products = rows.reshape(-1, size * outputs) @ taps
    left, here, right = jnp.split(products.reshape(*rows.shape[:-1], -1), size, axis=-1)
    # What the left tap reads lies before the output.
    return _moved(left, -dilation) + here + _moved(right, dilation)


def _moved(
    x: jax.Array, step: int, axis: int = 2, first: int = 0, channels: int | None = None
) -> jax.Array:
    """x[i - step] along an axis, zero beyond the borders; its channels from `first` on.

    Of so many channels, of which the others are zero; by default there are no others.
    """
    behind = 0 if channels is None else channels - first - x.shape[-1]
    padding = [(0, 0, 0)] * (x.ndim - 1) + [(first, behind, 0)]
    padding[axis] = (step, -step, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)


def wide_convolution(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """A convolution of a few channels: (N, H, W, c) and (k, k, c, o), k odd -> (N, H, W, o).

    Neighbouring pixels of a row are folded into channels, `WIDE` of them, and the kernel into
    the kernel on blocks that does the same. It multiplies by some zeros, but few channels leave
    most of the processor idle. Shifted by its reach, a block looks at one more block only.

    Stride 1, zero padded to keep height and width. Its kernel's gradient is slow.
    """
    size, inputs, outputs = kernel.shape[1:]
    (n, height, width), reach = x.shape[:3], dilation * (size // 2)
    block = max(WIDE // max(inputs, outputs), 2 * reach)
    taps = _taps_of_blocks(kernel, block, dilation)
    x = jnp.pad(stored(x), ((0, 0), (0, 0), (reach, block - reach + -width % block), (0, 0)))
    y = jax.lax.conv_general_dilated(
        x.reshape(n, height, -1, block * inputs),
        taps,
        window_strides=(1, 1),
        padding=((reach, reach), (0, 0)),
        rhs_dilation=(dilation, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(n, height, -1, outputs)[:, :, :width]


# Winograd's minimal filtering F(4, 3) of the points 0, 1, -1, 2, -2 and infinity: four values that
# three taps make are _MADE @ ((_TAPS @ taps) * (_SEEN @ values)), of the six values that they see.
_SEEN = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_TAPS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_MADE = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)


def minimal_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution with half of the multiplications: (N, H, W, c) -> (N, H, W, o).

    Four rows at a time, as sums of six convolutions along rows, each of another sum of the six
    rows that they see. Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
    2016, section 4.1, here along columns alone, which takes fewer sums.

    Stride 1, zero padded to keep height and width. All rows lie one behind the other, with a zero
    between: XLA:CPU divides nothing between the cores that is as short as one. Those of up to
    `WIDE` / 2 channels are folded into blocks of pixels, as in `wide_convolution`.
    """
    (n, height, width, inputs), outputs = x.shape, kernel.shape[3]
    tiles, block = -(-height // len(_MADE)), max(1, WIDE // max(inputs, outputs))
    length = -(-(1 + width) // block)  # of a row, in blocks
    rows = jnp.pad(stored(x).reshape(n, height, -1), ((0, 0), (0, -height % len(_MADE)), (0, 0)))
    inside = [rows.reshape(n, tiles, len(_MADE), -1)[:, :, i] for i in range(len(_MADE))]
    seen = [_moved(inside[-1], 1, axis=1), *inside, _moved(inside[0], -1, axis=1)]
    beside = (inputs, (block * length - width - 1) * inputs)

    def along_rows(weights: np.ndarray, taps: jax.Array) -> jax.Array:
        row = jnp.pad(_weighted(weights, seen), ((0, 0), (0, 0), beside))
        y = jax.lax.conv_general_dilated(
            row.reshape(n, 1, tiles * length, block * inputs),
            taps[None],
            window_strides=(1, 1),
            padding=((0, 0), (0, len(taps) - 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y.reshape(n, tiles, block * length, outputs)[:, :, :width]

    sums = jnp.tensordot(jnp.asarray(_TAPS, kernel.dtype), kernel, 1, precision="highest")
    products = [along_rows(*pair) for pair in zip(_SEEN, _taps_of_blocks(sums, block), strict=True)]
    y = jnp.stack([_weighted(weights, products) for weights in _MADE], 2)
    return y.reshape(n, -1, width, outputs)[:, :height]


def _weighted(weights: np.ndarray, arrays: Iterable[jax.Array]) -> jax.Array:
    """The sum of arrays, each times its weight."""
    return sum(float(weight) * x for weight, x in zip(weights, arrays, strict=True) if weight)


def _taps_of_blocks(kernel: jax.Array, block: int, dilation: int = 1) -> jax.Array:
    """Taps along pixels of a row (_, k, c, o) as such along blocks of them.

    Returns:
      (_, blocks seen by a block, block * c, block * o): its first pixel sees the first of them.
    """
    if block == dilation == 1:
        return kernel
    size, inputs, outputs = kernel.shape[1:]
    blocks = 1 + -(-dilation * (size - 1) // block)
    other, source, to, tap = np.ogrid[:blocks, :block, :block, :size]
    there = jnp.asarray(block * other + source == to + dilation * tap, kernel.dtype)
    # Every entry is an entry of the kernel or 0: exact in any type, if it is not rounded.
    highest = jax.lax.Precision.HIGHEST
    taps = jnp.einsum("bsxt,yxio->ybsito", there.swapaxes(2, 3), kernel, precision=highest)
    return taps.reshape(-1, blocks, block * inputs, block * outputs)


def _kernel_gradient(x: jax.Array, rows: jax.Array, dilation: int) -> jax.Array:
    """Gradient of a 3x3 kernel as one matrix product, (N, H, W, C), (N, H, W, 3 D) -> (3, 3, C, D).

    The input shifted sideways three times, against the output's gradient shifted up and down three
    times, as the upper tap meets it first: all nine products, none of them twice, without the
    transposed copies of both that XLA makes on CPU to run this as a convolution whose kernel is as
    large as the picture.
    """
    columns = _shifts(x, dilation, axis=2)
    product = _product_over_rows(*(z.reshape(-1, z.shape[-1]) for z in (columns, rows)))
    product = product.reshape(3, x.shape[-1], 3, -1)
    return jnp.stack([product[:, :, row] for row in range(3)])  # transposed, XLA writes it twice


def _shifts(x: jax.Array, step: int, axis: int) -> jax.Array:
    """x[i - step], x[i] and x[i + step] along an axis, one behind the other in the channels.

    As a sum of padded arrays, which XLA writes in one pass; concatenating takes twice as long.
    """
    c = x.shape[-1]
    before, here, after = (_moved(x, (1 - i) * step, axis, i * c, 3 * c) for i in range(3))
    return before + here + after


def _blocks(x: jax.Array, block: int, reach: int) -> jax.Array:
    """Blocks of pixels of a row, with what lies `reach` pixels around each, as channels.

    (N, H, W, C) -> (N, H, W / block, (block + 2 * reach) * C), zero beyond the borders.
    """
    x = x.reshape(*x.shape[:2], -1, block * x.shape[3])
    beside = reach * x.shape[3] // block
    inside, channels = beside + x.shape[3], 2 * beside + x.shape[3]
    before = _moved(x[..., -beside:], 1, channels=channels)
    after = _moved(x[..., :beside], -1, first=inside, channels=channels)
    whole = before + _moved(x, 0, first=beside, channels=channels) + after
    # Written once: it is shifted thrice.
    return jax.lax.optimization_barrier(whole)


def _block_taps(block: int, dilation: int) -> np.ndarray:
    """By which tap of three a pixel of the block reaches an output among `_blocks`: 1 or 0."""
    output, pixel, tap = np.ogrid[: block + 2 * dilation, :block, :3]
    return output - pixel == dilation * (2 - tap)


def _turned_product_of_blocks(rows: jax.Array, kernel: jax.Array, taps: np.ndarray) -> jax.Array:
    """The gradient by the input of a 3x3 convolution as one product.

    The product is of `_shifts` of `_blocks` of the output's gradient along rows. It multiplies by
    zeros, but arrays of one or two channels, of which a processor's vectors are mostly empty,
    become such of many.
    """
    there = jnp.asarray(taps, kernel.dtype)
    # Every entry is an entry of the kernel or 0: exact in any type, if it is not rounded.
    matrix = jnp.einsum("stx,yxio->ysoti", there, kernel, precision=jax.lax.Precision.HIGHEST)
    return rows.reshape(-1, rows.shape[-1]) @ matrix.reshape(rows.shape[-1], -1)


def _kernel_gradient_of_blocks(x: jax.Array, rows: jax.Array, taps: np.ndarray) -> jax.Array:
    """`_kernel_gradient` of `_shifts` of `_blocks` of the output's gradient along rows."""
    source, to, _ = taps.shape
    product = _product_over_rows(
        x.reshape(-1, to * x.shape[-1]), rows.reshape(-1, rows.shape[-1])
    ).reshape(to, x.shape[-1], 3, source, -1)
    there = jnp.asarray(taps, product.dtype)
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("tiyso,stx->yxio", product, there, precision=highest)


@jax.custom_vjp
def _halving_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 of stride 2, both sides even: (N, H, W, C) -> (N, H / 2, W / 2, D).

    Its gradients, which XLA:CPU makes of dilated convolutions, as a convolution to squares of 2x2
    pixels and as two matrix products.
    """
    return _plain_convolution(x, kernel, stride=2)


def _halving_forward(x, kernel):
    return _plain_convolution(x, kernel, stride=2), (x, kernel)


def _halving_backward(kept, gradient):
    x, kernel = kept
    # Tap 1 leads from the first pixel of a pair to the output there, tap 2 from the second one,
    # tap 0 from the second one to the output behind.
    output, source, tap = np.ogrid[:2, :2, :3]
    there = 2 * output - source == 1 - tap
    # Every entry is an entry of the kernel or 0: exact in any type, if it is not rounded.
    there = jnp.asarray(np.einsum("ysa,xtb->yxstab", there, there), kernel.dtype)
    highest = jax.lax.Precision.HIGHEST
    taps = jnp.einsum("yxstab,abio->yxosti", there, kernel, precision=highest)
    squares = jax.lax.conv_general_dilated(
        gradient,
        taps.reshape(2, 2, gradient.shape[-1], -1),
        window_strides=(1, 1),
        padding=[(0, 1), (0, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return depth_to_space(squares, 2), _halving_kernel_gradient(x, gradient).astype(kernel.dtype)


_halving_convolution.defvjp(_halving_forward, _halving_backward)


def _halving_kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """`_kernel_gradient` for stride 2: even rows meet one row of outputs, odd rows two."""
    count, height, width, outputs = gradient.shape
    inputs = x.shape[-1]
    rows = x.reshape(count, height, 2, width, 2 * inputs)

    def taps(row):  # the last pixel before a pair and those of the pair: taps 0, 1 and 2
        before = _moved(row[..., inputs:], 1, channels=3 * inputs)
        pair = _moved(row, 0, first=inputs, channels=3 * inputs)
        return (before + pair).reshape(-1, 3 * inputs)

    def product(row, of_outputs):
        return _product_over_rows(taps(row), of_outputs.reshape(-1, of_outputs.shape[-1]))

    behind = _moved(gradient, -1, axis=1, first=outputs, channels=2 * outputs)
    both = behind + _moved(gradient, 0, channels=2 * outputs)
    of_even = product(rows[:, :, 0], gradient)
    of_odd = product(rows[:, :, 1], both).reshape(-1, 2, outputs)
    of_rows = jnp.stack([of_odd[:, 1], of_even, of_odd[:, 0]])
    return of_rows.reshape(3, 3, inputs, outputs)


def small_convolution(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """A convolution of a few channels: (N, H, W, c) and (k, k, c, o), k odd -> (N, H, W, o).

    Squares of pixels are folded into channels, and the kernel into the 3x3 kernel on squares that
    does the same. It multiplies by many zeros, but on CPU XLA runs a convolution of two channels
    at a hundredth of the speed of one of 32. Stride 1, zero padded to keep height and width.
    """
    size, height, width = kernel.shape[0], *x.shape[1:3]
    patch = max(PATCH, dilation * (size // 2))  # so that no pixel looks beyond the next square
    square, source, to, tap = np.ogrid[-1:2, :patch, :patch, :size]
    there = patch * square + source - to == dilation * (tap - size // 2)
    there = jnp.asarray(there, kernel.dtype)
    # Every entry is an entry of the kernel or 0: exact in any type, if it is not rounded.
    kernel = jnp.einsum(
        "ysab,xtcd,bdio->yxstiaco", there, there, kernel, precision=jax.lax.Precision.HIGHEST
    )
    kernel = kernel.reshape(3, 3, patch**2 * x.shape[-1], -1)
    x = jnp.pad(x, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)))
    y = jax.lax.conv_general_dilated(
        space_to_depth(x, patch),
        kernel.astype(x.dtype),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return depth_to_space(y, patch)[:, :height, :width]


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
    """The two dense layers of squeeze-excitation: (..., C) -> (..., C), before the sigmoid.

    Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, equation 3. Of several pooled vectors
    the sum of their results.
    """

    hidden: int
    bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, *pooled: jax.Array) -> jax.Array:
        """Applies both layers with a ReLU between."""

        def dense(features, name):
            return nn.Dense(
                features,
                use_bias=self.bias,
                dtype=self.dtype,
                kernel_init=KERNEL_INIT,
                name=name,
            )

        x = nn.relu(dense(self.hidden, "squeeze")(jnp.stack(pooled)))
        return dense(pooled[0].shape[-1], "excite")(x).sum(0)


def upsample(x: jax.Array, factor: int) -> jax.Array:
    """Nearest-neighbour enlargement: (N, H, W, C) -> (N, factor * H, factor * W, C)."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, factor, w, factor, c))
    return x.reshape(n, h * factor, w * factor, c)


def split(x: jax.Array, parts: int) -> list[jax.Array]:
    """`jnp.split` along the channels; its gradient in the form that XLA:CPU runs fastest.

    All that makes up the parts' gradients would go into the loop that joins them, which one thread
    runs. A product with the identity is an end of such loops.
    """
    return _split(x, parts) if _current_forms() is Forms.GRADIENT else jnp.split(x, parts, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _split(x, parts):
    return jnp.split(x, parts, -1)


def _split_forward(x, parts):
    return jnp.split(x, parts, -1), None


def _split_backward(parts, kept, gradients):
    del parts, kept
    one = jnp.eye(gradients[0].shape[-1], dtype=gradients[0].dtype)
    ends = [jnp.matmul(x, one, precision=jax.lax.Precision.HIGHEST) for x in gradients]
    return (jnp.concatenate(ends, -1),)


_split.defvjp(_split_forward, _split_backward)


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
