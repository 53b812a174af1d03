"""The project's only use of JAX interfaces without a guarantee of compatibility."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
from absl import logging


def remove_reduce_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` without the `reduce_precision` ops that `jax.checkpoint` inserts on residuals.

    They guard against excess precision (jax-ml/jax#22244), which XLA:CPU does not use, and cost one
    copy each. `jax.extend` may change with any release of JAX: where it has, the function is
    returned as it is, equal but slower.
    """

    def simplified(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        try:
            closed = _without_reduce_precision(closed)
            outputs = jax.extend.core.jaxpr_as_fun(closed)(*jax.tree.leaves(args))
        except (AttributeError, TypeError) as error:
            logging.warning("jax.extend has changed, slower steps: %s", error)
            return function(*args)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return simplified


def _without_reduce_precision(closed: Any) -> Any:
    eqns, same = [], {}

    def resolve(x):
        return same.get(x, x) if isinstance(x, jax.extend.core.Var) else x

    for eqn in closed.jaxpr.eqns:
        if eqn.primitive is jax.lax.reduce_precision_p:
            same[eqn.outvars[0]] = resolve(eqn.invars[0])
        else:
            eqns.append(eqn.replace(invars=[resolve(x) for x in eqn.invars]))
    jaxpr = closed.jaxpr.replace(eqns=eqns, outvars=[resolve(x) for x in closed.jaxpr.outvars])
    return closed.replace(jaxpr=jaxpr)
