"""Random genotypes within a budget, and the choice of one of them by training."""

import collections
import dataclasses
import json
import math

import numpy as np
import pytest

from manas_jax import cost
from manas_jax.config import validate
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.latency_table import LatencyTable
from manas_jax.search import methods, sampling
from manas_jax.space import ALL_COLUMNS, Genotype, SearchSpace, random_genotype
from manas_jax.training import checks

SPACE = SearchSpace(
    (8, 16), (1, 2), (2, 3), 1, column_choices=ALL_COLUMNS, widths=(0.25, 0.5, 0.75, 1.0)
)


@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_random_genotypes_cost_about_the_budget(unit):
    cheapest, dearest = cost.extremes(SPACE, 64, 64, unit)
    for share in (0.0, 0.2, 0.7, 1.0):
        budget = cost.Budget(int(cheapest + share * (dearest - cheapest)), unit, 64, 64)
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
    budget = cost.Budget(round(np.mean(cost.extremes(SPACE, 64, 64, "macs"))), "macs", 64, 64)
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
    free = sampling.Sampler(SPACE)
    assert sampling.random_candidate(free, 0) == random_genotype(SPACE, 0)
    assert sampling.random_candidate(free, 0, 3.0) != random_genotype(SPACE, 0)


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
    cheapest, _ = cost.extremes(space, 64, 64, "parameters")
    sampler = sampling.Sampler(space, cost.Budget(cheapest, "parameters", 64, 64))
    assert sampler.limit.cost(sampling.random_within(sampler, 0)) == cheapest
    picks, genotype = sampler.within(np.random.default_rng(0))
    assert sampler.limit.cost(genotype) == cheapest and sampler.genotype(picks) == genotype
    assert sampler.limit.cost(sampling.random_candidate(sampler, 0, 10.0)) == cheapest


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


def test_halving_trains_the_better_half_for_longer():
    quality = [0.3, 0.9, 0.1, 0.8, 0.5]
    had = collections.Counter()

    def score(candidate, steps):
        assert steps > had[candidate]
        had[candidate] = steps
        return quality[candidate]

    best, history = sampling.successive_halving(5, score, 300, rounds=3)
    assert best == 1
    assert [sorted(scores) for scores in history] == [[0, 1, 2, 3, 4], [1, 3, 4], [1, 3]]
    assert had == {2: 20, 0: 20, 4: 53, 1: 103, 3: 103}
    assert sum(had.values()) <= 300
    had.clear()
    best, (scores,) = sampling.successive_halving(5, score, 300, rounds=1)  # random search
    assert best == 1 and list(scores.values()) == quality and set(had.values()) == {60}


@pytest.mark.parametrize(
    "share, steps, expected",
    [(0.25, 10, 1.0), (0.25, 40, 0.5), (0.25, 160, 0.125), (1.0, 160, 1.0)],
)
def test_statistics_are_frozen_at_one_step(
    share, steps, expected, tmp_path, monkeypatch, make_config
):
    config = make_config(train__batch_norm=share, train__steps=80)
    given = []

    def train(config, folder):
        given.append(config.train.batch_norm)
        (folder / "train").mkdir()
        summary = {"seconds": 1.0, "compile_seconds": 1.0, "validation": {"psnr": 1.0}}
        write_json(folder / "train" / "summary.json", summary)

    monkeypatch.setattr(sampling.train_run, "train", train)
    sampling._trained(config, random_genotype(SearchSpace(**config.space), 0), tmp_path, steps)
    assert given == [expected]


def test_a_single_candidate_is_not_trained(tmp_path, monkeypatch, make_config):
    config = make_config(search__method="random", search__candidates=1, train__inherit=False)
    monkeypatch.setattr(sampling.train_run, "train", None)
    genotype = methods.search(config, tmp_path)
    assert genotype == Genotype.load(tmp_path / "genotype.json")
    summary = json.loads((tmp_path / "search" / "summary.json").read_text())
    assert (summary["steps"], summary["rounds"], summary["validation"]) == (0, [], {})


def test_the_uniform_genotype_alternates_and_has_one_width(tmp_path, monkeypatch, make_config):
    space = SearchSpace((8, 16), (2,), (3,), 1, column_choices=ALL_COLUMNS, widths=(0.5, 1.0))

    def genotype(columns, width):
        widths = [(width,) * 2 if column == "parallel" else () for column in columns]
        return Genotype(space, [columns], [[["SE"] * space.edges] * 2], [widths])

    made = [
        genotype(columns, width)
        for width in space.widths
        for columns in (
            ["parallel", "identity", "identity"],
            ["parallel", "fusion", "identity"],
            ["parallel", "fusion", "parallel"],
        )
    ]
    for dearest in made:
        limit = cost.Budget(cost.derived(dearest, 64, 64).macs, "macs", 64, 64)
        found = sampling.uniform_within(space, limit)
        assert found in made and limit.cost(found) == limit.limit
    with pytest.raises(UserError, match="no uniform genotype costs at most 7 macs: give a larger"):
        sampling.uniform_within(space, cost.Budget(7, "macs", 64, 64))

    config = make_config(
        space=space.to_dict(),
        search__method="uniform",
        search__budget=100.0,
        search__steps=1,
        train__inherit=False,
    )
    monkeypatch.setattr(sampling.train_run, "train", None)
    assert methods.search(config, tmp_path) == Genotype.load(tmp_path / "genotype.json") == made[-1]
    config.search.budget = 0.0
    with pytest.raises(UserError, match=r"search\.method = uniform spends a budget: set"):
        validate(config)


def test_without_a_supernet_the_batches_of_the_search_do_not_count(loop_config, tmp_path):
    config = loop_config(search__method="random", search__crop=4096, train__inherit=False)
    checks.check_stages(config, tmp_path, ["search"])
    config.search.method = "bilevel"
    with pytest.raises(UserError, match="too small for patches"):
        checks.check_stages(config, tmp_path, ["search"])


def test_in_a_space_without_identity_it_has_all_columns():
    space = SearchSpace((8, 16), (1, 2), (2, 1), 1)
    found = sampling.uniform_within(space, cost.Budget(10**9, "macs", 64, 64))
    assert found.columns == (("parallel", "fusion"), ("parallel",))


def test_search_by_training_leaves_the_files_of_a_search(tmp_path, monkeypatch, loop_config):
    """Of a space with one genotype, so that all trainings share compiled steps."""
    config = loop_config(
        space__column_choices=("parallel",),
        space__candidates=("SE",),
        search__method="halving",
        search__candidates=3,
        search__steps=12,
        train__inherit=False,
    )
    genotype = methods.search(config, tmp_path)
    assert genotype == Genotype.load(tmp_path / "genotype.json")
    summary = json.loads((tmp_path / "search" / "summary.json").read_text())
    first, second = summary["rounds"]
    assert len(first) == 3 and len(second) == 2
    assert summary["seconds"] > 0 and summary["compile_seconds"] > 0
    assert summary["validation"]["psnr"] == max(second.values())
    trained = sorted((tmp_path / "search" / "candidates").glob("*/scores-*.json"))
    assert [file.name for file in trained].count("scores-2.json") == 3
    assert [file.name for file in trained].count("scores-5.json") == 2

    # As if interrupted between the last step of a candidate's second training and its summary.
    (tmp_path / "search" / "summary.json").unlink()
    twice = next((tmp_path / "search" / "candidates").glob("*/scores-5.json"))
    (twice.parent / "train" / "summary.json").write_text(
        json.dumps({"steps": 2, "seconds": 1.0, "validation": {"psnr": 99.0, "ssim": 1.0}})
    )
    before = json.loads(twice.read_text())
    twice.unlink()
    assert methods.search(config, tmp_path) == genotype
    after = json.loads(twice.read_text())
    assert (after["psnr"], after["ssim"]) == (before["psnr"], before["ssim"])
    summary = json.loads((tmp_path / "search" / "summary.json").read_text())

    (tmp_path / "search" / "summary.json").unlink()  # as if interrupted at the very end
    monkeypatch.setattr(sampling.train_run, "train", None)
    assert methods.search(config, tmp_path) == genotype
    assert json.loads((tmp_path / "search" / "summary.json").read_text()) == summary
