"""Where de-raining a picture spends its time, and how busy the cores are meanwhile.

python -m benchmarks.picture_parts [--runs 9] [--out results/speed/this/picture_parts.json]

Each part of the derived networks of `benchmarks.cases` is a program of its own here, in the form
that pictures are de-rained in, and all are run in turn, as is the whole network. Beside seconds
stand those of the processor: two cores busy all the time would be twice as many. What a part takes
alone is not what it takes in the whole, where parts that do not need each other run at once. A
matrix product is measured in each round, just before the whole: machines drift. On CPU alone;
nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import collections
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import THIS_MACHINE
from benchmarks.cases import PAPER, SMALL, alternating
from benchmarks.parts import kind
from benchmarks.speed import aligned, product_gflops, ranged, spread
from manas_jax import cost
from manas_jax.errors import UserError
from manas_jax.space import Genotype, SearchSpace

SPACES = {"small": SMALL, "paper": PAPER}
HEIGHT, WIDTH = 320, 480
WHOLE = "the whole"
HEAD = ("part", "ms", "processor ms", "cores busy", "share of all parts")


def programs(genotype: Genotype) -> dict[str, Callable[[], Any]]:
    """The network's parts, by name, and the whole; each ready to be run."""
    import jax
    import numpy as np

    from manas_jax.inference import fold_batch_norm
    from manas_jax.inference.derainer import POOL_CELL
    from manas_jax.models.network import Network
    from manas_jax.models.variables import init_variables

    network = Network(genotype.space, genotype, pool_cell=POOL_CELL)
    folded = jax.device_put(fold_batch_norm.fold(init_variables(network, seed=0)))
    images = np.random.default_rng(0).random((1, HEIGHT, WIDTH, 3), np.float32)
    compiled = functools.partial(jax.jit, compiler_options=fold_batch_norm.CPU_OPTIONS)

    def run(part, params, taken):
        with fold_batch_norm.forms(cpu=True):
            return part.run(part.make().bind({"params": params}), taken, False, {})

    def whole(variables, images):
        return fold_batch_norm.apply(network, variables, images, cpu=True)

    made = {WHOLE: functools.partial(compiled(whole), folded, jax.device_put(images))}
    branches = network.fold(images)
    for part in network.parts():
        step = functools.partial(
            compiled(functools.partial(run, part)), folded["params"][part.name], part.take(branches)
        )
        made[part.name] = step
        branches = part.put(branches, step())
    return made


def profile(space: Mapping[str, Any], runs: int) -> dict[str, Any]:
    """Milliseconds of the clock and of the processor, of each kind of part and of the whole.

    Returns:
      'gflop' of a picture; 'parts' by kind and 'whole': 'milliseconds' and
      'processor_milliseconds', of all parts of a kind together; 'product_gflops' of the matrix
      product. All but the first are lists over the runs.
    """
    import jax

    genotype = alternating(SearchSpace(**space))
    made = programs(genotype)
    rounds, products = [], []
    for _ in range(1 + runs):  # the first one compiles the whole
        products.append(product_gflops())
        spent: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
        for name, run in made.items():
            begun = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            ended = time.perf_counter(), time.process_time()
            group = WHOLE if name == WHOLE else kind(name)
            for i in range(2):
                spent[group][i] += 1e3 * (ended[i] - begun[i])
        rounds.append(spent)

    def times(group: str) -> dict[str, Sequence[float]]:
        clock, processor = zip(*(spent[group] for spent in rounds[1:]), strict=True)
        return {"milliseconds": clock, "processor_milliseconds": processor}

    return {
        "gflop": 2e-9 * cost.derived(genotype, HEIGHT, WIDTH).macs,
        "parts": {group: times(group) for group in rounds[0] if group != WHOLE},
        "whole": times(WHOLE),
        "product_gflops": products[1:],
    }


def _medians(there: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Milliseconds of the clock and of the processor."""
    clock, processor = there["milliseconds"], there["processor_milliseconds"]
    return statistics.median(clock), statistics.median(processor)


def rows(profiled: Mapping[str, Any]) -> list[list[str]]:
    """The largest first, then the whole."""
    parts = {name: _medians(there) for name, there in profiled["parts"].items()}
    total = sum(clock for clock, _ in parts.values())

    def row(name: str, clock: float, processor: float) -> list[str]:
        return [name, f"{clock:.1f}", f"{processor:.1f}", f"{processor / clock:.2f}"]

    order = sorted(parts, key=lambda name: -parts[name][0])
    made = [[*row(name, *parts[name]), f"{parts[name][0] / total:.0%}"] for name in order]
    return [*made, [*row(WHOLE, *_medians(profiled["whole"])), ""]]


def summary(record: Mapping[str, Any], size: str) -> str:
    """What the whole reaches of the matrix product, and what it could."""
    there = record[size]
    gflop, products, whole = there["gflop"], there["product_gflops"], there["whole"]
    clock, processor = _medians(whole)
    cores = record["provenance"]["machine"]["cores"]
    pairs = zip(whole["milliseconds"], products, strict=True)
    reached = [gflop / (one / 1e3) / product for one, product in pairs]
    product, share = statistics.median(products), statistics.median(reached)
    return (
        f"{gflop:.0f} GFLOP in {clock:.0f} ms: {ranged(spread(reached), '.0%')} of a matrix "
        f"product in the same round, {product:.0f} GFLOP/s, with which it would be "
        f"{1e3 * gflop / product:.0f} ms; the same work with every core always busy: "
        f"{processor / cores:.0f} ms, {share * clock * cores / processor:.0%}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path, default=THIS_MACHINE / "picture_parts.json")
    options = parser.parse_args(arguments)
    try:
        if options.runs < 1:
            raise UserError(f"--runs={options.runs}: give at least 1")

        import jax

        from manas_jax.files import write_json
        from manas_jax.runtime import malloc
        from manas_jax.workdir import provenance

        malloc.tune()  # as `manas_jax.derain` does
        if jax.default_backend() != "cpu":
            raise UserError("this is for CPU alone: it measures the processor's time")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        profiles = {size: profile(space, options.runs) for size, space in SPACES.items()}
        record = {"provenance": provenance.describe(), **profiles}
        write_json(options.out, record)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for size in SPACES:
        print(f"{size}: {summary(record, size)}")
        print(aligned([HEAD, *rows(record[size])]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
