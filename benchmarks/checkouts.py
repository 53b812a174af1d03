"""What cases of `benchmarks.speed` cost here against another checkout, measured in turn.

python -m benchmarks.checkouts FOLDER CASE [CASE ...] [--first] [--rounds 11]
    [--out results/checkouts.json]

FOLDER is another checkout of the project, such as `git worktree add FOLDER COMMIT` makes of the
commit before a change. Each case runs in two processes at a time, one of FOLDER and one of this
checkout. They wait for each other: a round is a step there and a step here, or here first, and what
is said is the median over the rounds of the seconds here over those there. So a machine that drifts
within minutes hides no change and makes none. Two processes of one commit may differ by some per
cent, by where their memory lies: smaller changes cannot be told. With `--first` a round is two
processes one after the other, from their start to the end of their first step, and neither finds
anything compiled. Results are added to the file; those of the same case and commits are replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any

from benchmarks.cases import CASES
from benchmarks.compare import entries
from benchmarks.speed import ROOT, aligned, ranged, select, spread
from manas_jax.errors import UserError

HEAD = ("case", "commits", "seconds there", "seconds here", "here over there, median (range)")
# Takes no more of a checkout than old ones have, so not `speed.timed` either.
STEPS = """
import pathlib, sys, time
from benchmarks.cases import CASES
from manas_jax import provenance
work = CASES[sys.argv[1]].make(pathlib.Path(sys.argv[2]))
import jax
def seconds():
    start = time.perf_counter()
    jax.block_until_ready(work.run())
    return time.perf_counter() - start
for _ in range(int(sys.argv[3])):
    seconds()
print("MADE", provenance.commit(), flush=True)
for _ in sys.stdin:
    print("MADE", seconds(), flush=True)
"""


class Steps:
    """A case of a checkout in a process of its own that makes a step when asked.

    Attributes:
      commit: of the checkout.

    Raises:
      UserError: here and later, the process has ended.
    """

    def __init__(self, process: subprocess.Popen, said: IO[str], folder: pathlib.Path):
        self._process, self._said, self._folder = process, said, folder
        self.commit = self._answer()

    def step(self) -> tuple[str, float]:
        """Makes a step; the checkout's commit and the seconds that it took."""
        with contextlib.suppress(BrokenPipeError):  # there is no answer then
            print("go", file=self._process.stdin, flush=True)
        return self.commit, float(self._answer())

    def _answer(self) -> str:
        for line in self._process.stdout:  # which the case may write to as well
            if line.startswith("MADE "):
                return line.split()[1]
        self._said.seek(0)
        said = self._said.read().strip().splitlines() or ["it says nothing"]
        raise UserError(f"{self._folder}: the case does not run there: {said[-1]}")


@contextlib.contextmanager
def steps(
    checkout: pathlib.Path,
    case: str,
    folder: pathlib.Path,
    made: int = 2,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Steps]:
    """Within, a case of a checkout is ready, and so many steps of it are made."""
    command = [sys.executable, "-c", STEPS, case, str(folder), str(made)]
    with tempfile.TemporaryFile("w+") as said:  # a pipe that nobody reads would fill
        process = subprocess.Popen(
            command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
            text=True, env=os.environ | (environment or {}),
        )  # fmt: skip
        try:
            yield Steps(process, said, checkout)
        finally:
            process.kill()
            process.wait()


def first_step(checkout: pathlib.Path, case: str, folder: pathlib.Path) -> tuple[str, float]:
    """As `Steps.step`: the first one, from the start of a process that finds nothing compiled."""
    with tempfile.TemporaryDirectory() as cache:
        begun = time.perf_counter()
        with steps(checkout, case, folder, 1, {"JAX_COMPILATION_CACHE_DIR": cache}) as process:
            return process.commit, time.perf_counter() - begun


def measure(case: str, checkout: pathlib.Path, rounds: int, first: bool = False) -> dict[str, Any]:
    """Seconds of a step by round and their ratio, there and here, and both commits.

    Args:
      case: its name.
      checkout: what is "there".
      rounds: how many.
      first: whether it is the first step of a process of its own, from the process's start.
    """
    places = {"there": checkout, "here": ROOT}
    taken: dict[str, list[float]] = {name: [] for name in places}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if CASES[case].prepare:
            CASES[case].prepare(folder)
        if first:
            step = {name: partial(first_step, x, case, folder) for name, x in places.items()}
        else:
            step = {
                name: stack.enter_context(steps(x, case, folder)).step for name, x in places.items()
            }
        commits = {}
        for number in range(rounds):
            for name in list(places) if number % 2 else reversed(places):
                commits[name], seconds = step[name]()
                taken[name].append(seconds)
    ratio = spread([b / a for a, b in zip(taken["there"], taken["here"], strict=True)])
    of = {"of": "first step"} if first else {}
    return {"case": case, **of, "commits": commits, "ratio": ratio, "seconds": taken}


def row(one: dict[str, Any]) -> list[str]:
    """A line of the table."""
    case = f"{one['case']}, {one['of']}" if "of" in one else one["case"]
    commits = " -> ".join(one["commits"][name][:9] for name in ("there", "here"))
    seconds = (f"{statistics.median(one['seconds'][name]):.3g}" for name in ("there", "here"))
    return [case, commits, *seconds, ranged(one["ratio"], ".2f")]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkout", metavar="FOLDER", type=pathlib.Path)
    parser.add_argument("cases", nargs="+", metavar="CASE")
    parser.add_argument("--first", action="store_true", help="measure the first step")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "checkouts.json")
    options = parser.parse_args(arguments)
    try:
        if options.rounds < 1:
            raise UserError(f"--rounds={options.rounds}: give at least 1")
        if not (options.checkout / "benchmarks" / "cases.py").is_file():
            raise UserError(f"{options.checkout}: no checkout of this project with benchmarks")
        names = select(options.cases, CASES)

        from manas_jax.files import write_json
        from manas_jax.workdir import provenance

        record = entries(options.out, "benchmarks.checkouts")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            one = measure(name, options.checkout, options.rounds, options.first)
            keys = ("case", "of", "commits")
            record = [x for x in record if any(x.get(key) != one.get(key) for key in keys)]
            record.append(one | {"provenance": provenance.describe()})
            write_json(options.out, record)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(aligned([HEAD, *(row(x) for x in record)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
