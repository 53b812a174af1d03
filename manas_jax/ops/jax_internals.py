"""The project's only use of JAX interfaces without a guarantee of compatibility."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.interpreters import mlir


def lower_reduce_precision_as_identity() -> None:
    """Lowers `reduce_precision` to an array's own precision as the identity, on CPU.

    `jax.checkpoint` inserts it on residuals as a guard against excess precision
    (jax-ml/jax#22244), which XLA:CPU does not use, at the cost of one copy each. JAX's interface
    for lowering may change with any release: where it has, steps are slower.
    """
    try:
        mlir.register_lowering(jax.lax.reduce_precision_p, _reduce_precision, platform="cpu")
    except (AttributeError, TypeError) as error:
        logging.warning("jax.interpreters.mlir has changed, slower steps: %s", error)


def _reduce_precision(ctx: Any, x: Any, *, exponent_bits: int, mantissa_bits: int) -> list[Any]:
    own = jnp.finfo(ctx.avals_in[0].dtype)
    if (exponent_bits, mantissa_bits) == (own.nexp, own.nmant):
        return [x]
    from jax.extend.mlir.dialects import stablehlo  # where it is gone, the rest goes on

    bits = mlir.i32_attr(exponent_bits), mlir.i32_attr(mantissa_bits)
    return [stablehlo.reduce_precision(x, *bits)]
