"""Seconds, memory and compilation of everything, beside the machine's own speed.

python -m benchmarks.speed [CASE ...] [--runs 5] [--out results/speed/this/speed.json]

Every case is measured in two processes: one with an empty compilation cache (cold), which also
times the steps, and one that finds what the first has compiled (warm). A product of two 2048x2048
matrices, timed in the same process before and after the steps, shows the machine's speed. Prints a
table and rewrites the JSON file after every case; `benchmarks.compare` compares two such files.
Cases are names or patterns such as 'search_*'. README.md in this folder explains the columns.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psutil

from benchmarks import ROOT, THIS_MACHINE
from benchmarks.cases import CASES, TINY, Case
from manas_jax.errors import UserError
from manas_jax.files import write_json

# JAX is imported inside functions: a case starts with the imports of the command that it measures,
# and on Linux a child process starts with the peak memory of its parent.

SIDE = 2048  # of the matrices
PRODUCT_SECONDS = 0.3  # of one sample of the matrix product
WORKER = "MANAS_SPEED_WORKER"  # environment variable: the task of a child process


def select(patterns: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
    """Names that match any of the patterns, in their own order; all of them without patterns.

    Args:
      patterns: see fnmatch(3).
      names: of the cases to choose from. Default: those of `CASES`; the ones of `TINY` match by
        their full name alone.

    Raises:
      UserError: a pattern matches nothing.
    """
    known, tests = (list(CASES), list(TINY)) if names is None else (list(names), [])
    chosen = set()
    for pattern in patterns or ["*"]:
        found = fnmatch.filter(known, pattern) or [name for name in tests if name == pattern]
        if not found:
            raise UserError(f"{pattern}: matches no case; there are {', '.join(known)}")
        chosen.update(found)
    return [name for name in known + tests if name in chosen]


def measure(case: Case, folder: pathlib.Path, runs: int, started: float) -> dict[str, Any]:
    """Runs a case in this process.

    Args:
      case: the case, prepared.
      folder: with the prepared files.
      runs: timed runs after the second step; 0 also leaves out matrix products, operations and
        details.
      started: seconds since the epoch when the process was started.

    Returns:
      'first_step_seconds' since the start of the process, 'compile_seconds' of compiling ahead,
      'first_seconds' of the first step alone, 'peak_gb' by the end of the second step,
      'device_peak_gb' where the device reports it, 'images' and 'provenance'; with runs also
      'seconds' per step (a list, by run), 'product_gflops' (before, after), 'growth_mib' (of
      memory from the end of the first run to that of the last), 'gflop' and, if the case has
      them, 'details'.
    """
    import jax

    from manas_jax.workdir import provenance

    work = case.make(folder)
    first = timed(work.run)
    measured = {
        "first_step_seconds": time.time() - started,
        "compile_seconds": work.compile_seconds,
        "first_seconds": first,
        "images": work.images,
    }
    timed(work.run)
    # Read here because the matrix products need memory of their own.
    measured["peak_gb"] = peak_gb()
    if peak := (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):
        measured["device_peak_gb"] = peak / 1e9
    if runs:
        before, seconds, resident = product_gflops(), [], []
        for _ in range(runs):
            seconds.append(timed(work.run, work.repeats))
            resident.append(psutil.Process().memory_info().rss)
        measured["seconds"] = seconds
        measured["growth_mib"] = (resident[-1] - resident[0]) / 2**20
        measured["product_gflops"] = [before, product_gflops()]
        measured["gflop"] = work.flops() / 1e9
        if work.details:
            measured["details"] = work.details()
    flags = {name: os.environ[name] for name in ("XLA_FLAGS",) if os.environ.get(name)}
    return measured | {"provenance": provenance.describe() | flags}


def timed(run: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds per call, results included."""
    import jax

    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(run())
    return (time.perf_counter() - start) / repeats


def peak_gb() -> float:
    """The largest resident set of this process so far, in 1e9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def product_gflops() -> float:
    """GFLOP/s of the product of two float32 matrices of `SIDE` x `SIDE`, the median of five."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    # Rows sum to about 1, so that a chain of products neither grows nor vanishes.
    numbers = np.random.default_rng(0).random((SIDE, SIDE), np.float32) * (2 / SIDE)
    matrix, product = jnp.asarray(numbers, jnp.float32), jax.jit(jnp.matmul)

    def chain(length):
        result = matrix
        for _ in range(length):  # without waiting in between: an accelerator would idle
            result = product(matrix, result)
        return result

    timed(lambda: chain(1))  # compiles
    length = max(1, round(PRODUCT_SECONDS / timed(lambda: chain(1))))
    seconds = statistics.median(timed(lambda: chain(length)) for _ in range(5))
    return 2 * SIDE**3 * length / seconds / 1e9


def spread(values: Sequence[float]) -> dict[str, float]:
    """Their 'median', 'min' and 'max'."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ranged(values: Mapping[str, float], digits: str) -> str:
    """A `spread` as text, 'median (min-max)', in a format such as '.3g'."""
    median, low, high = (f"{values[key]:{digits}}" for key in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


def summarize(cold: Mapping[str, Any], warm: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a case from two results of `measure`, cold with runs and warm without.

    Compile seconds are those of compiling ahead, and what the first step takes beyond the median.
    """
    median, product = statistics.median(cold["seconds"]), statistics.mean(cold["product_gflops"])
    gflops = cold["gflop"] / median
    both = {"cold": cold, "warm": warm}
    copied = ("images", "gflop", "product_gflops", "growth_mib", "device_peak_gb", "details")
    return {
        "seconds": spread(cold["seconds"]),
        "runs": cold["seconds"],
        "compile_seconds": {
            name: process["compile_seconds"] + max(0.0, process["first_seconds"] - median)
            for name, process in both.items()
        },
        **{
            key: {name: process[key] for name, process in both.items()}
            for key in ("first_step_seconds", "peak_gb")
        },
        **{key: cold[key] for key in copied if key in cold},
        "images_a_second": cold["images"] / median,
        "gflops": gflops,
        "share_of_product": gflops / product,
        "commit": cold["provenance"]["commit"],
    }


def report(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """The measurements as a table, and the failed cases below."""
    head = [
        "case", "s/step (min-max)", "images/s", "compile s cold/warm", "first step s cold/warm",
        "peak GB cold/warm", "growth MiB", "GFLOP", "GFLOP/s", "product GFLOP/s", "share",
    ]  # fmt: skip
    good = {name: case for name, case in cases.items() if "error" not in case}
    parts = [aligned([head, *(_row(name, case) for name, case in good.items())])] if good else []
    parts += [f"{name}: failed: {case['error']}" for name, case in cases.items() if "error" in case]
    return "\n\n".join(parts)


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns for the terminal; the first row is its head."""
    head, *rest = rows
    widths = [max(map(len, column)) for column in zip(head, *rest, strict=True)]
    lines = [head, ["-" * width for width in widths], *rest]
    return "\n".join(
        "| " + " | ".join(f"{x:<{w}}" for x, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def cold_and_warm(values: Mapping[str, float], digits: int) -> str:
    """Both numbers as text."""
    return f"{values['cold']:.{digits}f} / {values['warm']:.{digits}f}"


def _row(name: str, case: Mapping[str, Any]) -> list[str]:
    products = case["product_gflops"]
    counted = case["gflop"] > 0
    return [
        name,
        ranged(case["seconds"], ".4g"),
        f"{case['images_a_second']:.4g}",
        cold_and_warm(case["compile_seconds"], 1),
        cold_and_warm(case["first_step_seconds"], 1),
        cold_and_warm(case["peak_gb"], 2),
        f"{case['growth_mib']:.1f}",
        f"{case['gflop']:.4g}" if counted else "-",
        f"{case['gflops']:.4g}" if counted else "-",
        f"{products[0]:.0f}, {products[1]:.0f}",
        f"{case['share_of_product']:.0%}" if counted else "-",
    ]


def run_apart(
    module: str,
    arguments: Sequence[str],
    task: Mapping[str, Any],
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs a command of `benchmarks` in a process that finds its task in `WORKER`.

    Args:
      module: of the command.
      arguments: of the command.
      task: as JSON; 'started' is added, in seconds since the epoch.
      limit: seconds that the process may take.
      environment: additional variables.

    Returns:
      Its standard output.

    Raises:
      RuntimeError: it failed; with its status and the last line of its standard error.
      subprocess.TimeoutExpired: it took longer.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            **(environment or {}),
            WORKER: json.dumps({**task, "started": time.time()}),
        },
        capture_output=True,
        text=True,
        timeout=limit,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"status {done.returncode}: {lines[-1]}")
    return done.stdout


def _measure_apart(name: str, runs: int, limit: float, arguments: Sequence[str]) -> dict[str, Any]:
    """Prepares and measures a case in child processes: its record and its provenance."""
    with tempfile.TemporaryDirectory() as folder:
        case = (CASES | TINY)[name]
        stages = {"prepare": 0} if case.prepare else {}
        measured = {}
        for stage, count in {**stages, "cold": runs, "warm": 0}.items():
            task = {"case": name, "stage": stage, "folder": folder, "runs": count}
            file = pathlib.Path(folder) / f"{stage}.json"
            cache = {"JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(folder) / "cache")}
            try:
                # With this command's arguments, so that the provenance shows them.
                run_apart("benchmarks.speed", arguments, task, limit, cache)
            except RuntimeError as error:
                raise RuntimeError(f"{stage}: {error}") from None
            if stage != "prepare":
                measured[stage] = json.loads(file.read_text())
    return {**summarize(**measured), "provenance": measured["cold"]["provenance"]}


def _work(task: Mapping[str, Any]) -> None:
    """The task of a child process."""
    case, folder = (CASES | TINY)[task["case"]], pathlib.Path(task["folder"])
    if task["stage"] == "prepare":
        case.prepare(folder)
        return
    if case.one_core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    measured = measure(case, folder, task["runs"], task["started"])
    (folder / f"{task['stage']}.json").write_text(json.dumps(measured))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, 1 if a case failed."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"cases: {', '.join(CASES)}"
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--runs", type=int, default=5, help="at least 1")
    parser.add_argument("--out", type=pathlib.Path, default=THIS_MACHINE / "speed.json")
    parser.add_argument("--limit", type=float, default=3600, help="seconds per process")
    options = parser.parse_args(arguments)
    if task := os.environ.get(WORKER):
        _work(json.loads(task))
        return 0

    try:
        if options.runs < 1:
            raise UserError(f"--runs={options.runs}: give at least 1")
        names = select(options.cases)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        cases: dict[str, Any] = {}
        record = {"provenance": None, "runs": options.runs, "cases": cases}
        for done, name in enumerate(names):
            left = len(names) - done - 1
            print(f"{time.strftime('%H:%M:%S')}  {name}; {left} more to come", flush=True)
            try:
                cases[name] = _measure_apart(name, options.runs, options.limit, arguments)
                origin = cases[name].pop("provenance")
                record["provenance"] = record["provenance"] or origin
            except subprocess.TimeoutExpired:
                cases[name] = {"error": f"took longer than --limit={options.limit:g} seconds"}
            except RuntimeError as error:
                cases[name] = {"error": str(error)}
            write_json(options.out, record)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(cases))
    return int(any("error" in case for case in cases.values()))


if __name__ == "__main__":
    sys.exit(main())
