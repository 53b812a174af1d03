"""Cases are measured in processes of their own; records are compared beyond noise."""

import itertools
import json
import subprocess
import sys
import time

import conftest
import pytest

from benchmarks import cases, compare, speed


def _record(seconds=(1.0, 1.1, 1.2), compiling=10.0, peak=1.0, products=(100.0, 100.0), **changes):
    """A case's record, summarised from results of its two processes."""
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


def test_patterns_select_cases_in_their_own_order():
    assert speed.select(["train_paper", "search_exact_*"]) == ["search_exact_small", "train_paper"]
    assert speed.select([]) == list(cases.CASES)
    assert speed.select(["tiny"]) == ["tiny"]
    with pytest.raises(speed.UserError, match=r"inferense: matches no case.*inference_4k_small"):
        speed.select(["inferense"])


def test_runs_average_over_their_repeats(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "product_gflops", lambda: 100.0)
    calls = itertools.count(1)

    def step():
        time.sleep(0.005)
        return next(calls)

    work = cases.Work(step, 1, repeats=20, details=lambda: {"calls": next(calls)})
    measured = speed.measure(cases.Case(lambda _: work), tmp_path, 2, time.time())
    assert measured["details"] == {"calls": 2 + 2 * 20 + 1}  # the first step, a second one, runs
    assert all(0.005 <= s < 0.1 for s in measured["seconds"])
    assert "seconds" not in speed.measure(cases.Case(lambda _: work), tmp_path, 0, time.time())


def test_command_measures_in_child_processes(tmp_path):
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
    assert 0.05 < case["peak_gb"]["cold"] < 100 and min(case["product_gflops"]) > 0
    assert min(case["first_step_seconds"].values()) > 0.1  # imports included
    assert list(out.parent.iterdir()) == [out]


def test_failure_of_a_child_process_is_reported(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    with pytest.raises(RuntimeError, match=r"cold: status 1: .*nonsense"):
        speed._measure_apart("tiny", 1, 100, ["tiny"])


def test_failed_cases_are_named_and_the_others_written(tmp_path, monkeypatch, capsys):
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["tiny", "--runs=0"], "--runs=0"), (["tiny", "--out=/dev/null/speed.json"], "/dev/null")],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert speed.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_summary_separates_compilation_from_steps():
    record = _record()
    assert record["seconds"] == {"median": 1.1, "min": 1.0, "max": 1.2}
    # The cold first step took as long as the others, the warm one two seconds more.
    assert record["compile_seconds"] == {"cold": 10.0, "warm": 4.0}
    assert record["first_step_seconds"] == {"cold": 13.0, "warm": 6.0}
    assert record["gflops"] == pytest.approx(50) and record["images_a_second"] == 12 / 1.1
    assert record["share_of_product"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((0.9, 0.95, 0.99), "faster"),
        ((0.9, 0.95, 1.0), "within noise"),  # as slow as the fastest old run
        ((1.15, 1.3, 1.4), "within noise"),
        ((1.21, 1.3, 1.4), "slower"),
    ],
)
def test_steps_differ_only_beyond_both_ranges(seconds, expected):
    old, new = (compare.measures(r)["seconds"] for r in (_record(), _record(seconds)))
    change = compare.ratio(old, new)
    assert change.middle == pytest.approx(seconds[1] / 1.1)
    assert compare.verdict("seconds", change) == expected


def test_values_measured_once_have_the_tolerance_as_noise():
    old, new = _record(), _record(compiling=8.5, peak=1.3)

    def verdicts(tolerance):
        before, after = (compare.measures(r, tolerance) for r in (old, new))
        return [
            compare.verdict(m, compare.ratio(before[m], after[m]))
            for m in ("compile_seconds cold", "compile_seconds warm", "peak_gb cold")
        ]

    assert verdicts(0.05) == ["faster", "within noise", "more"]
    assert verdicts(0.2) == ["within noise"] * 3


def test_normalised_seconds_do_not_depend_on_the_machine():
    """And a matrix product that varies widens their range."""
    old, new = _record(), _record((2.0, 2.2, 2.4), products=(50.0, 50.0))
    change = compare.ratio(*(compare.measures(r, normalise=True)["seconds"] for r in (old, new)))
    assert change.middle == pytest.approx(1)
    varying = compare.measures(_record(products=(80.0, 120.0)), normalise=True)["seconds"]
    assert varying.low / varying.middle == pytest.approx(0.8 * 1.0 / 1.1)
    assert varying.high / varying.middle == pytest.approx(1.2 * 1.2 / 1.1)


def test_compare_command(tmp_path, capsys):
    old = _file(tmp_path / "old.json", losses=_record(), train_small=_record())
    new = _file(tmp_path / "new.json", losses=_record((0.5, 0.55, 0.6)), train_small={"error": "x"})
    assert compare.main([old, new]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("| losses") and "| seconds " in line]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["losses", "seconds", "1.1", "0.55", "0.500", "0.417-0.600", "faster"]
    assert lines[-1] == "train_small: not measured in the new file"


@pytest.mark.parametrize("content", ["", '{"cases": {}}', '{"runs": 1, "cases": {}}'])
def test_compare_refuses_other_files(content, tmp_path, capsys):
    good, bad = _file(tmp_path / "good.json", losses=_record()), tmp_path / "bad.json"
    bad.write_text(content)
    assert compare.main([good, str(bad)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "bad.json" in message and message.count("\n") == 1
