"""Forms of a trained network that make the same pictures with less work.

`fold` takes its BatchNorm away; `apply` runs what is left, and with `cpu` in the form that XLA runs
fastest there. The network's definition knows of neither: Flax's interceptors put other calls in
place of those of its modules.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from manas_jax.models import layers
from manas_jax.models.attention import Attention
from manas_jax.models.candidates import Edge, FactoredConv
from manas_jax.models.columns import Column

CPU_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""Options of `jax.jit` for `apply(..., cpu=True)`.

On CPU XLA drops optimization barriers before it fuses, then computes what has several users in the
loop of each of them: the sum that ends a fusion column up to five times. Kept, a barrier makes it
write the sum once.
"""

_KEPT = (Attention, Column, Edge, layers.Bottleneck, layers.ResidualBlock)  # used more than once
_WIDE = 32  # channels from which on XLA's convolutions on CPU reach the speed of its products


def fold(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Folds BatchNorm with its running statistics into the convolution before it.

    The convolution's kernel takes the scale; a bias stays behind under BatchNorm's name. Jacob et
    al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018, section 3.2.

    Args:
      variables: 'params' and 'batch_stats' of a `Network`, as arrays that NumPy takes.

    Returns:
      The 'params' for `apply`, on the host. Without 'batch_stats' there is nothing to fold.
    """
    return {"params": _folded(variables["params"], variables.get("batch_stats", {}))}


def _folded(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(params)
    for name, below in stats.items():
        own = params.get(name, {})  # of a BatchNorm without scale and bias there are none
        if not name.startswith("norm"):
            made[name] = _folded(own, below)
            continue
        scale = np.asarray(own.get("scale", 1), np.float64)
        scale = scale / np.sqrt(np.asarray(below["var"]) + layers.BATCH_NORM_EPSILON)
        bias = own.get("bias", 0) - np.asarray(below["mean"]) * scale
        convolution = name.replace("norm", "conv")
        kernels = dict(params[convolution])
        last = "pointwise" if "pointwise" in kernels else "kernel"
        kernels[last] = (np.asarray(kernels[last]) * scale).astype(np.float32)
        made |= {name: {"bias": bias.astype(np.float32)}, convolution: kernels}
    return made


def apply(
    network: nn.Module, variables: Mapping[str, Any], images: jax.Array, *, cpu: bool = False
) -> jax.Array:
    """`network.apply` of an unfolded derived network, from folded variables.

    Args:
      network: a derived network.
      variables: what `fold` made of its variables.
      images: (N, H, W, 3) in [0, 1].
      cpu: whether to use the form that is made for XLA on CPU; compile it with `CPU_OPTIONS`.

    Returns:
      (N, H, W, 3), not clamped.
    """
    with contextlib.ExitStack() as forms:
        for form in (_add_bias, *((_widen, _keep) if cpu else ())):
            forms.enter_context(nn.intercept_methods(form))
        if not cpu:  # exports are for other runtimes, and of any size
            forms.enter_context(layers.plain_convolutions())
        return network.apply(variables, images)


# --- interceptors: (the module's method, its arguments, its keywords, context) -> its result ------


def _add_bias(call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
    """In place of a BatchNorm, the bias that `fold` left."""
    name = context.module.name or ""
    if context.method_name != "__call__" or not name.startswith("norm"):
        return call(*args, **kwargs)
    return args[0] + context.module.get_variable("params", "bias").astype(args[0].dtype)


def _keep(call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
    """Has what is used more than once written once, see `CPU_OPTIONS`."""
    made = call(*args, **kwargs)
    whole = context.method_name == "__call__" and isinstance(context.module, _KEPT)
    return jax.lax.optimization_barrier(made) if whole else made


def _widen(call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
    """In place of a convolution of few channels `wide_convolution`, or a sum of products.

    A 1x1 convolution of an image's channels writes many times what it reads; as a sum of products
    it becomes part of the loop that uses it.
    """
    module = context.module
    if context.method_name != "__call__" or not isinstance(module, nn.Conv | FactoredConv):
        return call(*args, **kwargs)
    (x,) = args
    params = module.variables["params"]
    if isinstance(module, FactoredConv):
        spatial = params["spatial"].swapaxes(2, 3) if module.depthwise else params["spatial"]
        kernel, stride, dilation = spatial * params["pointwise"], 1, module.dilation
    else:
        kernel, stride, dilation = params["kernel"], module.strides, module.kernel_dilation
    size, _, inputs, outputs = kernel.shape
    if size == stride == 1 and inputs <= 4:
        return sum(x[..., i : i + 1] * kernel[0, 0, i].astype(x.dtype) for i in range(inputs))
    if size > 1 and stride == 1 and max(inputs, outputs) <= _WIDE // 2:
        return wide_convolution(x, kernel.astype(x.dtype), dilation)
    return call(*args, **kwargs)


def wide_convolution(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """A convolution of a few channels: (N, H, W, c) and (k, k, c, o), k odd -> (N, H, W, o).

    Neighbouring pixels of a row are folded into channels, `_WIDE` of them, and the kernel into
    the kernel on blocks that does the same. It multiplies by some zeros, but few channels leave
    most of the processor idle. Shifted by its reach, a block looks at one more block only.

    Stride 1, zero padded to keep height and width. Forward only: its gradient is slow.
    """
    size, inputs, outputs = kernel.shape[1:]
    (n, height, width), reach = x.shape[:3], dilation * (size // 2)
    block = max(_WIDE // max(inputs, outputs), 2 * reach)
    other, source, to, tap = np.ogrid[:2, :block, :block, :size]
    there = block * other + source - reach == to + dilation * (tap - size // 2)
    # Every entry is an entry of the kernel or 0: exact in any type, if it is not rounded.
    kernel = jnp.einsum(
        "bsxt,yxio->ybsito",
        jnp.asarray(there, kernel.dtype).swapaxes(2, 3),
        kernel,
        precision=jax.lax.Precision.HIGHEST,
    )
    x = jnp.pad(x, ((0, 0), (0, 0), (reach, block - reach + -width % block), (0, 0)))
    y = jax.lax.conv_general_dilated(
        x.reshape(n, height, -1, block * inputs),
        kernel.reshape(size, 2, block * inputs, block * outputs),
        window_strides=(1, 1),
        padding=((reach, reach), (0, 0)),
        rhs_dilation=(dilation, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(n, height, -1, outputs)[:, :, :width]
