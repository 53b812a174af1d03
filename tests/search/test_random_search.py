"""The choice of a random genotype by training."""

import collections
import itertools
import json
import re
import types

import pytest

from manas_jax.errors import Diverged, UserError
from manas_jax.files import write_json
from manas_jax.search import methods, random_search
from manas_jax.space import Genotype, SearchSpace, random_genotype
from manas_jax.training import checks


def test_halving_trains_the_better_half_for_longer():
    quality = [0.3, 0.9, 0.1, 0.8, 0.5]
    had = collections.Counter()

    def score(candidate, steps):
        assert steps > had[candidate]
        had[candidate] = steps
        return quality[candidate]

    best, history = random_search.successive_halving(5, score, 300, rounds=3)
    assert best == 1
    assert [sorted(scores) for scores in history] == [[0, 1, 2, 3, 4], [1, 3, 4], [1, 3]]
    assert had == {2: 20, 0: 20, 4: 53, 1: 103, 3: 103}
    assert sum(had.values()) <= 300
    had.clear()
    best, (scores,) = random_search.successive_halving(5, score, 300, rounds=1)  # random search
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

    monkeypatch.setattr(random_search.train_run, "train", train)
    random_search._trained(config, random_genotype(SearchSpace(**config.space), 0), tmp_path, steps)
    assert given == [expected]


def test_a_single_candidate_is_not_trained(tmp_path, monkeypatch, make_config):
    config = make_config(search__method="random", search__candidates=1, train__inherit=False)
    monkeypatch.setattr(random_search.train_run, "train", None)
    genotype = methods.search(config, tmp_path)
    assert genotype == Genotype.load(tmp_path / "genotype.json")
    summary = json.loads((tmp_path / "search" / "summary.json").read_text())
    assert (summary["steps"], summary["rounds"], summary["validation"]) == (0, [], {})


def test_steps_and_seconds_are_those_of_the_trainings(tmp_path, monkeypatch, make_config):
    """Six candidates cannot share 1000 steps evenly; one diverges when it is trained for longer."""
    config = make_config(
        search__method="halving", search__candidates=6, search__steps=1000, train__inherit=False
    )

    def train(config, folder):
        number, steps = int(folder.name), config.train.steps
        if number == 3 and steps > 55:
            raise Diverged("mse is nan at step 60", steps=60)
        (folder / "train").mkdir(exist_ok=True)
        summary = {"seconds": steps / 10, "compile_seconds": 1.0}
        summary["validation"] = {"psnr": 20.0 + number, "ssim": 0.5}
        write_json(folder / "train" / "summary.json", summary)

    monkeypatch.setattr(random_search.train_run, "train", train)
    clock = types.SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(random_search, "time", clock)
    methods.search(config, tmp_path)
    summary = json.loads((tmp_path / "search" / "summary.json").read_text())
    steps = [55, 55, 55, 60, 332, 332]
    assert [sorted(map(int, scores)) for scores in summary["rounds"]] == [
        [0, 1, 2, 3, 4, 5], [3, 4, 5], [4, 5],
    ]  # fmt: skip
    assert summary["steps"] == sum(steps) <= 1000
    assert summary["seconds"] == pytest.approx(3 * 5.5 + (5.5 + 1) + 2 * 33.2)
    assert summary["compile_seconds"] == 6 + 2 + 2


def test_a_candidate_that_diverges_is_left_out(tmp_path, monkeypatch, make_config, caplog):
    config = make_config(
        search__method="random", search__candidates=3, search__steps=6, train__inherit=False
    )
    diverging = {"000", "002"}

    def train(config, folder):
        if folder.name in diverging:
            raise Diverged("mse is nan at step 1", steps=1)
        (folder / "train").mkdir()
        summary = {"seconds": 1.0, "compile_seconds": 1.0}
        summary["validation"] = {"psnr": 20.0, "ssim": 0.5}
        write_json(folder / "train" / "summary.json", summary)

    monkeypatch.setattr(random_search.train_run, "train", train)
    clock = types.SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(random_search, "time", clock)  # a training that diverges takes a second
    found = methods.search(config, tmp_path)
    assert found == Genotype.load(tmp_path / "search" / "candidates" / "001" / "genotype.json")
    assert "candidate 000 is left out: mse is nan" in caplog.text
    for name in ("first", "resumed"):
        summary = json.loads((tmp_path / "search" / "summary.json").read_text())
        assert (summary["steps"], summary["seconds"]) == (1 + 2 + 1, 3.0), name
        (tmp_path / "search" / "summary.json").unlink()
        assert methods.search(config, tmp_path) == found

    diverging.add("001")
    with pytest.raises(UserError, match="the trainings of all candidates diverged: lower"):
        methods.search(config, tmp_path / "worse")


DAMAGED = ["null", "[]", '{"psnr": 20.0', '{"psnr": 20.0}', '{"psnr": null}']


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_scores_are_named(tmp_path, monkeypatch, make_config, content):
    config = make_config()
    genotype = random_genotype(SearchSpace(**config.space), 0)
    (tmp_path / "scores-6.json").write_text(content)
    monkeypatch.setattr(random_search.train_run, "train", lambda *_: None)
    hint = f"remove the candidate's folder {re.escape(str(tmp_path))}, and it will be trained"
    with pytest.raises(UserError, match=rf"scores-6\.json: truncated.*: {hint}"):
        random_search._trained(config, genotype, tmp_path, 6)
    (tmp_path / "scores-6.json").unlink()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "summary.json").write_text(content)
    with pytest.raises(UserError, match=rf"summary\.json: truncated.*: {hint}"):
        random_search._trained(config, genotype, tmp_path, 6)


def test_without_a_supernet_the_batches_of_the_search_do_not_count(loop_config, tmp_path):
    config = loop_config(search__method="random", search__crop=4096, train__inherit=False)
    checks.check_stages(config, tmp_path, ["search"])
    config.search.method = "bilevel"
    with pytest.raises(UserError, match="too small for patches"):
        checks.check_stages(config, tmp_path, ["search"])


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
    assert summary["steps"] == 3 * 2 + 2 * 3
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
    monkeypatch.setattr(random_search.train_run, "train", None)
    assert methods.search(config, tmp_path) == genotype
    assert json.loads((tmp_path / "search" / "summary.json").read_text()) == summary
