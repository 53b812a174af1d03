"""A budget that the search holds by a multiplier."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from manas_jax import cost
from manas_jax.space import SearchSpace
from manas_jax.training.losses import expected_cost


class BudgetState(NamedTuple):
    """State of `dual_ascent`.

    Attributes:
      multiplier: the loss that the search would pay for an excess of 1; negative where it would
        rather spend less.
      excess: of the expected cost over the budget, as a share of it.
    """

    multiplier: jax.Array
    excess: jax.Array


def dual_ascent(
    space: SearchSpace, budget: cost.Budget, rate: float
) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of a penalty, for costs off the budget, to that by the logits.

    The sum is the gradient of the augmented Lagrangian, loss + multiplier * excess + excess**2 / 2,
    and each step adds `rate` times the excess to the multiplier, which has either sign (Hestenes,
    "Multiplier and gradient methods", 1969; Powell, 1969). So the relaxed architecture costs as
    much as the budget, and the search decides where to spend it: left free below the budget, it
    takes the choices that train fastest, which are the cheapest, before the others have learned
    anything. The square damps the oscillation that the multiplier alone would keep up.

    Args:
      space: the search space.
      budget: of the expected cost, see `losses.expected_cost`; where no network of the space
        costs as much, the cost of the most expensive one counts.
      rate: of the ascent.
    """
    target = float(min(budget.limit, budget.extremes(space)[1]))

    def excess(logits):
        return expected_cost(space, budget, logits) / target - 1

    def init(logits):
        del logits
        return BudgetState(multiplier=jnp.zeros(()), excess=jnp.zeros(()))

    def update(updates, state, params, **_):
        over, slope = jax.value_and_grad(excess)(params)
        multiplier = state.multiplier + rate * over
        updates = jax.tree.map(lambda g, s: g + (multiplier + over) * s, updates, slope)
        return updates, BudgetState(multiplier, over)

    return optax.GradientTransformationExtraArgs(init, update)
