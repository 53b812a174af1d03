"""The likeliest genotype within a budget, against all genotypes of a space."""

import itertools

import numpy as np
import pytest

from manas_jax import cost
from manas_jax.search.derivation import SPENT, derive_within, likeliest_within
from manas_jax.space import ALL_COLUMNS, SearchSpace, assemble, derivable, derive

# Widths of 3 channels cost alike, so that some costs are equal.
SPACE = SearchSpace(
    (3, 6), (1, 2), (1, 1), 1, 1, ("none", "skip_connect", "SE"),
    column_choices=ALL_COLUMNS, widths=(0.3, 0.4, 1.0),
)  # fmt: skip
SIZE = 32, 32


def _scores(space, seed):
    """Log-probabilities far from even."""
    draw = np.random.default_rng(seed)
    scores = {
        kind: 2 * draw.normal(size=(*shape, len(space.choices[kind])))
        for kind, shape in space.decisions.items()
    }
    return {k: v - np.log(np.exp(v).sum(-1, keepdims=True)) for k, v in scores.items()}


@pytest.fixture(scope="module")
def everything():
    """The choices of every decision in every combination, and what each combination costs."""
    rows = [(kind, index) for kind, shape in SPACE.decisions.items() for index in np.ndindex(shape)]
    combinations = list(itertools.product(*(derivable(SPACE.choices[kind]) for kind, _ in rows)))
    genotypes = []
    for combination in combinations:
        picks = {kind: [] for kind in SPACE.choices}
        for (kind, _), i in zip(rows, combination, strict=True):
            picks[kind].append(SPACE.choices[kind][i])
        genotypes.append(assemble(SPACE, picks))
    costs = [cost.derived(genotype, *SIZE) for genotype in genotypes]
    return rows, np.array(combinations), genotypes, costs


@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_derivation_equals_brute_force(everything, unit):
    """In 100 cases, of which each is within the budget and many are bound by it."""
    rows, combinations, genotypes, costs = everything
    costs = np.array([getattr(c, unit) for c in costs])
    assert (costs.min(), costs.max()) == cost.Budget(0, unit, *SIZE).extremes(SPACE)
    bound = 0
    for seed in range(100):
        share = np.random.default_rng(seed).uniform() ** 2
        limit = int(costs.min() + share * np.ptp(costs))
        scores = _scores(SPACE, seed)
        total = sum(scores[kind][index][combinations[:, i]] for i, (kind, index) in enumerate(rows))
        best = genotypes[np.argmax(np.where(costs <= limit, total, -np.inf))]
        found = likeliest_within(SPACE, scores, cost.Budget(limit, unit, *SIZE))
        assert found == best
        assert getattr(cost.derived(found, *SIZE), unit) <= limit
        bound += found != derive(SPACE, **scores)
    assert 20 < bound < 100


@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_the_budget_is_met_in_large_spaces(unit):
    """Where nothing can be enumerated: of no bound, at the cheapest cost, and between."""
    space = SearchSpace(column_choices=ALL_COLUMNS, widths=(0.25, 0.5, 0.75, 1.0))
    cheapest, most_expensive = cost.Budget(0, unit, 320, 480).extremes(space)
    for seed in range(100):
        share = np.random.default_rng(seed).uniform()
        budget = cost.Budget(int(cheapest + share * (most_expensive - cheapest)), unit, 320, 480)
        found = likeliest_within(space, _scores(space, seed), budget)
        assert budget.cost(found) <= budget.limit
    scores = _scores(space, 0)
    for limit in (most_expensive, cheapest):
        found = likeliest_within(space, scores, cost.Budget(limit, unit, 320, 480))
        if limit == most_expensive:
            assert found == derive(space, **scores)
        else:
            assert getattr(cost.derived(found, 320, 480), unit) == cheapest


def test_the_papers_space_has_no_widths_to_choose():
    space = SearchSpace()
    scores = _scores(space, 0)
    unbound = cost.Budget(10**12, "macs", 320, 480)
    assert likeliest_within(space, scores, unbound) == derive(space, **scores)


@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_a_budget_is_spent_by_the_likeliest(everything, unit):
    """Against brute force: none within the budget that costs as much is likelier."""
    rows, combinations, genotypes, costs = everything
    costs = np.array([getattr(c, unit) for c in costs])
    dearer = 0
    for seed in range(25):
        share = np.random.default_rng(seed).uniform()
        budget = cost.Budget(int(costs.min() + share * np.ptp(costs)), unit, *SIZE)
        scores = _scores(SPACE, seed)
        total = sum(scores[kind][index][combinations[:, i]] for i, (kind, index) in enumerate(rows))
        found = derive_within(SPACE, scores, budget)
        spent = budget.cost(found)
        most_expensive = costs[costs <= budget.limit].max()
        assert min(SPENT * budget.limit, most_expensive) <= spent <= budget.limit
        as_dear = (spent <= costs) & (costs <= budget.limit)
        # Combinations that differ in blocks which no column has are one genotype.
        score = max(s for s, genotype in zip(total, genotypes, strict=True) if genotype == found)
        np.testing.assert_allclose(score, total[as_dear].max(), rtol=1e-9)
        dearer += found != likeliest_within(SPACE, scores, budget)
    assert 5 < dearer < 25
