"""Evolution over a supernet: finds the best, keeps to the budget, resumes."""

import itertools
import json
import signal

import jax
import numpy as np
import pytest
from integration.test_resume import _final_state, _listening, _same_bits, _stopping_at

from manas_jax import cost
from manas_jax.models.network import init_architecture
from manas_jax.runtime import signals
from manas_jax.search import evolution, methods, selection, supernet
from manas_jax.search.sampling import Sampler
from manas_jax.space import (
    ALL_COLUMNS,
    Genotype,
    SearchSpace,
    assemble,
    derivable,
    derive,
    random_genotype,
)
from manas_jax.training import stage as stage_module

SMALL = SearchSpace(
    (2, 4), (1, 2), (1, 2), 1, 1, ("none", "skip_connect", "SE"),
    column_choices=ALL_COLUMNS, widths=(0.5, 1.0),
)  # fmt: skip
EVOLUTION = {"population": 20, "generations": 12}
LARGE = SearchSpace(
    (8, 16), (1, 2), (2, 3), 1, column_choices=ALL_COLUMNS, widths=(0.25, 0.5, 0.75, 1.0)
)


def _decisions(space):
    """(kind, choices) of every decision."""
    return [
        (kind, [space.choices[kind][i] for i in derivable(space.choices[kind])])
        for kind, shape in space.decisions.items()
        for _ in range(np.prod(shape))
    ]


def _score(space, seed):
    """A random score: of every decision, and of pairs of neighbouring ones."""
    draw = np.random.default_rng(seed)
    values = [
        dict(zip(choices, draw.normal(size=len(choices)), strict=True))
        for _, choices in _decisions(space)
    ]
    pairs = draw.normal(scale=0.3, size=len(values) - 1)

    def score(genotype):
        picks = itertools.chain(*genotype.picks.values())
        single = np.array([value[pick] for value, pick in zip(values, picks, strict=True)])
        return float(single.sum() + pairs @ (single[1:] * single[:-1]))

    return score


def _everything(space):
    """All genotypes."""
    kinds, choices = zip(*_decisions(space), strict=True)
    genotypes = set()
    for combination in itertools.product(*choices):
        picks = {kind: [] for kind in kinds}
        for kind, pick in zip(kinds, combination, strict=True):
            picks[kind].append(pick)
        genotypes.add(assemble(space, picks))
    return sorted(genotypes, key=Genotype.to_json)


@pytest.fixture(scope="module")
def everything():
    return _everything(SMALL)


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_evolution_finds_what_brute_force_finds(everything, share):
    cheapest, most_expensive = cost.Budget(0, "macs", 32, 32).extremes(SMALL)
    budget = cost.Budget(int(cheapest + share * (most_expensive - cheapest)), "macs", 32, 32)
    sampler = Sampler(SMALL, budget)
    allowed = [genotype for genotype in everything if sampler.allows(genotype)]
    assert len(allowed) > 2 * EVOLUTION["population"] * EVOLUTION["generations"] or share < 1
    for seed in range(3):
        score, seen = _score(SMALL, seed), []

        def recorded(genotype, score=score, seen=seen):
            seen.append(genotype)
            return score(genotype)

        found, history = evolution.evolve(sampler, recorded, seed=seed, **EVOLUTION)
        assert found == max(allowed, key=score)
        assert history == sorted(history) and history[-1] == score(found)
        assert len(seen) == len(set(seen)) <= EVOLUTION["population"] * EVOLUTION["generations"]


@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_all_genotypes_are_within_the_budget(unit):
    """In 100 cases a unit, from the cheapest genotype alone to any."""
    cheapest, most_expensive = cost.Budget(0, unit, 64, 64).extremes(LARGE)
    for seed in range(100):
        share = np.random.default_rng(seed).uniform() ** 2 if seed else 0.0
        budget = cost.Budget(int(cheapest + share * (most_expensive - cheapest)), unit, 64, 64)
        seen = []

        def score(genotype, seen=seen):
            seen.append(genotype)
            return float(np.random.default_rng(len(seen)).normal())

        evolution.evolve(Sampler(LARGE, budget), score, population=5, generations=3, seed=seed)
        assert len(seen) == len(set(seen)) <= 15
        assert all(budget.cost(genotype) <= budget.limit for genotype in seen)
        assert len(seen) == 15 or share < 0.01


def test_a_space_smaller_than_the_population():
    space = SearchSpace((2,), (1,), (1,), 1, 1, ("SE",), column_choices=("parallel", "fusion"))
    seen = []
    found, history = evolution.evolve(
        Sampler(space), lambda g: seen.append(g) or len(seen), population=10, generations=3, seed=0
    )
    assert len(seen) == 2 and found == seen[1] and history == [2, 2, 2]


def test_paths_without_a_budget_are_uniform():
    """Every choice but `none` about equally often."""
    draw, sampler = np.random.default_rng(0), Sampler(SMALL)
    drawn = [sampler.within(draw)[0] for _ in range(1000)]
    for kind, choices in SMALL.choices.items():
        counts = np.bincount(np.concatenate([picks[kind] for picks in drawn]))
        allowed = derivable(choices)
        assert set(np.flatnonzero(counts)) == set(allowed)
        np.testing.assert_allclose(counts[allowed] / counts.sum(), 1 / len(allowed), rtol=0.1)


@pytest.fixture(scope="module")
def evolving(loop_config):
    config = loop_config(
        space__column_choices=ALL_COLUMNS,
        space__widths=(0.25, 1.0),
        search__method="evolution",
        search__population=4,
        search__generations=3,
        search__choice_batches=2,
        search__budget_of="parameters",
    )
    space = SearchSpace(**config.space)
    cheapest, most_expensive = cost.Budget(0, "parameters", 64, 64).extremes(space)
    config.search.budget = float((cheapest + most_expensive) // 2)
    return config


def test_search_resumes_with_the_same_bits(tmp_path, monkeypatch, evolving):
    """Stopped by SIGTERM in the training of the supernet and again in the evolution.

    Checkpoints are scored by one path within the budget, at the end the network that was found.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    scored = []

    class Noting(supernet.Validation):
        def __call__(self, variables, architecture):
            scored.append(derive(SearchSpace(**evolving.space), **jax.device_get(architecture)))
            return super().__call__(variables, architecture)

    with monkeypatch.context() as patch:
        patch.setattr(supernet, "Validation", Noting)
        genotype = methods.search(evolving, whole)
    assert len(scored) == 4 and scored == [scored[0]] * 3 + [genotype]
    assert cost.derived(scored[0], 64, 64).parameters <= evolving.search.budget
    summary = json.loads((whole / "search" / "summary.json").read_text())
    assert cost.derived(genotype, 64, 64).parameters <= evolving.search.budget
    assert len(summary["generations"]) == 3 and summary["flops_per_step"] > 0
    assert summary["generations"] == sorted(summary["generations"])
    scores = json.loads((whole / "search" / "scores.json").read_text())
    assert scores[json.dumps(genotype.picks)] == max(scores.values()) == summary["generations"][-1]

    def terminate():
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, _listening(), pytest.raises(signals.Stopped):
        patch.setattr(stage_module, "MetricLogger", _stopping_at(3, terminate))
        methods.search(evolving, parts)

    class Terminated(evolution.SupernetEvaluator):
        scored = 0

        def __call__(self, architecture):
            self.scored += 1
            if self.scored == 6:
                terminate()
            return super().__call__(architecture)

    with monkeypatch.context() as patch, _listening(), pytest.raises(signals.Stopped):
        patch.setattr(evolution, "SupernetEvaluator", Terminated)
        methods.search(evolving, parts)
    assert len(json.loads((parts / "search" / "scores.json").read_text())) == 6
    assert not (parts / "genotype.json").exists()

    assert methods.search(evolving, parts) == genotype == Genotype.load(parts / "genotype.json")
    assert _same_bits(_final_state(parts, "search"), _final_state(whole, "search"))
    assert json.loads((parts / "search" / "scores.json").read_text()) == scores
    again = json.loads((parts / "search" / "summary.json").read_text())
    for key in ("generations", "validation", "parameters", "flops_per_step"):
        assert again[key] == summary[key]
    assert again["started_from_step"] == evolving.search.steps


def test_choices_by_the_supernet_stop_after_a_signal():
    """They take minutes, and have nothing to save."""
    genotypes = [random_genotype(SMALL, seed) for seed in range(3)]
    scored = []

    def score(architecture):
        scored.append(architecture)
        signal.raise_signal(signal.SIGTERM)
        return 0.0

    with _listening(), pytest.raises(signals.Stopped):
        selection.best(genotypes, score)
    logits = init_architecture(SMALL, 0)
    with _listening(), pytest.raises(signals.Stopped):
        selection.perturbation(SMALL, logits, score, 0)
    assert len(scored) == 2
