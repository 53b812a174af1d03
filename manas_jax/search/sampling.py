"""Random genotypes: uniform ones or, within a budget, those that cost about as much as it."""

from __future__ import annotations

import functools
import math
import statistics
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from manas_jax import cost
from manas_jax.cost import Budget
from manas_jax.search.derivation import likeliest_within
from manas_jax.space import Genotype, SearchSpace, assemble, derivable, random_genotype
from manas_jax.training.losses import expected_cost

DRAWS = 64  # per genotype within a budget
ROUNDS = 100  # of as many draws, after which genotypes within the budget are too rare to be drawn
COMPARED = 20  # random genotypes, of which `compare_branch_shares` takes the mean
MAX_RATE = 1e4  # fall of the log-probability per budget

NO_PREFERENCES: Mapping[str, np.ndarray] = types.MappingProxyType({})

Indices = Mapping[str, np.ndarray]
"""Index of the choice of every decision, by kind; see `SearchSpace.decisions`."""


class Sampler:
    """Draws genotypes: uniform ones or, within a budget, those that cost about as much as it.

    Within a budget probabilities are proportional to exp(-rate * cost), times the uniform ones of
    `random_genotype`. The rate is such that the mean cost is the budget; genotypes of equal cost
    keep their relative probabilities. A budget above all genotypes changes nothing.
    """

    def __init__(
        self,
        space: SearchSpace,
        budget: Budget | None = None,
        preferences: Mapping[str, np.ndarray] = NO_PREFERENCES,
    ):
        """Args:
        space: the search space.
        budget: at least the cost of the cheapest genotype; None for any cost.
        preferences: see `random_preferences`; by default choices are uniform."""
        self.space, self.budget = space, budget
        self._logits = _logits(space, budget, preferences)

    def indices(self, draw: np.random.Generator) -> Indices:
        """Drawn choices, whatever they cost.

        Gumbel noise added to the logits draws with their probabilities.
        """
        indices = {}
        for kind, choices in self.space.choices.items():
            rows = self._logits[kind].reshape(-1, len(choices))
            indices[kind] = np.argmax(rows + draw.gumbel(size=rows.shape), axis=1)
        return indices

    def within(self, draw: np.random.Generator) -> tuple[Indices, Genotype]:
        """The first drawn choices that are within the budget, and their genotype."""
        for _ in range(ROUNDS * DRAWS):
            indices = self.indices(draw)
            if self.allows(genotype := self.genotype(indices)):
                return indices, genotype
        genotype = self.likeliest()
        choices = self.space.choices
        indices = {k: np.array([choices[k].index(c) for c in v]) for k, v in genotype.picks.items()}
        return indices, genotype

    def likeliest(self) -> Genotype:
        """The likeliest genotype within the budget."""
        return likeliest_within(self.space, self._logits, self.budget)

    def genotype(self, indices: Indices) -> Genotype:
        """The genotype of these choices."""
        choices = self.space.choices
        return assemble(self.space, {k: [choices[k][i] for i in v] for k, v in indices.items()})

    def allows(self, genotype: Genotype) -> bool:
        """Whether a genotype is within the budget."""
        return self.budget is None or self.budget.cost(genotype) <= self.budget.limit


def random_within(sampler: Sampler, seed: int) -> Genotype:
    """A random genotype that costs about as much as the budget and no more.

    It is the most expensive one within the budget of many that are drawn, or the likeliest one
    where hardly any is within it.

    Args:
      sampler: with a budget.
      seed: of the draws.
    """
    draw = np.random.default_rng(seed)
    for _ in range(ROUNDS):
        drawn = [sampler.genotype(sampler.indices(draw)) for _ in range(DRAWS)]
        if within := list(filter(sampler.allows, drawn)):
            return max(within, key=sampler.budget.cost)
    return sampler.likeliest()


def random_candidate(sampler: Sampler, seed: int, preference: float = 0.0) -> Genotype:
    """A random genotype, within the budget if there is one, with preferences of its own.

    Choices that are drawn independently even out over a network: half of the columns are of one
    kind, half of another, so random networks resemble each other. Networks whose choices are
    correlated differ more, and leave a search more to choose from.

    Args:
      sampler: without preferences.
      seed: of all draws.
      preference: the strength of `random_preferences`; 0 for none.
    """
    space = sampler.space
    if preference:
        preferences = random_preferences(space, np.random.default_rng([seed, 1]), preference)
        sampler = Sampler(space, sampler.budget, preferences)
    if sampler.budget:
        return random_within(sampler, seed)
    if preference:
        return sampler.genotype(sampler.indices(np.random.default_rng(seed)))
    return random_genotype(space, seed)


def random_preferences(
    space: SearchSpace, draw: np.random.Generator, strength: float
) -> dict[str, np.ndarray]:
    """Logits that all decisions of a kind have in common, those of widths on a branch.

    Args:
      space: the search space.
      draw: the source of randomness.
      strength: standard deviation of the logits; beyond 3 or so one choice is nearly always taken.

    Returns:
      For each kind its logits, (1, choices), or (blocks, choices) for the widths.
    """
    logits = {
        kind: strength
        * draw.normal(size=(len(space.channels) if kind == "widths" else 1, len(choices)))
        for kind, choices in space.choices.items()
    }
    # Whether a column is parallel does not depend on the preferences for widths.
    logits = {
        kind: row - np.logaddexp.reduce(row, axis=1, keepdims=True) + math.log(row.shape[1])
        for kind, row in logits.items()
    }
    if "widths" in logits:
        logits["widths"] = logits["widths"][[branch for _, branch in space.residual_blocks]]
    return logits


def compare_branch_shares(genotype: Genotype, sampler: Sampler) -> dict[str, list[float]]:
    """Share of each branch, finest first, in the multiply-accumulates of the searched choices.

    Returns:
      'found', of the genotype, and 'random', the mean of some that `random_within` draws within the
      budget; nothing without a budget.
    """
    if sampler.budget is None:
        return {}
    rows = [cost.branch_shares(random_within(sampler, seed)) for seed in range(COMPARED)]
    means = [statistics.mean(branch) for branch in zip(*rows, strict=True)]
    return {"found": cost.branch_shares(genotype), "random": means}


def _logits(
    space: SearchSpace, budget: Budget | None, preferences: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Logits of the choices with which the mean cost is the budget."""
    if budget is None:
        return _tilted(space, cost.tables(space, 1, 1, "parameters"), 0.0, preferences)
    tables = {k: np.array(rows, float) / budget.limit for k, rows in budget.tables(space).items()}
    if budget.extremes(space)[1] < budget.limit:
        return _tilted(space, tables, 0.0, preferences)
    expected = jax.jit(functools.partial(expected_cost, space, budget))
    flat, steep = -MAX_RATE, MAX_RATE
    for _ in range(50):
        rate = (flat + steep) / 2
        if float(expected(_tilted(space, tables, rate, preferences))) > budget.limit:
            flat = rate
        else:
            steep = rate
    return _tilted(space, tables, steep, preferences)


def _tilted(
    space: SearchSpace,
    tables: Mapping[str, Any],
    rate: float,
    preferences: Mapping[str, np.ndarray] = NO_PREFERENCES,
) -> dict[str, np.ndarray]:
    """Logits with which a genotype is as likely as exp(-rate * cost), and `none` never drawn.

    Preferences are added to those of the choices.
    """
    tables = {kind: np.array(rows, float) for kind, rows in tables.items()}
    logits = {kind: preferences.get(kind, 0.0) - rate * tables[kind] for kind in space.choices}
    allowed = derivable(space.candidates)
    logits["attention"] = np.where(
        np.isin(np.arange(len(space.candidates)), allowed), logits["attention"], -np.inf
    ).reshape(*space.decisions["attention"], -1)
    if space.residual_blocks:
        parallel = space.column_choices.index("parallel")
        blocks = preferences.get("widths", 0.0) - rate * tables["widths"]
        for (column, _), row in zip(space.residual_blocks, blocks, strict=True):
            logits["columns"][column, parallel] += np.logaddexp.reduce(row) - math.log(len(row))
    return logits
