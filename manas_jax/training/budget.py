"""A budget that the search holds by a multiplier."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from manas_jax import cost
from manas_jax.space import SearchSpace
from manas_jax.training.losses import ComplexityModel


class BudgetState(NamedTuple):
    """State of `dual_ascent`.

    Attributes:
      multiplier: the loss that the search would pay for an excess of 1.
      excess: of the expected cost over the budget, as a share of it.
    """

    multiplier: jax.Array
    excess: jax.Array


def dual_ascent(
    space: SearchSpace, budget: cost.Budget, rate: float
) -> optax.GradientTransformationExtraArgs:
    """Adds to the gradient by the logits that of an excess of the expected cost over the budget.

    The sum is the gradient of the augmented Lagrangian, loss + multiplier * excess + excess**2 / 2
    where both terms together push downwards. Each step adds `rate` times the excess to the
    multiplier, which is never negative (Rockafellar, "The multiplier method of Hestenes and Powell
    applied to convex programming", 1973). So it grows until the expected cost is within the budget,
    and returns to zero where that is no constraint; the square damps the oscillation that the
    multiplier alone would keep up.

    Args:
      space: the search space.
      budget: of the expected cost, see `ComplexityModel.expected`.
      rate: of the ascent.
    """
    model = ComplexityModel(space, budget.height, budget.width)

    def excess(logits):
        return model.expected(logits, budget.unit) / float(budget.limit) - 1

    def init(logits):
        del logits
        return BudgetState(multiplier=jnp.zeros(()), excess=jnp.zeros(()))

    def update(updates, state, params, **_):
        over, slope = jax.value_and_grad(excess)(params)
        multiplier = jnp.maximum(state.multiplier + rate * over, 0)
        price = jnp.maximum(multiplier + over, 0)
        updates = jax.tree.map(lambda g, s: g + price * s, updates, slope)
        return updates, BudgetState(multiplier, over)

    return optax.GradientTransformationExtraArgs(init, update)
