"""What cases of `benchmarks.speed` cost against each other, measured in turn in one process.

python -m benchmarks.ratios BASE CASE [CASE ...] [--rounds 9] [--out results/ratios.json]

On a shared machine, whose speed drifts within minutes, two cases measured one after the other
differ by more than what they cost. Here a round is one step of each, and what is said is the median
over the rounds of each case's seconds over those of the base in the same round. Results are added
to the file; those of the same base and case are replaced.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import CASES
from benchmarks.speed import ROOT, _timed, aligned, select
from manas_jax.errors import UserError


def measure(names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each case by round, after two steps of each."""
    with tempfile.TemporaryDirectory() as folder:
        works = {}
        for name in names:
            place = pathlib.Path(folder) / name
            place.mkdir()
            if CASES[name].prepare:
                CASES[name].prepare(place)
            works[name] = CASES[name].make(place)
        for work in works.values():
            for _ in range(2):
                _timed(work.run)
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, work in works.items():
                taken[name].append(_timed(work.run))
    return taken


def ratios(taken: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Of each other case: median, minimum and maximum over the rounds of its cost in bases."""
    made = {}
    for name, seconds in taken.items():
        if name != base:
            each = [a / b for a, b in zip(seconds, taken[base], strict=True)]
            middle = statistics.median(each)
            made[name] = {"median": middle, "min": min(each), "max": max(each)}
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("base", metavar="BASE")
    parser.add_argument("cases", nargs="+", metavar="CASE")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "ratios.json")
    options = parser.parse_args(arguments)
    try:
        if options.rounds < 1:
            raise UserError(f"--rounds={options.rounds}: give at least 1")
        if len(select([options.base])) != 1:
            raise UserError(f"{options.base}: fits several cases; name one as the base")
        others = [name for name in select(options.cases) if name != options.base]

        from manas_jax import provenance
        from manas_jax.checkpoint import write_json

        record: list[dict[str, Any]] = []
        if options.out.exists():
            record = json.loads(options.out.read_text())
        options.out.parent.mkdir(parents=True, exist_ok=True)
        taken = measure([options.base, *others], options.rounds)
        found = ratios(taken, options.base)
        origin = provenance.describe()
        record = [x for x in record if x["base"] != options.base or x["case"] not in found]
        record += [
            {"base": options.base, "case": name, "ratio": ratio, "provenance": origin,
             "seconds": {key: taken[key] for key in (options.base, name)}}
            for name, ratio in found.items()
        ]  # fmt: skip
        write_json(options.out, record)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(aligned([HEAD, *(row(x) for x in record)]))
    return 0


HEAD = ("case", "against", "times the cost, median (range)")


def row(one: dict[str, Any]) -> list[str]:
    """A line of the table."""
    return [one["case"], one["base"], "{median:.2f} ({min:.2f}-{max:.2f})".format(**one["ratio"])]


if __name__ == "__main__":
    sys.exit(main())
