import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import narrow_config
from ml_collections import ConfigDict

from manas_jax import cost
from manas_jax.errors import UserError
from manas_jax.search import collapse, selection
from manas_jax.search.sampling import Sampler
from manas_jax.space import (
    ALL_COLUMNS,
    CANDIDATES,
    Genotype,
    SearchSpace,
    assemble,
    random_genotype,
)
from manas_jax.study import front, genotypes, grid, page
from manas_jax.study import run as study_run
from manas_jax.study import summary as study_summary
from manas_jax.training.restore import load_search
from manas_jax.workdir import lock

SOURCES = {
    "first_order": {"choice": "derived", "search": "plain", "cells": 2, "rank": True},
    "matched": {"choice": "matched", "search": "plain", "cells": 4},
    "random": {"choice": "random", "cells": 4},
    "hand_made": {"choice": "hand_made", "cells": 1, "tier": 1},
    "one_to_one": {
        "choice": "derived",
        "search": "plain",
        "cells": 2,
        "tier": 1,
        "changes": {"data": {"versions": 1}},
    },
}


def study_config(sources=SOURCES, **changes):
    config = narrow_config(**changes)
    # More to choose than the narrowest space has, so that matched genotypes can be found.
    config.space.update(columns=(2,), candidates=("none", "SE", "SE_A_M", "skip_connect"))
    with config.unlocked():
        config.study = ConfigDict(
            {
                "seeds": 2,
                "judged_batches": 1,
                "candidates": 3,
                "tolerance": 1.0,
                "searches": {"plain": {}},
                "sources": sources,
            }
        )
    return config


def fake_cell(name="random", index=0, seed=0, psnr=30.0, macs=1000, **more):
    space = SearchSpace(channels=(8,), branches=(1,), columns=(2,))
    return {
        "source": {"name": name, "choice": "random", "search": "", "changes": {}, "rank": False},
        "index": index,
        "seed": seed,
        "trained": {"psnr": psnr, "ssim": 0.9},
        "macs": macs,
        "parameters": 10,
        "seconds_of_training": 1.0,
        "genotype": json.loads(random_genotype(space, index).to_json()),
        **more,
    }


# The grid


def test_grid_is_ordered_by_tier_then_seed():
    names = [cell.name for cell in grid.cells(study_config())]
    assert names[:4] == ["first_order-00", "matched-00", "random-00", "first_order-01"]
    assert names[-3:] == ["hand_made-00", "one_to_one-00", "one_to_one-01"]
    assert len(names) == len(set(names)) == 13
    assert [cell.seed for cell in grid.cells(study_config()) if cell.source.name == "random"] == [
        0,
        1,
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"choice": "best"}, "study.sources.x.choice = 'best'"),
        ({"choice": "derived", "search": "none"}, "study.sources.x.search = 'none'"),
        ({"choice": "random", "seed": 3}, "study.sources.x: unknown seed"),
    ],
)
def test_grid_names_what_is_wrong(fields, words):
    with pytest.raises(UserError, match=words):
        grid.cells(study_config({"x": fields}))


VALUES = (
    None, -1, 1.5, 10**30, float("nan"), float("inf"), "7", "", (), (1, 2), True, [1], {}, {"a": 1},
)  # fmt: skip
OF_A_STUDY = {
    "seeds": (4,), "judged_batches": (4,), "candidates": (4,), "tolerance": (1.5, 10**30),
    "searches": (), "sources": ({},),
}  # fmt: skip
OF_A_SOURCE = {
    "choice": (), "search": (), "cells": (4,), "tier": (-1,), "rank": (True,), "changes": ({},),
}  # fmt: skip


def _refusal(study):
    """The line that refuses a study, or None."""
    config = study_config()
    with config.unlocked():
        config.study = ConfigDict(study)
    try:
        grid.check(config, grid.cells(config))
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def _with_field(path, value):
    """A plain study with another value of a field."""
    study = study_config().study.to_dict()
    *parents, last = path
    inner = study
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return study


@pytest.mark.parametrize(
    ("path", "accepted"),
    [
        *(((key,), accepted) for key, accepted in OF_A_STUDY.items()),
        *((("sources", "first_order", key), accepted) for key, accepted in OF_A_SOURCE.items()),
        (("sources", "random"), ()),
        (("searches", "plain"), ({},)),
    ],
)
def test_every_key_of_a_study_with_values_of_the_wrong_kind(path, accepted, monkeypatch):
    monkeypatch.setattr(grid.checks, "check_training", lambda *_: None)
    for value in VALUES:
        line = _refusal(_with_field(path, value))
        if value in accepted and type(value) in map(type, accepted):
            assert line is None, value
        elif path != ("searches",) or value != {}:  # else a source misses its search
            assert ".".join(("study", *path)) in line, value


@pytest.mark.parametrize(
    "changes", [{"nope": 1}, {"search": 5}, {"train": 5}, {"search": {"steps": -1}}]
)
def test_mistakes_of_later_cells_come_out_before_the_first(tmp_path, fake_cells, changes):
    for path in (("searches", "plain"), ("sources", "one_to_one", "changes")):
        config = study_config()
        with config.unlocked():
            config.study = ConfigDict(_with_field(path, changes))
        with pytest.raises(UserError, match=".".join(("study", *path))):
            study_run.run(config, tmp_path / "run")
    assert fake_cells == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("sources", "hand_made", "changes"), {"train": {"crop": 4096}}, "too small for patches"),
        (("searches", "plain"), {"search": {"accumulate": 7}}, "in 7 microbatches"),
        (("searches", "plain"), {"search": {"method": "random"}}, "no relaxed architecture"),
        (("sources", "matched", "choice"), "uniform", "its search plain has no budget: set"),
        (("sources", "a/b"), {"choice": "random"}, "under a name of letters"),
        (("sources", "hand_made", "changes"), {"train": {"weights": "x"}}, "changes.train.weights"),
        (("searches", "plain"), {"seed": 3}, "searches.plain.seed: all cells of a study"),
        (("searches", "plain"), {"network": {"precision": "high"}}, "plain.network.precision: all"),
        (
            ("sources", "one_to_one", "changes"),
            {"network": {"precision": "high"}},
            "one_to_one.changes.network.precision: all cells of a study have it in common",
        ),
    ],
)
def test_cells_that_could_not_run(path, value, words):
    assert words in _refusal(_with_field(path, value))


def test_only_supernets_rank():
    study = study_config().study.to_dict()
    study["sources"]["random"]["rank"] = True
    study["sources"]["random"]["search"] = "plain"
    assert "random.rank: random has no supernet to rank with" in _refusal(study)


def test_ranking_needs_genotypes():
    study = study_config().study.to_dict()
    del study["sources"]["random"]
    assert "first_order.rank: needs a source with the name random" in _refusal(study)


def test_the_config_of_the_study_has_enough_cells(experiments):
    cells = grid.cells(experiments["study_rain100l"]())
    counts = {c.source.name: 0 for c in cells}
    for cell in cells:
        counts[cell.source.name] += 1
    assert min(counts.values()) >= 4 and counts["random"] >= 16
    assert all(len({c.seed for c in cells if c.source.name == name}) >= 4 for name in counts)


def test_machines_partition_the_cells():
    cells = grid.cells(study_config())
    parts = [grid.shard(cells, i, 3) for i in range(3)]
    assert sorted(c.name for part in parts for c in part) == sorted(c.name for c in cells)
    assert all(parts)
    for part in parts:  # each search is run by one machine only
        names = {c.name for c in part}
        assert ("first_order-00" in names) == ("matched-02" in names) == ("one_to_one-00" in names)
    with pytest.raises(UserError, match="0 <= index < count"):
        grid.shard(cells, 3, 3)


def test_some_cells_by_name():
    cells = grid.cells(study_config())
    chosen = [cell.name for cell in grid.named(cells, ["random", "first_order-00"])]
    assert chosen.count("first_order-00") == 1 and len(chosen) > 2
    assert {name.rpartition("-")[0] for name in chosen} == {"random", "first_order"}
    assert grid.named(cells, []) == cells
    with pytest.raises(UserError, match=r"--only=chance: no cell .* sources are .*first_order,"):
        grid.named(cells, ["random", "chance"])


# Running cells, with a fake `run_cell`


@pytest.fixture
def fake_cells(monkeypatch):
    """Replaces `run_cell` by a fast fake; the names of the cells that it was called with."""
    called = []

    def run_cell(config, cell, workdir):
        called.append(cell.name)
        result = fake_cell(cell.source.name, cell.index, cell.seed, psnr=30 + cell.index)
        result["genotype"]["space"] = json.loads(json.dumps(config.space.to_dict()))
        return result | {"source": study_run.dataclasses.asdict(cell.source)}

    monkeypatch.setattr(study_run, "run_cell", run_cell)
    return called


def test_machines_share_the_cells_that_were_named(tmp_path, fake_cells):
    for index in range(2):
        study_run.run(study_config(), tmp_path, index, 2, only=["random-01"])
    assert fake_cells == ["random-01"]


def test_a_cell_that_was_made_otherwise_is_refused(tmp_path, fake_cells):
    config = study_config()
    study_run.run(config, tmp_path, only=["first_order-00"])
    file = tmp_path / "cells" / "first_order-00.json"
    cell = json.loads(file.read_text())
    others = {
        "search": {"search": {"steps": 7}},
        "seed": 5,
        "train": {"steps": 9},
        "objectives": {"internal": 9.0},
        "data": {"versions": 9},
        "study": {"tolerance": 9.0},
    }
    for field, other in others.items():
        file.write_text(json.dumps(cell | {field: other}))
        with pytest.raises(UserError, match=rf"first_order-00\.json is from another {field}"):
            study_run.run(config, tmp_path, only=["first_order-00"])
    genotype = cell["genotype"] | {"space": cell["genotype"]["space"] | {"channels": [4, 16]}}
    file.write_text(json.dumps(cell | {"genotype": genotype}))
    with pytest.raises(UserError, match=r"first_order-00\.json is from another space"):
        study_run.run(config, tmp_path, only=["first_order-00"])
    file.write_text(json.dumps(cell | {"search": {}}))  # as it is now
    study_run.run(config, tmp_path, only=["first_order-00"])
    assert fake_cells == ["first_order-00"]


def test_files_that_others_are_writing_are_not_read(tmp_path, fake_cells):
    study_run.run(study_config(), tmp_path, only=["random-00"])
    (tmp_path / "cells" / ".0123.tmp.json").write_text("{")
    assert list(study_run.read_cells(tmp_path / "cells")) == ["random-00"]


def test_nothing_to_summarise(tmp_path):
    with pytest.raises(UserError, match="no cells to summarise"):
        study_run.run(study_config(), tmp_path / "typo", summarize_only=True)
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__genotype": "file.json"}, "train.genotype: a study finds the genotypes itself"),
        ({"train__inherit": True, "stage": "all"}, "train.inherit: a study finds the genotypes"),
    ],
)
def test_trainings_start_from_the_genotypes_of_the_study(changes, message):
    config = study_config(**changes)
    with pytest.raises(UserError, match=message):
        grid.check(config, grid.cells(config))


def test_fixed_genotypes_that_the_space_does_not_have_are_named():
    config = study_config()
    config.space.candidates = ("none", "CBAM", "skip_connect")
    cells = [cell for cell in grid.cells(config) if cell.source.name == "hand_made"]
    with pytest.raises(UserError, match=r"study\.sources\.hand_made\.choice = 'hand_made': .*SE"):
        grid.check(config, cells)


def test_command_starts_without_the_libraries_of_its_pictures():
    """So that it can say which extra is missing."""
    code = (
        "import sys; sys.modules.update(matplotlib=None, jinja2=None); import manas_jax.study.run"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_finished_cells_are_not_run_again(tmp_path, fake_cells):
    config = study_config()
    study_run.run(config, tmp_path)
    assert len(fake_cells) == 13
    study_run.run(config, tmp_path)
    assert len(fake_cells) == 13
    (tmp_path / "cells" / "random-01.json").unlink()
    study_run.run(config, tmp_path)
    assert fake_cells[13:] == ["random-01"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cells"] == summary["planned"] == 13
    assert summary["sources"]["random"]["psnr"]["mean"] == pytest.approx(31.5)


def test_a_study_can_grow_but_not_change(tmp_path, fake_cells):
    study_run.run(study_config({"random": {"choice": "random", "cells": 1}}), tmp_path)
    study_run.run(study_config({"random": {"choice": "random", "cells": 2, "tier": 1}}), tmp_path)
    assert fake_cells == ["random-00", "random-01"]
    changed = {"random": {"choice": "random", "cells": 1, "changes": {"train": {"steps": 9}}}}
    with pytest.raises(UserError, match=r"random-00\.json is from another source"):
        study_run.run(study_config(changed), tmp_path)
    with pytest.raises(UserError, match=r"train\.steps"):
        study_run.run(study_config(train__steps=9), tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"source": {}}'])
def test_a_damaged_cell_is_one_line(tmp_path, fake_cells, content):
    study_run.run(study_config(), tmp_path)
    (tmp_path / "cells" / "random-01.json").write_text(content)
    with pytest.raises(UserError) as error:
        study_run.run(study_config(), tmp_path)
    line = str(error.value)
    assert "random-01.json is damaged" in line and "remove it" in line and "\n" not in line


def test_machines_of_one_study_write_to_one_folder(tmp_path, fake_cells):
    for i in range(3):
        study_run.run(study_config(), tmp_path, i, 3)
    assert len(fake_cells) == len(set(fake_cells)) == 13
    study_run.run(study_config(), tmp_path)
    assert len(fake_cells) == 13


def test_another_process_may_run_other_cells_only(tmp_path, fake_cells):
    """Two starts with one index share all cells, two with different ones none."""
    cells = grid.cells(study_config())
    first = {i: grid.shard(cells, i, 2)[0].name for i in range(2)}
    with lock.hold(tmp_path / "trainings" / first[0]):  # as the first process of index 0 does
        with pytest.raises(UserError, match=rf"trainings/{first[0]} is in use by process \d+"):
            study_run.run(study_config(), tmp_path, 0, 2)
        assert fake_cells == []
        study_run.run(study_config(), tmp_path, 1, 2)
        assert fake_cells[0] == first[1]
    study_run.run(study_config(), tmp_path, 0, 2)
    assert len(fake_cells) == len(set(fake_cells)) == 13
    assert not (tmp_path / "trainings").exists() or not list((tmp_path / "trainings").iterdir())


def test_a_cell_that_another_process_has_finished_meanwhile_is_not_run_again(
    tmp_path, fake_cells, monkeypatch
):
    hold = lock.hold

    def finish_it_first(path):
        monkeypatch.setattr(lock, "hold", hold)
        study_run.run(study_config(), tmp_path)  # the other process
        return hold(path)

    monkeypatch.setattr(lock, "hold", finish_it_first)
    study_run.run(study_config(), tmp_path)
    assert len(fake_cells) == 13


def test_a_search_that_another_process_runs_is_refused(tmp_path):
    config = study_config()
    cell = next(c for c in grid.cells(config) if c.source.name == "first_order")
    with (
        lock.hold(tmp_path / "searches" / f"plain-{cell.seed:02d}"),
        pytest.raises(UserError, match=r"searches/plain-00 is in use by process"),
    ):
        study_run.run_cell(config, cell, tmp_path)


def test_a_cell_trains_the_genotype_of_its_source(tmp_path, monkeypatch):
    config = study_config()
    space = SearchSpace(**config.space)
    calls = {}

    def search(changed, folder):
        calls["search"] = changed
        return random_genotype(space, 7)

    def train(changed, folder):
        calls["train"] = changed
        assert calls.setdefault("genotype", Genotype.load(folder / "genotype.json"))
        (folder / "train").mkdir()
        summary = {"validation": {"psnr": 31.0, "ssim": 0.9}, "seconds": 3.0, "compile_seconds": 1}
        (folder / "train" / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(study_run.methods, "search", search)
    monkeypatch.setattr(study_run.train_run, "train", train)
    monkeypatch.setattr(study_run.supernet, "evaluator", lambda *_: None)
    monkeypatch.setattr(study_run, "_in_supernet", lambda *_: {"relaxed": {"psnr": 32.0}})
    cells = {cell.name: cell for cell in grid.cells(config)}

    result = study_run.run_cell(config, cells["one_to_one-01"], tmp_path)
    assert result["trained"]["psnr"] == 31 and result["relaxed"]["psnr"] == 32
    assert result["seconds_of_training"] == 4 and result["seed"] == 1
    assert calls["genotype"] == random_genotype(space, 7)
    assert (calls["train"].data.versions, calls["search"].data.versions) == (1, 2)
    assert calls["train"].seed == calls["search"].seed == 1
    assert "study" not in calls["train"] and config.data.versions == 2

    calls.clear()
    result = study_run.run_cell(config, cells["matched-03"], tmp_path)
    assert calls["genotype"] != random_genotype(space, 7) and "relaxed" not in result
    assert calls["train"].data.versions == 2 and calls["train"].seed == 1


# Genotypes


def test_fixed_genotypes():
    space = SearchSpace(channels=(8, 16), branches=(2,), columns=(3,))
    assert genotypes.fixed(space, "all_parallel").columns == (("parallel",) * 3,)
    assert genotypes.fixed(space, "all_fusion").columns == (("fusion",) * 3,)
    hand, skip = genotypes.fixed(space, "hand_made"), genotypes.fixed(space, "all_skip")
    assert hand.columns == skip.columns == (("parallel", "fusion", "parallel"),)
    assert {e for m in hand.attention[0] for e in m} == {"SE"}
    assert {e for m in skip.attention[0] for e in m} == {"skip_connect"}


def test_sources_of_a_budget(experiments, tmp_path):
    config = experiments["study_budget"]()
    config.data.root = "somewhere"
    cells = {cell.name: cell for cell in grid.cells(config)}
    size = config.objectives.complexity_size
    for name, budget in (("small", 1.2e9), ("large", 2.4e9)):
        first, second, uniform = (
            study_run._genotype(config, cells[f"{cell}_{name}-0{i}"], tmp_path)[0]
            for cell, i in (("within", 0), ("within", 1), ("uniform", 0))
        )
        for genotype in (first, second):
            assert 0.97 * budget <= cost.derived(genotype, *size).macs <= budget
        assert first != second
        assert 0.8 * budget <= cost.derived(uniform, *size).macs <= budget
        assert len({w for cell in uniform.widths for column in cell for w in column}) <= 1
    config.study.searches.bilevel_small.search.budget = 0.0
    with pytest.raises(UserError, match="its search bilevel_small has no budget: set"):
        grid.check(config, [cells["uniform_small-00"]])


def test_searches_of_a_budget_cost_the_same(experiments):
    """In gradients of scenes times multiply-accumulates; a score takes a third of a gradient."""
    config = experiments["study_budget"]()
    size, space = config.objectives.complexity_size, SearchSpace(**config.space)
    supernet = cost.supernet(space, *size).macs
    bilevel = 2 * config.search.steps * config.search.scenes * supernet
    plain = (2 - config.search.architecture_warmup) * config.search.steps  # gradients
    for name, search in config.study.searches.items():
        options, budget = search.search, search.search.budget * 1e9
        if options.method == "bilevel":
            merged = config.search.to_dict() | options.to_dict()
            gradients = (2 - merged["architecture_warmup"]) * merged["steps"]
            assert gradients == pytest.approx(plain, rel=1e-3), name
            continue
        if options.method == "evolution":
            genotypes = options.population * options.generations
            scores = genotypes * options.choice_batches * config.search.scenes * supernet / 3
            sampler = Sampler(space, cost.Budget(int(budget), "macs", *size))
            draw = np.random.default_rng(0)
            paths = [cost.path(sampler.within(draw)[1], *size).macs for _ in range(50)]
            total = options.steps * config.search.scenes * np.mean(paths) + scores
            assert 0.8 * bilevel <= total <= bilevel, name
        else:
            total = options.steps * config.train.scenes * budget
            share = 0.5 if options.get("preference") else 1.0
            assert total == pytest.approx(share * bilevel, rel=1e-3), name


def test_matched_genotypes_cost_the_same_and_differ(experiments, monkeypatch):
    config = experiments["study_rain100l"]()
    wanted = random_genotype(SearchSpace(**config.space), 5)
    drawn = [genotypes.matched(config, wanted, salt) for salt in range(4)]
    size = config.objectives.complexity_size
    for genotype in drawn:
        ratio = cost.derived(genotype, *size).macs / cost.derived(wanted, *size).macs
        assert abs(ratio - 1) <= config.study.tolerance and genotype != wanted
    assert len({g.to_json() for g in drawn}) == 4
    assert genotypes.matched(config, wanted, 0) == drawn[0]
    config.study.tolerance = -1.0
    monkeypatch.setattr(genotypes, "_MAX_DRAWS", 20)
    with pytest.raises(UserError, match=r"study\.tolerance"):
        genotypes.matched(config, wanted, 0)


def test_perturbation_chooses_what_the_supernet_loses_most_without():
    space = SearchSpace(channels=(8,), branches=(1,), columns=(2,))
    logits = {
        "columns": np.array([[2.0, 0.0], [2.0, 0.0]]),  # the likeliest: parallel
        "attention": np.zeros((1, 3, 9)),
    }
    useful = {"columns": 1, "attention": CANDIDATES.index("SE")}  # what really helps

    def score(architecture):
        shares = selection.softmax(architecture)
        return sum(float(shares[k][..., i].sum()) for k, i in useful.items())

    found = selection.perturbation(space, logits, score, seed=0)
    assert found == Genotype(space, [["fusion"] * 2], [[["SE"] * 3]])
    assert logits["columns"][0, 0] == 2  # unchanged


def test_best():
    space = SearchSpace(channels=(8,), branches=(1,), columns=(4,))
    genotypes = [random_genotype(space, i) for i in range(8)]

    def score(architecture):
        return float(selection.softmax(architecture)["columns"][:, 1].sum())

    chosen, scores = selection.best(genotypes, score)
    fusions = [g.columns[0].count("fusion") for g in genotypes]
    assert scores == fusions and chosen == genotypes[int(np.argmax(fusions))]


# Statistics, against numbers computed by hand


def test_interval_over_seeds_of_several_cells():
    cells = [{"seed": i % 3, "trained": {"psnr": x}} for i, x in enumerate((1, 2, 3, 3, 4, 5))]
    result = study_summary.over_seeds(cells)  # means of the seeds: 2, 3, 4
    assert (result["n"], result["mean"]) == (6, 3)
    assert result["sd"] == pytest.approx(2**0.5)
    assert result["low"] == pytest.approx(3 - 4.302653 / 3**0.5, abs=1e-5)


def test_interval_by_hand():
    result = study_summary.interval([1, 2, 3])
    # t of two degrees of freedom at 97.5% is 4.302653, the mean's deviation 1 / sqrt(3).
    assert result["mean"] == 2 and result["sd"] == 1
    assert result["low"] == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert result["high"] == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert study_summary.interval([5.0])["low"] is None


def test_paired_differences_by_hand():
    ours = [fake_cell("a", s, s, psnr=p) for s, p in enumerate((31.0, 32.0, 33.5))]
    theirs = [fake_cell("b", 0, 0, psnr=30.0), fake_cell("b", 3, 0, psnr=31.0)]  # mean 30.5
    theirs += [fake_cell("b", 1, 1, psnr=31.0), fake_cell("b", 7, 7, psnr=99.0)]
    result = study_summary.paired(ours, theirs)
    assert result["differences"] == [0.5, 1.0] and result["n"] == 2
    # t = 0.75 / (sd / sqrt 2) = 3 with one degree of freedom: p = 1 - 2 atan(3) / pi
    assert result["p"] == pytest.approx(1 - 2 * np.arctan(3) / np.pi)
    assert study_summary.paired(ours, [fake_cell("b", 9, 9)]) == {"n": 0}


def test_equal_cost_line_by_hand():
    # 0.5 dB a doubling; seed 1 is 2 dB better than seed 0.
    random = [
        fake_cell(index=2 * i + s, seed=s, macs=1000 * 2**i, psnr=30 + 2 * s + 0.5 * i)
        for i in range(3)
        for s in range(2)
    ]
    line = study_summary.equal_cost_line(random)
    assert line["slope"] == pytest.approx(0.5)
    assert line["levels"] == pytest.approx({"0": 30.5, "1": 32.5})
    found = [fake_cell("first_order", 0, 0, psnr=31.25, macs=2000)]
    cells = {str(i): c for i, c in enumerate([*random, *found])}
    summary = study_summary.summarize(cells)
    assert summary["sources"]["first_order"]["at_equal_macs"]["mean"] == pytest.approx(0.75)
    assert summary["sources"]["random"]["at_equal_macs"]["mean"] == pytest.approx(0)
    assert study_summary.equal_cost_line(random[:1]) is None


def test_ranking_by_hand():
    random = [fake_cell(index=i, macs=m, psnr=30 + i) for i, m in enumerate((1, 2, 3, 4))]
    searched = [
        fake_cell("first_order", 0, 0, ranking=[1.0, 2.0, 4.0, 3.0]),  # one pair of six swapped
        fake_cell("first_order", 1, 1, ranking=[4.0, 3.0, 2.0, 1.0]),
    ]
    result = study_summary.ranking(searched, random)
    assert [s["tau"] for s in result["supernets"]] == pytest.approx([4 / 6, -1])
    assert result["macs"]["tau"] == pytest.approx(1)
    assert result["interval"]["mean"] == pytest.approx(-1 / 6)
    assert result["between_supernets"]["mean"] == pytest.approx(-4 / 6)


def test_ranking_ignores_differences_between_seeds():
    psnr = {(0, 0): 30, (1, 1): 40, (2, 0): 32, (3, 1): 41}  # seed 1 is 9.5 dB above seed 0
    random = [fake_cell(index=i, seed=s, macs=i, psnr=p) for (i, s), p in psnr.items()]
    searched = [fake_cell("first_order", 0, 0, ranking=[1.0, 2.0, 4.0, 3.0])]
    assert study_summary.ranking(searched, random)["supernets"][0]["tau"] == pytest.approx(1)


def test_repeatability_by_hand():
    # Seed 1 is 1 dB above seed 0; genotype b is 0.5 dB above a, give or take 0.1.
    psnr = {"a": (30.0, 31.0), "b": (30.4, 31.6)}
    sources = {n: [fake_cell(n, s, s, psnr=p) for s, p in enumerate(ps)] for n, ps in psnr.items()}
    result = study_summary.repeatability(sources)
    # Rest: +-0.05 in each of four cells, one degree of freedom. Genotypes: means 0.5 apart.
    assert result["rest"] == pytest.approx(0.1)
    assert result["f"] == pytest.approx(2 * 0.125 / 0.01)
    assert result["genotype"] == pytest.approx(((0.25 - 0.01) / 2) ** 0.5)
    # F with 1 and 1 degrees of freedom is the square of a Cauchy variable.
    assert result["p"] == pytest.approx(1 - 2 * np.arctan(5) / np.pi)
    assert study_summary.repeatability({"a": sources["a"]}) is None


def test_longer_training_by_hand():
    short = [fake_cell("random", i, i % 2, psnr=p) for i, p in enumerate((30, 40, 31, 42))]
    long = [fake_cell("random_long", i, i % 2, psnr=p) for i, p in enumerate((33, 45, 35, 48))]
    result = study_summary.longer({"random": short, "random_long": long})
    # Relative to the seeds' means: -0.5, -1, 0.5, 1 and -1, -1.5, 1, 1.5.
    assert result["tau"] == pytest.approx(1) and result["genotypes"] == 4
    assert result["long"] == pytest.approx(((1 + 1.5**2) / 2) ** 0.5)
    assert study_summary.longer({"random": short}) is None


def test_agreement_by_hand():
    space = SearchSpace(channels=(8,), branches=(1,), columns=(2,))
    genotypes = [
        Genotype(space, [["fusion", "fusion"]], [[["SE", "SE", "CBAM"]]]),
        Genotype(space, [["fusion", "parallel"]], [[["SE", "CBAM", "CBAM"]]]),
    ]
    cells = [
        fake_cell("first_order", i, i) | {"genotype": json.loads(g.to_json())}
        for i, g in enumerate(genotypes)
    ]
    result = study_summary.agreement(cells)
    assert result["columns"] == {"share": 0.5, "chance": 0.5}
    assert result["attention"] == {"share": pytest.approx(2 / 3), "chance": 1 / 8}


# Guards


def _probabilities(attention, columns=((0.9, 0.1), (0.2, 0.8))):
    return {"columns": np.array(columns), "attention": np.array([attention])}


def test_guards_are_quiet_on_a_healthy_architecture():
    rows = np.eye(9)[[2, 6, 8]] * 0.6 + 0.4 / 9
    assert collapse.collapse_warnings(_probabilities(rows), SearchSpace(), gap=0.5) == []


def test_guards_fire_on_a_collapsed_architecture():
    rows = np.eye(9)[[0, 1, 8]] * 0.6 + 0.4 / 9
    (sign,) = collapse.collapse_warnings(_probabilities(rows), SearchSpace(), gap=0.5)
    assert sign.startswith("collapse: 67% of the attention edges prefer none or skip_connect")
    assert collapse.collapsed(_probabilities(rows), CANDIDATES) == [sign]


def test_guards_fire_on_an_undecided_architecture_and_a_wide_gap():
    even = _probabilities(np.full((3, 9), 1 / 9), np.full((2, 2), 0.5))
    space = SearchSpace(candidates=CANDIDATES[2:] + CANDIDATES[:2])
    signs = collapse.collapse_warnings(even, space, gap=3.25)
    assert [sign.split(":")[0] for sign in signs] == ["undecided", "undecided", "gap"]
    assert "3.2 dB" in signs[2] or "3.3 dB" in signs[2]


def test_widths_count_where_the_column_is_parallel():
    """Elsewhere no gradient reaches them, and they stay as they were."""
    space = SearchSpace((8,), (1,), (2,), widths=(0.5, 1))
    rows = _probabilities(np.eye(9)[[2, 6, 8]] * 0.6 + 0.4 / 9)
    for widths, count in ([(1, 0), (0.5, 0.5)], 0), ([(0.5, 0.5), (1, 0)], 1):
        signs = collapse.collapse_warnings(rows | {"widths": np.array(widths)}, space, gap=0.5)
        assert len(signs) == count and all("entropy of the widths is 100%" in s for s in signs)


def test_entropy_by_hand():
    assert collapse.entropy(np.array([[0.5, 0.5], [1, 0]])) == pytest.approx(0.5)
    assert collapse.entropy(np.zeros((0, 9))) == 0


# All of it, on embedded photographs


@pytest.mark.slow
def test_the_choice_does_not_affect_the_search(tmp_path, run_stages, loop_config):
    import jax

    from manas_jax.search import supernet

    by_perturbation = {"search__choice": "perturbation", "search__choice_batches": 1}
    run_stages(tmp_path / "plain", stage="search")
    run_stages(tmp_path / "changed", stage="search", **by_perturbation)
    plain, changed = (load_search(loop_config(), tmp_path / n) for n in ("plain", "changed"))
    jax.tree.map(np.testing.assert_array_equal, plain, changed)
    config = loop_config()
    evaluator = supernet.evaluator(config, tmp_path / "plain", 1)
    space = SearchSpace(**config.space)
    expected = selection.perturbation(space, plain.architecture, evaluator, config.seed)
    assert Genotype.load(tmp_path / "changed" / "genotype.json") == expected
    assert loop_config().search.choice == "likeliest"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study of two small cells on embedded photographs."""
    sources = {
        "first_order": {"choice": "derived", "search": "plain", "cells": 1, "rank": True},
        "random": {"choice": "random", "cells": 1},
    }
    config = study_config(
        sources, search__steps=2, train__steps=2, search__crop=16, train__crop=16,
        search__validation_crop=16, train__validation_crop=16, train__ema=0.5,
    )  # fmt: skip
    config.study.seeds = 1
    workdir = tmp_path_factory.mktemp("study")
    study_run.run(config, workdir)
    return workdir


@pytest.mark.slow
def test_cells_contain_what_the_summary_needs(done):
    cells = study_run.read_cells(done / "cells")
    assert set(cells) == {"first_order-00", "random-00"}
    searched = cells["first_order-00"]
    assert len(searched["ranking"]) == 1 and np.isfinite(searched["ranking"]).all()
    for key in ("relaxed", "inherited", "inherited_own_statistics", "trained"):
        assert 0 < searched[key]["psnr"] < 100
    assert "command" in searched["provenance"]
    for cell in cells.values():
        genotype = Genotype.from_json(json.dumps(cell["genotype"]))
        assert cell["macs"] == cost.derived(genotype, 64, 64).macs


@pytest.mark.slow
def test_the_search_reports_the_cost_of_discretisation(done):
    folder = done / "searches" / "plain-00" / "search"
    summary = json.loads((folder / "summary.json").read_text())
    cell = study_run.read_cells(done / "cells")["first_order-00"]
    assert summary["derived"] == pytest.approx(cell["inherited"])
    assert isinstance(summary["warnings"], list)


def test_the_supernet_with_hard_logits_is_the_derived_network(small):
    import jax

    from manas_jax.models.network import Network, genotype_logits
    from manas_jax.models.variables import inherit, init_variables, variable_shapes

    genotype, _ = small
    space = genotype.space
    draw = np.random.default_rng(0)
    supernet = jax.tree.map(
        lambda x: x + 0.03 * draw.standard_normal(x.shape).astype(np.float32),
        init_variables(Network(space), 0),
    )
    derived = Network(space, genotype)
    images = draw.uniform(0, 1, (1, 16, 16, 3)).astype(np.float32)
    inherited = inherit(supernet, variable_shapes(derived))
    np.testing.assert_allclose(
        jax.jit(Network(space).apply)(supernet, images, genotype_logits(genotype)),
        jax.jit(derived.apply)(inherited, images),
        atol=1e-5,
    )


# Tables and plots


def test_supernets_that_scored_all_random_genotypes_rank_them():
    random = [fake_cell(index=i) for i in range(3)]
    cells = [fake_cell("first_order", ranking=[1.0] * n) for n in (2, 3, 4)]
    assert study_summary.rankers([fake_cell("first_order"), *cells], random) == cells[1:]


@pytest.fixture
def kept_study(tmp_path, monkeypatch):
    """A study of invented cells, gathered and drawn in a temporary folder."""
    from benchmarks import tables
    from tools import keep_study

    workdir = tmp_path / "run"
    (workdir / "cells").mkdir(parents=True)
    config = json.loads(study_config().to_json_best_effort())
    (workdir / "config.json").write_text(json.dumps(config))
    origin = {"commit": "abc", "machine": {"processor": "Brain", "cores": 1}}
    even = {"columns": [[0.5, 0.5]] * 2, "attention": [[[1 / 9] * 9] * 3]}
    scores = {"psnr": 29.0, "ssim": 0.9}
    for i in range(4):
        cell = fake_cell(index=i, seed=i % 2, macs=10**6 * 2**i, psnr=30 + i, provenance=origin)
        (workdir / "cells" / f"random-{i:02d}.json").write_text(json.dumps(cell))
    for i in range(2):
        cell = fake_cell(
            "first_order", i, i, psnr=33 + i, macs=2 * 10**6, provenance=origin,
            ranking=[1.0, 2.0, 3.0, 4.0], probabilities=even, seconds_of_search=3600.0,
            relaxed={"psnr": 31.5, "ssim": 0.9}, inherited=scores,
            inherited_own_statistics=scores,
        )  # fmt: skip
        cell["source"] |= {"choice": "derived", "search": "plain"}
        (workdir / "cells" / f"first_order-{i:02d}.json").write_text(json.dumps(cell))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    keep_study.gather(workdir, tmp_path / "study")
    keep_study.draw(tmp_path / "study")
    return tmp_path / "study"


def test_files_of_a_kept_study(kept_study):
    names = {str(p.relative_to(kept_study)) for p in kept_study.rglob("*") if p.is_file()}
    assert {"costs.svg", "ranking.svg", "network.svg", "summary.json", "config.json"} < names
    assert {"genotypes/first_order-00.json", "genotypes/pretrained_rain100l.json"} < names
    assert "genotypes/random-00.json" not in names
    for file in (kept_study / "genotypes").glob("*.json"):
        Genotype.load(file)


def test_a_kept_study_is_not_gathered_from_itself(kept_study):
    from tools import keep_study

    cells = sorted((kept_study / "cells").iterdir())
    with pytest.raises(UserError, match="give the WORKDIR of a run"):
        keep_study.gather(kept_study / ".." / kept_study.name, kept_study)
    assert sorted((kept_study / "cells").iterdir()) == cells


def test_the_pretrained_genotypes_are_those_of_the_weights(kept_study):
    from manas_jax.inference.derainer import Derainer

    genotype = Genotype.load(kept_study / "genotypes" / "pretrained_rain100l.json")
    assert genotype == Derainer.from_pretrained("rain100l").genotype


def test_tables_of_a_study(kept_study):
    from benchmarks.tables import study as study_tables

    overview = study_tables.overview()
    assert (
        "6 cells, 2.0 hours of searching and training on one core (Brain, 1 cores)"
        in overview.replace("\n", " ")
    )
    assert "| search, first order | 2, 2 | 33.50 ± 0.71 | 2 |" in overview
    # Two seeds: 33 - (30 + 32) / 2 and 34 - (31 + 33) / 2, both 2 dB.
    assert "| search, first order | random | 2 | +2.00 [+2.00, +2.00] | – |" in (
        study_tables.comparisons()
    )
    assert "31.50 ± 0.00 | 29.00 ± 0.00 | 29.00 ± 0.00 | 33.50 ± 0.71 | 2.50" in study_tables.gaps()
    assert "100%, 100%" in study_tables.gaps()
    assert "supernet of seed 0" in study_tables.rankings()
    assert "(50.0%)" in study_tables.agreements()
    assert study_tables.front().count("\n") == 3


# The front of a study within budgets


def budget_cells():
    """Two budgets of a bilevel search and of random genotypes, and a source without a budget."""
    cells = {}
    for budget, macs in (("large", 4_000), ("small", 2_000)):
        for kind, psnr in (("within", 30.0), ("bilevel", 31.0)):
            for i in range(2):
                name = f"{kind}_{budget}"
                cells[f"{name}-{i:02d}"] = fake_cell(name, i, i, psnr + i, macs)
    return cells | {"random-00": fake_cell(), "all_skip-00": fake_cell("all_skip")}


def test_cells_by_kind_and_budget():
    groups = front.by_kind(budget_cells())
    # Kinds as `KINDS` has them, budgets from the cheapest.
    assert list(groups) == [
        (kind, of) for kind in ("bilevel", "within") for of in ("small", "large")
    ]
    assert [cell["trained"]["psnr"] for cell in groups["bilevel", "large"]] == [31.0, 32.0]


def test_shares_of_branches_by_hand():
    space = SearchSpace(
        channels=(8, 16), branches=(2,), columns=(1,), column_choices=ALL_COLUMNS, widths=(0.5, 1.0)
    )
    edges = ["skip_connect"] * space.edges * 2
    cell = fake_cell()
    picks = {"columns": ["parallel"], "attention": edges, "widths": [0.5, 1.0]}
    cell["genotype"] = json.loads(assemble(space, picks).to_json())
    # Two 3x3 convolutions a block: 8 to 4 and back at all pixels, 16 to 16 at a quarter of them.
    fine, coarse = 2 * 8 * 4, 2 * 16 * 16 / 4
    expected = [fine / (fine + coarse), coarse / (fine + coarse)]
    assert front.shares([cell]) == pytest.approx(expected)
    empty = fake_cell()
    picks = {"columns": ["identity"], "attention": edges, "widths": [1.0, 1.0]}
    empty["genotype"] = json.loads(assemble(space, picks).to_json())
    assert front.shares([cell, empty]) == pytest.approx([share / 2 for share in expected])


def test_pictures_of_the_front(tmp_path):
    front.draw(budget_cells(), tmp_path)
    for name, words in (("front.svg", "bilevel search"), ("spending.svg", "random")):
        assert words in (tmp_path / name).read_text()
    first = (tmp_path / "front.svg").read_bytes()
    front.draw(budget_cells(), tmp_path)
    assert (tmp_path / "front.svg").read_bytes() == first
    # Without budgets there are no pictures.
    front.draw({"random-00": fake_cell()}, tmp_path / "none")
    front.draw({"paper_hand_made-00": fake_cell("paper_hand_made")}, tmp_path / "none")


def test_page_of_the_front(tmp_path):
    cells = budget_cells()
    path = page.write(cells, study_summary.summarize(cells, planned=12), tmp_path)
    html = path.read_text()
    assert path == tmp_path / "report.html" and "10 cells of 12" in html
    assert html.count('<img src="data:image/svg+xml;base64,') == 2
    assert '<th scope="row">small</th><td>bilevel search</td><td>2, 2</td><td>31.50 ± 0.71' in html
    for kind, psnr in (("random", 30.5), ("halving", 30.75)):  # of the same seeds
        for i in range(2):
            name = f"{kind}_small"
            cells[f"{name}-{i:02d}"] = fake_cell(name, i, i, psnr + i, 2_000)
    rows = {
        row[1]: row for row in page.table(study_summary.summarize(cells))[1] if row[0] == "small"
    }
    assert rows["successive halving"][-2:] == ["+0.75 [+0.75, +0.75]", "+0.25 [+0.25, +0.25]"]
    assert rows["random"][-2:] == ["–", "-0.50 [-0.50, -0.50]"]
    cells = {"random-00": fake_cell(), "random_long-00": fake_cell("random_long")}  # no budgets
    assert page.write(cells, study_summary.summarize(cells), tmp_path / "none") is None


def test_table_of_budgets(tmp_path, monkeypatch):
    from benchmarks import tables
    from benchmarks.tables import budget as budget_tables

    folder = tmp_path / "study_budget"
    folder.mkdir()
    summary = study_summary.summarize(budget_cells(), planned=12)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.json").write_text(study_config().to_json_best_effort())
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = budget_tables.overview()
    assert "10 of 12 planned cells" in text
    row = "| small | bilevel search | 2, 2 | 31.50 ± 0.71 | 0.00 ± 0.00 | 10 ± 0 | +1.00 [+1.00, "
    assert row in text
    assert "| large | random | 2, 2 | 30.50 ± 0.71 |" in text
