"""Where a first-order step of the small search spends its time, and where compiling does.

python -m benchmarks.parts [--steps 8] [--out results/speed/this/parts.json]

The programs that `manas_jax.search.modular_grad` makes of the network's parts are timed where they
are called, the compiler where it is called; programs of one kind are added up. Compiler seconds
are those of its threads, of which several share the cores. On CPU alone: elsewhere a step is one
program. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks import THIS_MACHINE
from benchmarks.cases import CASES
from benchmarks.speed import aligned, product_gflops
from manas_jax.errors import UserError

HEAD = ("part", "forward ms", "backward ms", "share of the step")
CASE = "search_first_order_small"


def kind(name: str) -> str:
    """What a program belongs to: 'cell1_attention2' -> 'attention, scale 2'."""
    if found := re.match(r"cell\d+_attention(\d+)", name):
        return f"attention, scale {found[1]}"
    if found := re.match(r"cell(\d+)_column\d+", name):
        return f"columns of cell {int(found[1]) + 1}"
    if found := re.match(r"(cell\d+_)?(transition|stem_block|head_fusion|loss)", name):
        return {"stem_block": "stem", "head_fusion": "head"}.get(found[2], found[2])
    return "the rest"


@contextmanager
def timed(owner: Any, name: str, note: Callable[[tuple[Any, ...], float], None]) -> Iterator[None]:
    """Within, calls of a function are timed: `note` gets their arguments and seconds."""
    original = getattr(owner, name)

    def call(*args):
        begun = time.perf_counter()
        result = original(*args)
        note(args, time.perf_counter() - begun)
        return result

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, original)


def profile(steps: int) -> dict[str, Any]:
    """Milliseconds of a step by kind of program and direction, and the compiler's seconds.

    Returns:
      'milliseconds': kind -> direction -> median over the steps; 'step_seconds': by step;
      'compiler_seconds': what the compiler's threads took for all programs together.

    Raises:
      UserError: there is an accelerator.
    """
    import jax

    from manas_jax.runtime import compilation

    compiler: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        timed(compilation, "_compile", lambda _, seconds: compiler.append(seconds)),
    ):
        work = CASES[CASE].make(pathlib.Path(folder))
        # Not asked before: settings of the case must come before JAX is used.
        if jax.default_backend() != "cpu":
            raise UserError("with an accelerator a step is one program; this is for CPU alone")
        jax.block_until_ready(work.run())

    spent: list[dict[tuple[str, str], float]] = []

    def note(args, seconds):
        _, (name, direction, *_), *_ = args  # the key of a program
        spent[-1][kind(name), "backward" if direction == "backward" else "forward"] += seconds

    step_seconds = []
    with timed(compilation.Programs, "__call__", note):
        for _ in range(steps):
            spent.append(collections.defaultdict(float))
            begun = time.perf_counter()
            jax.block_until_ready(work.run())
            step_seconds.append(time.perf_counter() - begun)
    milliseconds: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for group, direction in spent[0]:
        all_steps = [1e3 * step[group, direction] for step in spent]
        milliseconds[group][direction] = statistics.median(all_steps)
    return {
        "milliseconds": milliseconds,
        "step_seconds": step_seconds,
        "compiler_seconds": sum(compiler),
    }


def rows(profiled: Mapping[str, Any]) -> list[list[str]]:
    """The largest first: kind, forward, backward, share of the step."""
    step = 1e3 * statistics.median(profiled["step_seconds"])
    by_kind = profiled["milliseconds"]
    made = []
    for name in sorted(by_kind, key=lambda name: -sum(by_kind[name].values())):
        there = by_kind[name]
        sides = (f"{there[side]:.0f}" if side in there else "–" for side in ("forward", "backward"))
        made.append([name, *sides, f"{sum(there.values()) / step:.0%}"])
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=pathlib.Path, default=THIS_MACHINE / "parts.json")
    options = parser.parse_args(arguments)
    try:
        if options.steps < 1:
            raise UserError(f"--steps={options.steps}: give at least 1")
        # Before JAX is imported: nothing compiled earlier is to be found.
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

        from manas_jax.files import write_json
        from manas_jax.workdir import provenance

        options.out.parent.mkdir(parents=True, exist_ok=True)
        profiled = profile(options.steps)
        product = product_gflops()
        record = {"provenance": provenance.describe(), "product_gflops": product, **profiled}
        write_json(options.out, record)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(aligned([HEAD, *rows(record)]))
    print(f"compiler: {record['compiler_seconds']:.0f} s in all threads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
