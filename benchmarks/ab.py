"""Two alternatives timed in turn: two cases of this checkout, or one case in two checkouts.

python -m benchmarks.ab CASE [CASE ...] (--base CASE | --checkout FOLDER)
    [--first [--warm]] [--rounds 11] [--out results/speed/this/ab.json]

Each CASE is compared with the case --base, or with itself in FOLDER, another checkout of the
project, such as `git worktree add FOLDER COMMIT` creates of the commit before a change. The cases
are those of `benchmarks.speed`.

The speed of a shared machine drifts within minutes, so two measurements made one after the other
differ by more than most changes do. Here a round is a step of the base and a step of the case, each
in a process of its own that waits for its turn, in alternating order; the result is the median over
the rounds of the ratio of their seconds. Two processes of one commit can differ by a few per cent,
depending on where their memory lies: smaller changes cannot be resolved.

With --first a round is two processes, one after the other, each timed from its start to the end of
its first step: with an empty compilation cache, or with --warm, with the cache that an earlier
process of the same alternative has filled. Results are added to the file and replace those of the
same pair.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from benchmarks import ROOT, THIS_MACHINE
from benchmarks.cases import CASES
from benchmarks.speed import aligned, ranged, select, spread
from manas_jax.errors import UserError
from manas_jax.files import write_json

HEAD = ("case", "timed", "against", "s, against", "s, case", "ratio, median (range)")
ANSWER = "SECONDS "

# Runs in either checkout, so it uses nothing of the project but `make` and `prepare` of a case.
SCRIPT = f"""
import pathlib, sys, time
from benchmarks.cases import CASES
stage, name, folder = sys.argv[1:]
case, folder = CASES[name], pathlib.Path(folder)
if stage == "prepare":
    if case.prepare:
        case.prepare(folder)
    print("{ANSWER}", 0)
    sys.exit()
work = case.make(folder)
import jax
def seconds():
    start = time.perf_counter()
    jax.block_until_ready(work.run())
    return time.perf_counter() - start
print("{ANSWER}", seconds(), flush=True)
for _ in sys.stdin:
    print("{ANSWER}", seconds(), flush=True)
"""


class Side(NamedTuple):
    """One of the two alternatives: a case of a checkout, and a folder for its files."""

    checkout: pathlib.Path
    case: str
    folder: pathlib.Path


class Worker:
    """A process of a `Side`, in which the first step has been run, or files have been prepared."""

    def __init__(self, process: subprocess.Popen, errors: IO[str], side: Side):
        self._process, self._errors, self._side = process, errors, side
        self._answer()

    def step(self) -> float:
        """Seconds of another step.

        Raises:
          UserError: the process has ended; also raised by the constructor.
        """
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            print("go", file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        for line in self._process.stdout:  # the case may print to it as well
            if line.startswith(ANSWER):
                return float(line.split()[1])
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines() or ["no message"]
        where = f"{self._side.case} in {self._side.checkout}"
        raise UserError(f"{where}: does not run: {said[-1]}")


@contextlib.contextmanager
def start(side: Side, stage: str = "run", cache: pathlib.Path | None = None) -> Iterator[Worker]:
    """Starts a worker, which ends with the context.

    Args:
      side: what it runs.
      stage: 'run' or 'prepare'.
      cache: compilation cache. Default: as the environment has it.
    """
    command = [sys.executable, "-c", SCRIPT, stage, side.case, str(side.folder)]
    extra = {"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {}
    with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody reads would fill
        process = subprocess.Popen(
            command, cwd=side.checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, text=True, env=os.environ | extra,
        )  # fmt: skip
        try:
            yield Worker(process, errors, side)
        finally:
            process.kill()
            process.communicate()


def first_step(side: Side, cache: pathlib.Path | None = None) -> float:
    """Seconds from the start of a process to the end of its first step.

    Args:
      side: what it runs.
      cache: compilation cache. Default: an empty one.
    """
    with tempfile.TemporaryDirectory() as empty:
        begin = time.perf_counter()
        with start(side, cache=cache or pathlib.Path(empty)):
            return time.perf_counter() - begin


def timer(side: Side, of: str, stack: contextlib.ExitStack) -> Callable[[], float]:
    """A function that takes one sample of a side, in seconds; the side is prepared and warmed up.

    Args:
      side: what to time; its folder has to be empty.
      of: 'step', 'cold first step' or 'warm first step'.
      stack: keeps the processes that the function needs.
    """
    with start(side, "prepare"):
        pass
    if of == "step":
        worker = stack.enter_context(start(side))
        worker.step()  # the first one after the compilation is slower than the others
        return worker.step
    if of == "cold first step":
        return lambda: first_step(side)
    cache = side.folder / "cache"
    first_step(side, cache)
    return lambda: first_step(side, cache)


def measure(
    base: tuple[pathlib.Path, str], case: tuple[pathlib.Path, str], rounds: int, of: str
) -> dict[str, Any]:
    """Times two alternatives in turn.

    Args:
      base: a checkout and the name of a case.
      case: the same of what is compared with it.
      rounds: how many.
      of: see `timer`.

    Returns:
      'commits' and 'seconds' by round of 'base' and 'case', and the 'ratio', case over base.
    """
    sides = {"base": base, "case": case}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with contextlib.ExitStack() as stack:
        folders = {name: stack.enter_context(tempfile.TemporaryDirectory()) for name in sides}
        sample = {
            name: timer(Side(*side, pathlib.Path(folders[name])), of, stack)
            for name, side in sides.items()
        }
        for number in range(rounds):
            for name in list(sides) if number % 2 else reversed(sides):
                seconds[name].append(sample[name]())
    ratios = [b / a for a, b in zip(seconds["base"], seconds["case"], strict=True)]
    commits = {name: commit(checkout) for name, (checkout, _) in sides.items()}
    return {"commits": commits, "ratio": spread(ratios), "seconds": seconds}


def commit(checkout: pathlib.Path) -> str:
    """The commit of a checkout, with '+changes' if tracked files differ from it; '' outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "manas_jax", "benchmarks")
    return git("rev-parse", "HEAD") + ("+changes" if changed else "")


def row(entry: dict[str, Any]) -> list[str]:
    """A line of the table."""
    base, case = entry["seconds"].values()
    commits = entry.get("commits")  # absent from results of older versions, always of two cases
    same_case = entry["base"] == entry["case"]
    return [
        entry["case"],
        entry.get("of", "step"),
        commits["base"][:9] if same_case else entry["base"],
        f"{statistics.median(base):.3g}",
        f"{statistics.median(case):.3g}",
        ranged(entry["ratio"], ".2f"),
    ]


def load(path: pathlib.Path) -> list[dict[str, Any]]:
    """The results in a file, none if there is no file.

    Raises:
      UserError: the file cannot be read or holds something else.
    """
    try:
        record = json.loads(path.read_text()) if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(record, list):
        raise UserError(f"{path}: not written by benchmarks.ab; give another --out")
    return record


def _pairs(options: argparse.Namespace) -> list[tuple[tuple, tuple]]:
    """Base and case of each comparison, as `measure` takes them."""
    names = select(options.cases, list(CASES))
    if options.checkout:
        if not (options.checkout / "benchmarks" / "cases.py").is_file():
            raise UserError(f"{options.checkout}: not a checkout of this project with benchmarks")
        return [((options.checkout, name), (ROOT, name)) for name in names]
    if len(select([options.base], list(CASES))) != 1:
        raise UserError(f"--base={options.base}: matches several cases; give one")
    others = [name for name in names if name != options.base]
    if not others:
        raise UserError(f"--base={options.base}: give other cases to compare with it")
    return [((ROOT, options.base), (ROOT, name)) for name in others]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ab", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("cases", nargs="+", metavar="CASE")
    against = parser.add_mutually_exclusive_group(required=True)
    against.add_argument("--base", metavar="CASE")
    against.add_argument("--checkout", metavar="FOLDER", type=pathlib.Path)
    parser.add_argument("--first", action="store_true", help="time first steps, not later ones")
    parser.add_argument("--warm", action="store_true", help="with --first: find all compiled")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=pathlib.Path, default=THIS_MACHINE / "ab.json")
    options = parser.parse_args(arguments)
    if options.warm and not options.first:
        parser.error("--warm needs --first")
    of = f"{'warm' if options.warm else 'cold'} first step" if options.first else "step"
    try:
        if options.rounds < 1:
            raise UserError(f"--rounds={options.rounds}: give at least 1")
        pairs = _pairs(options)
        record = load(options.out)

        from manas_jax.workdir import provenance

        options.out.parent.mkdir(parents=True, exist_ok=True)
        for base, case in pairs:
            entry = {"case": case[1], "base": base[1], "of": of}
            entry |= measure(base, case, options.rounds, of)
            keys = ("case", "base", "of", "commits")
            record = [x for x in record if any(x.get(key) != entry[key] for key in keys)]
            record.append(entry | {"provenance": provenance.describe()})
            write_json(options.out, record)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(aligned([HEAD, *map(row, record)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
