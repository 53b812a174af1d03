"""Numerical kernels of the network: several implementations of the same functions.

Arrays are NHWC: N images, H rows, W columns, C input and F output channels; k is a kernel's side.
`XLA` is the reference, plain `jax.lax`; every other implementation is tested against it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from manas_jax.ops.interface import Ops
from manas_jax.ops.xla import XLA


def default(dtype: Any = None, platform: str | None = None) -> Ops:
    """The fastest implementation on a platform.

    Args:
      dtype: type of the computation, see `Ops`.
      platform: 'cpu', 'gpu' or 'tpu'; None for JAX's default backend.
    """
    ops = XLA
    if (platform or jax.default_backend()) == "cpu":  # other backends never import it
        from manas_jax.ops.cpu_train import CPU_TRAIN as ops
    return dataclasses.replace(ops, dtype=dtype)


__all__ = ["XLA", "Ops", "default"]
