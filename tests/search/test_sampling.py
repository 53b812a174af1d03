"""Random genotypes within a budget, and the choice of one of them by training."""

import dataclasses
import math

import numpy as np
import pytest

from manas_jax import cost
from manas_jax.latency_table import LatencyTable
from manas_jax.search import sampling
from manas_jax.space import ALL_COLUMNS, SearchSpace, random_genotype

SPACE = SearchSpace(
    (8, 16), (1, 2), (2, 3), 1, column_choices=ALL_COLUMNS, widths=(0.25, 0.5, 0.75, 1.0)
)


@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_random_genotypes_cost_about_the_budget(unit):
    cheapest, most_expensive = cost.Budget(0, unit, 64, 64).extremes(SPACE)
    for share in (0.0, 0.2, 0.7, 1.0):
        budget = cost.Budget(int(cheapest + share * (most_expensive - cheapest)), unit, 64, 64)
        sampler = sampling.Sampler(SPACE, budget)
        drawn = [sampling.random_within(sampler, seed) for seed in range(3)]
        for genotype in drawn:
            assert 0.97 * budget.limit <= budget.cost(genotype) <= budget.limit
        assert drawn[0] == sampling.random_within(sampling.Sampler(SPACE, budget), 0)
        if 0 < share < 1:
            assert drawn[0] != drawn[1]


def test_probabilities_depend_on_the_cost_alone():
    """Relative to uniform choices, a genotype has exp(-rate * cost) of them, up to a constant."""
    budget = cost.Budget(10**6, "macs", 64, 64)
    tables = {k: np.array(rows, float) / budget.limit for k, rows in budget.tables(SPACE).items()}
    logits = sampling._tilted(SPACE, tables, rate=3.0)
    allowed = logits["attention"] > -np.inf
    assert np.array_equal(allowed.any((0, 1)), [name != "none" for name in SPACE.candidates])

    def relative(genotype):
        total = 3.0 * budget.cost(genotype) / budget.limit
        widths = [w for cell in genotype.widths for column in cell for w in column]
        parallel = np.repeat([c == "parallel" for c in genotype.picks["columns"]], [1, 1, 2, 2, 2])
        for kind, picks in genotype.picks.items():
            rows = logits[kind].reshape(len(picks), -1)
            rows = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
            chosen = [r[SPACE.choices[kind].index(p)] for r, p in zip(rows, picks, strict=True)]
            total += np.sum(np.array(chosen)[parallel] if kind == "widths" else chosen)
        return total + len(widths) * math.log(len(SPACE.widths))  # the uniform probability of them

    values = [relative(random_genotype(SPACE, seed)) for seed in range(10)]
    np.testing.assert_allclose(values, values[0], rtol=1e-9)


def test_choices_of_a_candidate_with_preferences_go_together():
    free = cost.Budget(0, "macs", 64, 64)
    budget = dataclasses.replace(free, limit=round(np.mean(free.extremes(SPACE))))
    sampler = sampling.Sampler(SPACE, budget)

    def commonest(preference):
        """The mean share of a network's edges that have its commonest candidate."""
        shares = []
        for seed in range(16):
            genotype = sampling.random_candidate(sampler, seed, preference)
            assert 0.9 * budget.limit <= budget.cost(genotype) <= budget.limit
            assert genotype == sampling.random_candidate(sampler, seed, preference)
            edges = genotype.picks["attention"]
            shares.append(max(map(edges.count, edges)) / len(edges))
        return np.mean(shares)

    assert commonest(0.0) < 0.45 < 0.65 < commonest(3.0)
    drawn = {sampling.random_candidate(sampler, seed, 3.0).to_json() for seed in range(16)}
    assert len(drawn) > 12  # each has preferences of its own
    assert sampling.random_candidate(sampler, 0) == sampling.random_within(sampler, 0)
    unbound = sampling.Sampler(SPACE)
    assert sampling.random_candidate(unbound, 0) == random_genotype(SPACE, 0)
    assert sampling.random_candidate(unbound, 0, 3.0) != random_genotype(SPACE, 0)


@pytest.mark.parametrize("unit", ["macs", "nanoseconds"])
def test_candidates_of_spaces_with_one_width(unit):
    space = SearchSpace((8, 16), (1, 2), (2, 3), 1)
    for seed in range(3):
        assert sampling.random_candidate(sampling.Sampler(space), seed, 3.0).space == space
    latency = None
    if unit == "nanoseconds":
        rows = cost.tables(space, 64, 64, "macs")
        latency = LatencyTable("file", "cpu", space, (64, 64), 100, rows)
    free = cost.Budget(1, unit, 64, 64, latency)
    budget = dataclasses.replace(free, limit=round(np.mean(free.extremes(space))))
    sampler = sampling.Sampler(space, budget)
    for seed, preference in ((0, 0.0), (1, 3.0)):
        genotype = sampling.random_candidate(sampler, seed, preference)
        assert 0.9 * budget.limit <= budget.cost(genotype) <= budget.limit


def test_a_budget_that_hardly_a_genotype_is_within():
    """Of three million only those with the cheapest choice of every decision."""
    space = SearchSpace((8, 16), (1, 2), (4, 4), 2, candidates=("none", "skip_connect", "SE"))
    cheapest, _ = cost.Budget(0, "parameters", 64, 64).extremes(space)
    sampler = sampling.Sampler(space, cost.Budget(cheapest, "parameters", 64, 64))
    assert sampler.budget.cost(sampling.random_within(sampler, 0)) == cheapest
    indices, genotype = sampler.within(np.random.default_rng(0))
    assert sampler.budget.cost(genotype) == cheapest and sampler.genotype(indices) == genotype
    assert sampler.budget.cost(sampling.random_candidate(sampler, 0, 10.0)) == cheapest


def test_preferences_for_widths_leave_the_kinds_of_columns_alone():
    """A column is as likely parallel as before, and blocks of a branch prefer the same width."""
    preferences = sampling.random_preferences(SPACE, np.random.default_rng(0), 3.0)
    tables = {k: np.array(rows, float) for k, rows in cost.tables(SPACE, 1, 1, "macs").items()}
    plain = sampling._tilted(SPACE, tables, 0.0)
    widths = sampling._tilted(SPACE, tables, 0.0, {"widths": preferences["widths"]})
    np.testing.assert_allclose(widths["columns"], plain["columns"], atol=1e-12)
    branches = [branch for _, branch in SPACE.residual_blocks]
    rows = dict(zip(branches, widths["widths"], strict=True))
    for branch, row in zip(branches, widths["widths"], strict=True):
        np.testing.assert_array_equal(row, rows[branch])
    assert not np.allclose(rows[0], rows[1])
