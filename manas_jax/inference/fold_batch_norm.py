"""Forms of a trained network that make the same pictures with less work.

`fold` takes its BatchNorm away; `apply` runs what is left, and with `cpu` in the form that XLA runs
fastest there. The network's definition knows of neither: Flax's interceptors put other calls in
place of those of its modules, and `layers` is told which forms of convolutions to take.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from manas_jax.models import layers
from manas_jax.models.attention import Attention
from manas_jax.models.candidates import Edge
from manas_jax.models.columns import Column

CPU_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""Options of `jax.jit` for `apply(..., cpu=True)`.

On CPU XLA drops optimization barriers before it fuses, then computes what has several users in the
loop of each of them: the sum that ends a fusion column up to five times. Kept, a barrier makes it
write the sum once.
"""

_KEPT = (Attention, Column, Edge, layers.Bottleneck, layers.ResidualBlock)  # used more than once


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
    with forms(cpu=cpu):
        return network.apply(variables, images)


@contextlib.contextmanager
def forms(*, cpu: bool) -> Iterator[None]:
    """Within, modules with folded variables are traced in the forms that `apply` speaks of."""
    # Exports are for other runtimes, and of any size.
    convolutions = layers.Forms.FORWARD if cpu else layers.Forms.PLAIN
    keeping = nn.intercept_methods(_keep) if cpu else contextlib.nullcontext()
    with layers.convolution_forms(convolutions), nn.intercept_methods(_add_bias), keeping:
        yield


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
