"""A whole run within a budget, from a folder of pairs to de-rained pictures; what it logs."""

import json
import types

import numpy as np

from manas_jax import Derainer, cost, main
from manas_jax.config import search_budget
from manas_jax.report import reader
from manas_jax.search import bilevel_search
from manas_jax.space import ALL_COLUMNS, Genotype, SearchSpace


def test_images_are_those_of_all_batches_of_a_step(monkeypatch, make_config):
    """One batch in the warm-up of the architecture, two after it."""
    stage = {}
    source = types.SimpleNamespace(iterate=lambda start, stop: iter(range(start, stop)))
    supernet = types.SimpleNamespace(
        network=types.SimpleNamespace(space=None),
        step=types.SimpleNamespace(compile=None),
        source=lambda role, rollbacks: source,
        run=lambda workdir, **fields: stage.update(fields),
    )
    monkeypatch.setattr(bilevel_search, "Supernet", lambda *_: supernet)
    bilevel_search.search(make_config(search__steps=8, search__architecture_warmup=0.25), "")
    for start in (0, 5):
        for step, batches in enumerate(stage["batches"](start, 0), start + 1):
            used = sum(batch is not None for batch in batches)
            assert stage["batches_of"](step) == used == (1 if step <= 2 else 2)


def test_run_ends_with_a_trained_network_within_the_budget(tmp_path, loop_config):
    config = loop_config(
        space__columns=(2,),
        space__column_choices=ALL_COLUMNS,
        space__widths=(0.25, 1.0),
        search__hypergradient="first_order",
        search__budget_of="parameters",
    )
    space = SearchSpace(**config.space)
    cheapest, most_expensive = cost.Budget(0, "parameters", 64, 64).extremes(space)
    config.search.budget = float((cheapest + most_expensive) // 2)
    report = main.run(config, tmp_path)

    budget, genotype = search_budget(config), Genotype.load(tmp_path / "genotype.json")
    facts = json.loads((tmp_path / "search" / "summary.json").read_text())
    summary, spending = facts["budget"], facts["spending"]
    assert cheapest <= budget.cost(genotype) <= budget.limit < most_expensive
    assert summary["limit"] == budget.limit and summary["derived"] == budget.cost(genotype)
    assert summary["changed_choices"] > 0 or summary["likeliest"] <= budget.limit
    assert spending["found"] == cost.branch_shares(genotype)
    for shares in spending.values():
        assert len(shares) == len(genotype.space.channels) and 0 <= sum(shares) <= 1 + 1e-9
    curves = reader.read(tmp_path).stages["search"].events
    for name in ("multiplier", "excess"):
        steps, values = curves[f"loss/budget_{name}"]
        assert len(steps) and np.all(np.isfinite(values))
    page = report.read_text()
    assert "Widths of residual blocks" in page and "Shares of the scales" in page

    derain = Derainer.from_pretrained(tmp_path / "weights.safetensors")
    parameters = json.loads((tmp_path / "train" / "summary.json").read_text())["parameters"]
    assert parameters == budget.cost(genotype)
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert derain(picture).shape == picture.shape
