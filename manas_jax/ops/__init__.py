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


def default(dtype: Any = None) -> Ops:
    """The fastest implementation to differentiate on JAX's default backend."""
    if jax.default_backend() == "cpu":
        from manas_jax.ops.cpu import CPU  # other backends never import it

        return dataclasses.replace(CPU, dtype=dtype)
    return dataclasses.replace(XLA, dtype=dtype)


__all__ = ["XLA", "Ops", "default"]
