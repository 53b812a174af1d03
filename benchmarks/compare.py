"""Compares two files of `benchmarks.speed` and reports what changed beyond noise.

python -m benchmarks.compare OLD NEW [--normalise] [--tolerance 0.1]

Seconds of a step are compared by their medians, and the range of the runs is their noise: a step is
faster if the slowest new run is below the fastest old one. Values measured once (compilation, first
step, memory) have --tolerance as their noise. --normalise counts time in matrix products, timed
beside the steps in both files: for different machines, or if something else was running.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.speed import SIDE, aligned
from manas_jax.errors import UserError

TOLERANCE = 0.1
HEAD = ("case", "measure", "old", "new", "new / old", "range", "verdict")


class Value(NamedTuple):
    """A measurement and its range."""

    middle: float
    low: float
    high: float


def load(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a file of `benchmarks.speed`.

    Raises:
      UserError: the file cannot be read or holds something else.
    """
    try:
        record = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(record, dict) or not {"cases", "runs"} <= record.keys():
        raise UserError(f"{path}: not written by benchmarks.speed; give two of its files")
    return record


def measures(
    case: Mapping[str, Any], tolerance: float = TOLERANCE, normalise: bool = False
) -> dict[str, Value]:
    """What can be compared of a case: measure -> value, where less is better.

    Args:
      case: a case's record.
      tolerance: relative noise of values measured once.
      normalise: whether seconds become numbers of matrix products that take as long.
    """
    products = case["product_gflops"]

    def duration(value: Value) -> Value:
        if not normalise:
            return value
        rates = Value(sum(products) / len(products), min(products), max(products))
        per_second = 1e9 / (2 * SIDE**3)
        return Value(*(v * rate * per_second for v, rate in zip(value, rates, strict=True)))

    def once(value: float) -> Value:
        return Value(value, value * (1 - tolerance), value * (1 + tolerance))

    seconds = case["seconds"]
    found = {"seconds": duration(Value(seconds["median"], seconds["min"], seconds["max"]))}
    for key in ("compile_seconds", "first_step_seconds"):
        found |= {f"{key} {name}": duration(once(value)) for name, value in case[key].items()}
    found |= {f"peak_gb {name}": once(value) for name, value in case["peak_gb"].items()}
    if "device_peak_gb" in case:
        found["device_peak_gb"] = once(case["device_peak_gb"])
    return found


def ratio(old: Value, new: Value) -> Value:
    """New over old, with the range that the noise of both allows."""

    def over(a: float, b: float) -> float:  # 0 / 0 is no change
        return a / b if b else (float("inf") if a else 1.0)

    return Value(*(over(a, b) for a, b in zip(new, (old.middle, old.high, old.low), strict=True)))


def verdict(measure: str, change: Value) -> str:
    """'faster', 'slower' (of memory 'less', 'more') or 'within noise'."""
    better, worse = ("less", "more") if "_gb" in measure else ("faster", "slower")
    if change.high < 1:
        return better
    return worse if change.low > 1 else "within noise"


def compare(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    tolerance: float = TOLERANCE,
    normalise: bool = False,
) -> list[list[str]]:
    """A row as in `HEAD` for each measure of the cases that both records hold."""
    rows = []
    for name in _finished(old):
        if name not in _finished(new):
            continue
        before, after = (measures(r["cases"][name], tolerance, normalise) for r in (old, new))
        for measure in (m for m in before if m in after):
            change = ratio(before[measure], after[measure])
            rows.append(
                [
                    name,
                    measure,
                    f"{before[measure].middle:.4g}",
                    f"{after[measure].middle:.4g}",
                    f"{change.middle:.3f}",
                    f"{change.low:.3f}-{change.high:.3f}",
                    verdict(measure, change),
                ]
            )
    return rows


def only_in_one(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each case that one of the records lacks or that failed in it."""
    return [
        f"{name}: not measured in the {which} file"
        for which, record in (("old", old), ("new", new))
        for name in sorted(old["cases"].keys() | new["cases"].keys())
        if name not in _finished(record)
    ]


def _finished(record: Mapping[str, Any]) -> list[str]:
    return [name for name, case in record["cases"].items() if "error" not in case]


def _origin(record: Mapping[str, Any]) -> str:
    origin = record["provenance"] or {}
    machine = ", ".join(map(str, origin.get("machine", {}).values()))
    return f"{origin.get('commit', '')[:9]} {origin.get('date', '')[:16]}, {machine}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--normalise", action="store_true", help="count in matrix products")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    options = parser.parse_args(arguments)
    try:
        if not 0 <= options.tolerance < 1:
            raise UserError(f"--tolerance={options.tolerance}: give a share from 0 to below 1")
        old, new = load(options.old), load(options.new)
        rows = compare(old, new, options.tolerance, options.normalise)
        if not rows:
            raise UserError(f"{options.old} and {options.new} have no measured case in common")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"old: {_origin(old)}\nnew: {_origin(new)}\n")
    print(aligned([HEAD, *rows]))
    print(*only_in_one(old, new), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
