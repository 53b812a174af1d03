"""What cases of `benchmarks.speed` cost against each other, measured in turn in one process.

python -m benchmarks.ratios BASE CASE [CASE ...] [--rounds 9] [--out results/ratios.json]

On a shared machine, whose speed drifts within minutes, two cases measured one after the other
differ by more than what they cost. Here a round is one step of each, and what is said is the median
over the rounds of each case's seconds over those of the base in the same round. No case is held to
one core. Results are added to the file; those of the same base and case are replaced.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import CASES
from benchmarks.compare import entries
from benchmarks.speed import ROOT, aligned, ranged, select, spread, timed
from manas_jax.errors import UserError

HEAD = ("case", "against", "times the cost, median (range)")


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
                timed(work.run)
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, work in works.items():
                taken[name].append(timed(work.run))
    return taken


def ratios(taken: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Of each other case: median, minimum and maximum over the rounds of its cost in bases."""
    return {
        name: spread([a / b for a, b in zip(seconds, taken[base], strict=True)])
        for name, seconds in taken.items()
        if name != base
    }


def row(one: dict[str, Any]) -> list[str]:
    """A line of the table."""
    return [one["case"], one["base"], ranged(one["ratio"], ".2f")]


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
        if len(select([options.base], CASES)) != 1:
            raise UserError(f"{options.base}: fits several cases; name one as the base")
        others = [name for name in select(options.cases, CASES) if name != options.base]
        if not others:
            raise UserError(f"{options.base}: give other cases to compare it with")

        from manas_jax.files import write_json
        from manas_jax.workdir import provenance

        record = entries(options.out, "benchmarks.ratios")
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


if __name__ == "__main__":
    sys.exit(main())
