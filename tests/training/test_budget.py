"""The multiplier that holds a budget."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from manas_jax import cost
from manas_jax.models.network import init_architecture
from manas_jax.space import ALL_COLUMNS, SearchSpace
from manas_jax.training.budget import dual_ascent
from manas_jax.training.losses import expected_cost

SPACE = SearchSpace(
    (4, 8), (2,), (3,), 1, 1, ("none", "SE"), column_choices=ALL_COLUMNS, widths=(0.5, 1.0)
)


def _search(budget, steps, gain):
    """The multiplier and the expected cost at every step; the loss falls by `gain` per budget."""
    logits = init_architecture(SPACE, 0)
    optimizer = optax.chain(dual_ascent(SPACE, budget, 0.02), optax.adam(0.02))
    gradient = jax.grad(lambda a: -gain * expected_cost(SPACE, budget, a) / float(budget.limit))

    def step(carry, _):
        logits, state = carry
        updates, state = optimizer.update(gradient(logits), state, logits)
        logits = optax.apply_updates(logits, updates)
        return (logits, state), (state[0].multiplier, expected_cost(SPACE, budget, logits))

    run = jax.jit(lambda *carry: jax.lax.scan(step, carry, length=steps))
    return run(logits, optimizer.init(logits))[1]


@pytest.mark.parametrize("gain", [0.1, -0.1], ids=["dearer is better", "cheaper is better"])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_multiplier_holds_the_expected_cost_at_the_budget(gain, share):
    cheapest, most_expensive = cost.Budget(0, "macs", 32, 32).extremes(SPACE)
    budget = cost.Budget(int(cheapest + share * (most_expensive - cheapest)), "macs", 32, 32)
    multipliers, costs = _search(budget, 1000, gain)
    np.testing.assert_allclose(multipliers[-1], gain, rtol=0.02)  # what the loss pays
    np.testing.assert_allclose(costs[-200:] / budget.limit, 1, atol=0.02)


def test_a_budget_above_the_dearest_counts_as_that():
    """Of a size whose costs 32 bits do not hold."""
    _, most_expensive = cost.Budget(0, "macs", 4096, 4096).extremes(SPACE)
    assert most_expensive > 2**33
    _, costs = _search(cost.Budget(2 * most_expensive, "macs", 4096, 4096), 500, -0.1)
    assert costs[-1] > 0.95 * most_expensive


def test_gradient_is_that_of_the_lagrangian(float64):
    cheapest, _ = cost.Budget(0, "parameters", 32, 32).extremes(SPACE)
    budget = cost.Budget(cheapest, "parameters", 32, 32)
    logits = jax.tree.map(jnp.float64, init_architecture(SPACE, 0, scale=1.0))
    ascent = dual_ascent(SPACE, budget, 0.5)
    zeros = jax.tree.map(jnp.zeros_like, logits)
    updates, state = ascent.update(zeros, ascent.init(logits), logits)
    excess = expected_cost(SPACE, budget, logits) / budget.limit - 1
    np.testing.assert_allclose(state.multiplier, 0.5 * excess)
    price = 1.5 * excess  # multiplier and square
    h = 1e-6
    for kind, values in logits.items():
        at = (0,) * values.ndim
        ahead, behind = (
            expected_cost(SPACE, budget, {**logits, kind: values.at[at].add(d)}) for d in (h, -h)
        )
        slope = (ahead - behind) / (2 * h) / budget.limit
        np.testing.assert_allclose(updates[kind][at], price * slope, rtol=1e-5)
