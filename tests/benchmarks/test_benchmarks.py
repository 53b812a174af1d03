"""The measuring command: what it measures is real, and what it says of two measurements is so."""

import importlib.util
import inspect
import itertools
import json
import math
import subprocess
import sys
import time

import conftest
import jax
import numpy as np
import pytest

from benchmarks import (
    cases,
    checkouts,
    compare,
    parts,
    picture_parts,
    ratios,
    released,
    speed,
    speed_tables,
)
from manas_jax import cost
from manas_jax.data import images
from manas_jax.space import SearchSpace


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    monkeypatch.setattr(speed, "SIDE", 64)
    monkeypatch.setattr(speed, "PRODUCT_SECONDS", 0.001)


def _measured(make, folder, runs=2):
    return speed.measure(cases.Case(make), folder, runs, time.time())


def _record(seconds=(1.0, 1.1, 1.2), compiling=10.0, peak=1.0, products=(100.0, 100.0), **changes):
    """A case's record, from what its two processes would have measured."""
    cold = {
        "first_step_seconds": compiling + 3,
        "compile_seconds": compiling,
        "first_seconds": 1.1,
        "images": 12,
        "peak_gb": peak,
        "seconds": list(seconds),
        "growth_mib": 0.5,
        "product_gflops": list(products),
        "gflop": 55.0,
        "provenance": {"commit": "0"},
    }
    warm = {**cold, "compile_seconds": 2.0, "first_seconds": 3.1, "first_step_seconds": 6.0}
    return speed.summarize(cold, warm) | changes


def _file(path, **records):
    path.write_text(json.dumps({"provenance": None, "runs": 3, "cases": records}))
    return str(path)


@pytest.mark.parametrize(
    ("space", "parameters"),
    [(cases.SMALL, 985_671), (cases.PAPER, 6_930_155)],
    ids=["small", "paper"],
)
def test_alternating_networks_are_those_that_the_released_code_was_measured_on(space, parameters):
    assert cost.derived(cases.alternating(SearchSpace(**space)), 1, 1).parameters == parameters


def test_figures_of_the_released_code_belong_to_cases():
    assert speed.RELEASED.keys() <= cases.CASES.keys()


def test_cases_of_the_released_code_are_ours():
    assert released.CASES.keys() <= speed.RELEASED.keys()


@pytest.mark.parametrize(
    ("files", "torch", "patterns", "words"),
    [
        ([], True, [], "no Networks.py; give"),
        (["Networks.py"], False, [], "pip install torch"),
        (["Networks.py"], True, ["train_*", "nothing"], "nothing: fits no case"),
    ],
)
def test_mistakes_of_the_released_command_end_in_a_line(
    files, torch, patterns, words, tmp_path, monkeypatch, capsys
):
    for name in files:
        (tmp_path / name).write_text("")
    found = importlib.util.find_spec("json") if torch else None
    monkeypatch.setattr(released.importlib.util, "find_spec", lambda _: found)
    out = tmp_path / "out.json"
    assert released.main([str(tmp_path), *patterns, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not out.exists()


def test_ratios_are_those_of_a_round_and_add_to_the_file(tmp_path, monkeypatch, capsys):
    """A machine that slows down from round to round changes no ratio."""
    steps = {"one": 1.0, "two": 2.0, "three": 3.0}
    made = {name: cases.Case(lambda _, s=s: cases.Work(lambda: s, 1)) for name, s in steps.items()}
    monkeypatch.setattr(ratios, "CASES", made)
    out = tmp_path / "new" / "ratios.json"
    for patterns, count in ((["two"], 2), (["t*"], 3)):
        calls = itertools.count()
        monkeypatch.setattr(
            ratios,
            "timed",
            lambda run, calls=calls, count=count: (1 + next(calls) // count) * run(),
        )
        assert ratios.main(["one", *patterns, "--rounds", "3", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert [(x["case"], x["ratio"]["median"]) for x in record] == [("two", 2), ("three", 3)]
    assert record[0]["seconds"]["one"] == [3, 4, 5]  # behind two that are not counted
    assert "| three | one     | 3.00 (3.00-3.00)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train_*", "losses"], "name one as the base"),
        (["losses", "nothing"], "fits no case"),
        (["losses", "losses", "--rounds", "0"], "--rounds=0"),
        (["losses", "losses"], "give other cases"),
        (["losses", "train_small", "--out", "{damaged}"], "cannot be read"),
        (["losses", "train_small", "--out", "{other}"], "not written by benchmarks.ratios"),
    ],
)
def test_mistakes_of_ratios_end_in_a_line(arguments, words, tmp_path, capsys):
    files = {"damaged": "[{", "other": '{"cases": {}}'}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    arguments = [x.format(**{name: tmp_path / name for name in files}) for x in arguments]
    assert ratios.main(["--out", str(tmp_path / "x.json"), *arguments]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def _checkout(folder, seconds):
    """A checkout whose case `losses` sleeps in each step."""
    for name in ("benchmarks", "manas_jax"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    (folder / "manas_jax" / "provenance.py").write_text(f"commit = lambda: {folder.name!r}")
    (folder / "benchmarks" / "cases.py").write_text(
        "import time, types\nprint('a line of its own')\n"
        f"run = lambda: time.sleep({seconds})\n"
        "made = lambda folder: types.SimpleNamespace(run=run)\n"
        "CASES = {'losses': types.SimpleNamespace(make=made)}\n"
    )
    return folder


def test_checkouts_are_measured_in_turn(tmp_path, monkeypatch, capsys):
    there, here = _checkout(tmp_path / "old", 0), _checkout(tmp_path / "new", 0.2)
    monkeypatch.setattr(checkouts, "ROOT", here)
    out = tmp_path / "out" / "checkouts.json"
    for rounds in (5, 3):  # the second takes the place of the first
        arguments = [str(there), "losses", "--rounds", str(rounds), "--out", str(out)]
        assert checkouts.main(arguments) == 0
    (one,) = json.loads(out.read_text())
    assert one["commits"] == {"there": "old", "here": "new"}
    old, new = (one["seconds"][name] for name in ("there", "here"))
    assert len(old) == 3 and min(new) >= 0.2  # it sleeps so long
    assert one["ratio"]["median"] == np.median(np.divide(new, old))
    assert "| losses | old -> new |" in capsys.readouterr().out
    # With the first steps beside them; nothing of the project is kept between two of them.
    arguments = [str(there), "losses", "--first", "--rounds", "2", "--out", str(out)]
    assert checkouts.main(arguments) == 0
    later, first = json.loads(out.read_text())
    assert later == one and first["of"] == "first step" and first["commits"] == one["commits"]
    assert len(first["seconds"]["there"]) == 2 and min(first["seconds"]["here"]) > 0.2
    assert "| losses, first step | old -> new |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{empty}", "losses"], "no checkout of this project"),
        (["{old}", "nothing"], "fits no case"),
        (["{old}", "losses", "--rounds", "0"], "--rounds=0"),
        (["{old}", "train_small", "--rounds", "1"], "does not run there: KeyError"),
        (["{old}", "losses", "--out", "{other}"], "not written by benchmarks.checkouts"),
    ],
)
def test_mistakes_of_checkouts_end_in_a_line(arguments, words, tmp_path, capsys):
    (tmp_path / "other").write_text('{"cases": {}}')
    _checkout(tmp_path / "old", 0)
    places = {name: tmp_path / name for name in ("empty", "old", "other")}
    arguments = [x.format(**places) for x in arguments]
    assert checkouts.main(["--out", str(tmp_path / "x.json"), *arguments]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_released_code_stands_beside_ours(tmp_path, monkeypatch):
    theirs = {"seconds": {"median": 2.2, "min": 2.0, "max": 2.4}, "peak_gb": 0.5, "torch": "2.0"}
    machine = {"machine": {"processor": "P", "cores": 2}, "versions": {"jax": "1"}, "commit": "c",
               "date": "2026-01-01"}  # fmt: skip
    files = {"ours": {"train_small": _record()}, "theirs": {"train_small": theirs}}
    found = {name: {"provenance": machine, "runs": 3, "cases": x} for name, x in files.items()}
    monkeypatch.setattr(speed_tables, "load", found.get)
    line = speed_tables.against_released("ours", "theirs").splitlines()[-1]
    assert "| 2.2 (2-2.4) | 1.1 (1-1.2) | 2.0 | 0.50 / 1.00 |" in line


@pytest.mark.parametrize("case", {**cases.CASES, **cases.TINY}.values(), ids=lambda case: "")
def test_cases_can_be_made(case, tmp_path):
    inspect.signature(case.make).bind(tmp_path)
    if case.prepare:
        inspect.signature(case.prepare).bind(tmp_path)


def test_search_step_moves_the_state_and_counts_as_the_compiler_does(tmp_path):
    made = cases.search_step(tmp_path, space=conftest.NARROW, scenes=1, versions=2, height=8,
                             width=16)  # fmt: skip
    first, _ = jax.device_get(made.run())
    second, terms = jax.device_get(made.run())
    assert (first.step, second.step) == (1, 2)
    assert {"restoration", "architecture_restoration", "complexity"} <= terms.keys()
    assert not np.array_equal(first.architecture["columns"], second.architecture["columns"])
    assert made.images == 4 and made.compile_seconds > 0
    twice = cost.supernet(SearchSpace(**conftest.NARROW), 8, 16).macs * 2 * 2
    assert made.flops() > 2 * 2 * twice  # forward alone, for two batches of two


def test_training_step_is_measured(tmp_path):
    size = {"space": cases.NARROW, "scenes": 1, "versions": 2, "height": 8, "width": 8}
    measured = _measured(lambda folder: cases.train_step(folder, **size), tmp_path)
    assert len(measured["seconds"]) == 2 and min(measured["seconds"]) > 0
    assert 0 < measured["compile_seconds"] < measured["first_step_seconds"]
    assert measured["first_seconds"] < measured["first_step_seconds"]
    assert 0.05 < measured["peak_gb"] < 100
    assert min(measured["product_gflops"]) > 0
    assert measured["gflop"] > 0 and measured["images"] == 2
    assert measured["provenance"]["versions"]["jax"] == jax.__version__
    json.dumps(measured)


def test_losses_and_evaluation_run(tmp_path):
    made = cases.losses(tmp_path, scenes=1, versions=2, side=16)
    by_outputs, by_logits = made.run()
    assert by_outputs.shape == (1, 2, 16, 16, 3) and np.all(np.asarray(by_outputs) != 0)
    assert all(np.any(x) for x in by_logits.values()) and made.flops() > 0
    made = cases.evaluation(tmp_path, space=cases.NARROW, height=16, width=24)
    before, after = made.run()
    assert before != after
    macs = cost.derived(cases.alternating(SearchSpace(**cases.NARROW)), 16, 24).macs
    assert 1.9 * macs < made.flops() < 4 * macs


@pytest.mark.parametrize("on_disk", [False, True])
def test_pipeline_reads_files_and_each_batch_is_another(on_disk, tmp_path):
    cases.prepare_pictures(tmp_path, count=2, height=72, width=80)
    clean, *_, rainy = sorted((tmp_path / cases.PICTURES).rglob("*.png"))
    assert images.read(clean).shape == (72, 80, 3)
    assert np.any(images.read(rainy) != images.read(clean))
    made = cases.input_pipeline(tmp_path, on_disk=on_disk, scenes=2, repeats=3)
    batches = [made.run() for _ in range(2)]
    assert batches[0]["rainy"].shape == (2, 3, 64, 64, 3) and made.images == 6
    assert not np.array_equal(batches[0]["rainy"], batches[1]["rainy"])


def test_runs_are_averages_over_their_repeats(tmp_path):
    calls = itertools.count(1)

    def step():
        time.sleep(0.005)
        return next(calls)

    measured = _measured(lambda _: cases.Work(step, 1, repeats=20), tmp_path, runs=2)
    assert next(calls) == 2 + 2 * 20 + 1  # the first step, a second one, runs
    assert all(0.005 <= s < 0.1 for s in measured["seconds"])
    assert "seconds" not in _measured(lambda _: cases.Work(step, 1), tmp_path, runs=0)


def test_command_measures_in_processes_of_their_own(tmp_path):
    out = tmp_path / "new" / "tiny.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", "tiny", "--runs", "1", "--out", out],
        cwd=conftest.ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "tiny; 0 more to come" in done.stdout and "| tiny " in done.stdout
    record = json.loads(out.read_text())
    assert record["provenance"]["command"].endswith("tiny --runs 1 --out .../tiny.json")
    case = record["cases"]["tiny"]
    assert case["peak_gb"]["cold"] > 0.1 and case["gflop"] > 0
    for kind in ("cold", "warm"):
        assert case["first_step_seconds"][kind] > case["compile_seconds"][kind]
    assert list(out.parent.iterdir()) == [out]


def test_failed_cases_are_named_and_the_others_kept(tmp_path, monkeypatch, capsys):
    out = tmp_path / "speed.json"
    outcomes = {
        "losses": RuntimeError("cold: status 1: out of memory"),
        "train_small": subprocess.TimeoutExpired("python", 7),
    }

    def measured(name, *_):
        if name in outcomes:
            raise outcomes[name]
        return _record(provenance={"commit": "0"})

    monkeypatch.setattr(speed, "_measure_apart", measured)
    chosen = ["losses", "train_small", "evaluation_small", "--limit=7", f"--out={out}"]
    assert speed.main(chosen) == 1
    printed = capsys.readouterr().out
    assert "losses: failed: cold: status 1: out of memory" in printed
    assert "train_small: failed: took longer than --limit=7 seconds" in printed
    record = json.loads(out.read_text())
    assert record["provenance"] == {"commit": "0"}
    assert record["cases"].keys() == {"losses", "train_small", "evaluation_small"}
    assert record["cases"]["evaluation_small"]["seconds"]["median"] == 1.1


def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    with pytest.raises(RuntimeError, match=r"prepare: status 1: .*nonsense"):
        speed._measure_apart("tiny", 1, 100, ["tiny"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inferense"], ["inferense: fits no case", "inference_4k_small"]),
        (["tiny", "--runs=0"], ["--runs=0: give at least 1"]),
        (["tiny", "--out=/dev/null/speed.json"], ["/dev/null"]),
    ],
)
def test_mistakes_end_in_a_line(arguments, words, capsys):
    assert speed.main(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert all(word in message for word in words)


def test_cases_are_chosen_by_pattern_in_their_own_order():
    assert speed.select(["train_paper", "search_exact_*"]) == ["search_exact_small", "train_paper"]
    assert speed.select([]) == list(cases.CASES)
    assert speed.select(["tiny"]) == ["tiny"]


def test_summary_keeps_compiling_and_running_apart():
    record = _record()
    assert record["seconds"] == {"median": 1.1, "min": 1.0, "max": 1.2}
    # The cold first step took no longer than the others, the warm one two seconds.
    assert record["compile_seconds"] == {"cold": 10.0, "warm": 4.0}
    assert record["first_step_seconds"] == {"cold": 13.0, "warm": 6.0}
    assert record["gflops"] == pytest.approx(50) and record["images_a_second"] == 12 / 1.1
    assert record["share_of_product"] == pytest.approx(0.5)


def test_table_lines_up_and_shows_the_released_code_beside():
    text = speed.tables({"train_small": _record(), "losses": _record(gflop=0.0)})
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 4
    train, losses = lines[2], lines[3]
    # 1.26 s there at 145 GFLOP/s, 1.1 s here at 100.
    assert "1.15 (1.66)" in train and "50%" in train and "10.0 / 4.0" in train
    assert "%" not in losses


def test_cost_against_size_is_the_ratio_with_its_range():
    one, two = _record((1.0, 1.1, 1.2)), _record((2.0, 2.2, 2.4))
    rows = speed.size_costs({"train_small": one, "train_small_scenes_doubled": two})
    assert rows == [["train_small_scenes_doubled", "2.00 (1.67-2.40)"]]
    assert speed.size_costs({"train_small_scenes_doubled": two}) == []


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((0.9, 0.95, 0.99), "faster"),
        ((0.9, 0.95, 1.0), "within noise"),  # as slow as the fastest one before
        ((1.0, 1.1, 1.2), "within noise"),
        ((1.15, 1.3, 1.4), "within noise"),
        ((1.21, 1.3, 1.4), "slower"),
    ],
)
def test_steps_differ_only_beyond_the_range_of_both(seconds, expected):
    old, new = (compare.measures(r)["seconds"] for r in (_record(), _record(seconds)))
    change = compare.ratio(old, new)
    assert change.middle == pytest.approx(seconds[1] / 1.1)
    assert compare.verdict("seconds", change) == expected


def test_what_is_measured_once_is_given_the_tolerance():
    old, new = _record(), _record(compiling=8.5, peak=1.3)

    def verdicts(tolerance):
        before, after = (compare.measures(r, tolerance) for r in (old, new))
        return [
            compare.verdict(m, compare.ratio(before[m], after[m]))
            for m in ("compile_seconds cold", "compile_seconds warm", "peak_gb cold")
        ]

    assert verdicts(0.05) == ["faster", "within noise", "more"]
    assert verdicts(0.2) == ["within noise"] * 3


def test_normalising_takes_the_machine_out():
    old, new = _record(), _record((2.0, 2.2, 2.4), products=(50.0, 50.0))
    plain, normal = (
        compare.ratio(*(compare.measures(r, normalise=n)["seconds"] for r in (old, new)))
        for n in (False, True)
    )
    assert plain.middle == pytest.approx(2) and compare.verdict("seconds", plain) == "slower"
    assert normal.middle == pytest.approx(1)
    # A product that wavers widens the range.
    wavering = compare.measures(_record(products=(80.0, 120.0)), normalise=True)["seconds"]
    assert wavering.low / wavering.middle == pytest.approx(0.8 * 1.0 / 1.1)
    assert wavering.high / wavering.middle == pytest.approx(1.2 * 1.2 / 1.1)
    memory = compare.measures(new, normalise=True)["peak_gb cold"]
    assert memory == compare.measures(new)["peak_gb cold"]


def test_comparison_as_a_command(tmp_path, capsys):
    old = _file(tmp_path / "old.json", losses=_record(), train_small=_record())
    new = _file(tmp_path / "new.json", losses=_record((0.5, 0.55, 0.6)), train_small={"error": "x"})
    assert compare.main([old, new]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("| losses") and "| seconds " in line]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["losses", "seconds", "1.1", "0.55", "0.500", "0.417-0.600", "faster"]
    assert lines[-1] == "train_small: not measured in the new file"


@pytest.mark.parametrize("content", [None, "", "[]", '{"cases": {}}', '{"runs": 1, "cases": {}}'])
def test_comparison_refuses_other_files(content, tmp_path, capsys):
    good, bad = _file(tmp_path / "good.json", losses=_record()), tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    assert compare.main([good, str(bad)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "bad.json" in message and message.count("\n") == 1


def test_measures_are_numbers_that_can_be_compared():
    old = compare.measures(_record(device_peak_gb=2.0))
    assert old.keys() >= {"seconds", "first_step_seconds warm", "peak_gb cold", "device_peak_gb"}
    assert all(v.low <= v.middle <= v.high and math.isfinite(v.high) for v in old.values())


def test_parts_are_told_apart_and_the_largest_comes_first():
    kinds = {
        "stem_block1": "stem",
        "cell0_transition": "transition",
        "cell2_attention3": "attention, scale 3",
        "cell1_column0": "columns of cell 2",
        "head_fusion": "head",
        "loss": "loss",
        "choices backward": "the rest",
    }
    assert {name: parts.kind(name) for name in kinds} == kinds
    profiled = {
        "step_seconds": [0.1, 0.2, 0.1],
        "milliseconds": {"loss": {"forward": 10.0}, "stem": {"forward": 20.0, "backward": 30.0}},
    }
    assert parts.rows(profiled) == [["stem", "20", "30", "50%"], ["loss", "10", "–", "10%"]]


def test_calls_are_timed_only_within():
    class Owner:
        def work(self, seconds):
            time.sleep(seconds)
            return seconds

    noted, original = [], Owner.work
    with parts.timed(Owner, "work", lambda args, seconds: noted.append((args[1], seconds))):
        assert Owner().work(0.01) == 0.01
    Owner().work(0.0)
    assert Owner.work is original
    assert [seconds for seconds, _ in noted] == [0.01] and noted[0][1] >= 0.01


def test_parts_need_a_step(capsys, tmp_path):
    out = tmp_path / "parts.json"
    assert parts.main(["--steps=0", f"--out={out}"]) == 1
    assert capsys.readouterr().err == "error: --steps=0: give at least 1\n"
    assert not out.exists()


def test_a_picture_is_measured_by_its_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(picture_parts, "SPACES", {"tiny": cases.NARROW})
    monkeypatch.setattr(picture_parts, "HEIGHT", 16)
    monkeypatch.setattr(picture_parts, "WIDTH", 24)
    monkeypatch.setattr(picture_parts, "product_gflops", lambda: 100.0)
    out = tmp_path / "parts.json"
    assert picture_parts.main(["--runs=2", f"--out={out}"]) == 0
    record = json.loads(out.read_text())["tiny"]
    kinds = {"stem", "transition", "columns of cell 1", "head"}
    assert record["parts"].keys() == kinds | {f"attention, scale {i}" for i in range(2)}
    for measured in (*record["parts"].values(), record["whole"]):
        for clock in ("milliseconds", "processor_milliseconds"):
            assert len(measured[clock]) == 2 and min(measured[clock]) > 0
    assert record["product_gflops"] == [100.0, 100.0]
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*kinds, picture_parts.WHOLE))


def test_what_a_picture_reaches_and_could_reach():
    def times(clock, processor):
        return {"milliseconds": clock, "processor_milliseconds": processor}

    whole = times([200.0, 100.0, 400.0], [300.0, 150.0, 600.0])
    parts = {"stem": times([50.0] * 3, [100.0] * 3), "head": times([150.0] * 3, [150.0] * 3)}
    products = [200.0, 500.0, 50.0]
    there = {"gflop": 10.0, "parts": parts, "whole": whole, "product_gflops": products}
    record = {"provenance": {"machine": {"cores": 2}}, "small": there}
    said = picture_parts.summary(record, "small")
    assert "10 GFLOP in 200 ms: 25% (20%-50%) of a matrix product" in said
    assert "200 GFLOP/s, with which it would be 50 ms" in said
    assert said.endswith("always busy: 150 ms, 33%")
    assert picture_parts.rows(record["small"]) == [
        ["head", "150.0", "150.0", "1.00", "75%"],
        ["stem", "50.0", "100.0", "2.00", "25%"],
        [picture_parts.WHOLE, "200.0", "300.0", "1.50", ""],
    ]


def test_parts_of_a_picture_need_a_run(capsys, tmp_path):
    out = tmp_path / "parts.json"
    assert picture_parts.main(["--runs=0", f"--out={out}"]) == 1
    assert capsys.readouterr().err == "error: --runs=0: give at least 1\n"
    assert not out.exists()
