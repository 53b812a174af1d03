"""Time by block of the network: of a gradient in the search, and of an image.

python -m benchmarks.profile gradient [--runs 9] [--out results/speed/this/parts.json]
python -m benchmarks.profile image [--runs 9] [--out results/speed/this/picture_parts.json]

`gradient` times the programs of `manas_jax.search.modular_grad` for the small supernet on a batch
of the search; a first-order step needs two such gradients. `image` times the blocks of the derived
networks of `benchmarks.cases`, each compiled as a program of its own, and the whole network, in the
form that `Derainer` runs. Blocks of one kind are added up. A matrix product is timed in each round,
because the speed of a shared machine drifts.

Processor time is that of all threads: two busy cores take twice the time of the clock. Blocks do
not add up to the whole, in which independent blocks run in parallel. On CPU only; nothing else
should run at the same time.
"""

from __future__ import annotations

import argparse
import collections
import functools
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import THIS_MACHINE
from benchmarks.cases import PAPER, SMALL, configure, noise_batch
from benchmarks.speed import aligned, product_gflops, ranged, spread
from manas_jax import cost
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.space import SearchSpace, alternating_genotype

HEIGHT, WIDTH = 320, 480
WHOLE = "the whole"
GRADIENT_HEAD = ("block", "forward ms", "backward ms", "share")
IMAGE_HEAD = ("block", "ms", "processor ms", "cores busy", "share of all blocks")


def kind(name: str) -> str:
    """The kind of a block: 'cell1_attention2' -> 'attention, scale 2'."""
    if found := re.match(r"cell\d+_attention(\d+)", name):
        return f"attention, scale {found[1]}"
    if found := re.match(r"cell(\d+)_column\d+", name):
        return f"columns of cell {int(found[1]) + 1}"
    if found := re.match(r"(cell\d+_)?(transition|stem|head)", name):
        return found[2]
    return "the rest"


class Timer:
    """Times calls by name and round.

    Attributes:
      rounds: of each round name -> [milliseconds of the clock, milliseconds of the processor],
        summed over calls of that name.
    """

    def __init__(self):
        self.rounds: list[dict[Any, list[float]]] = []

    def start_round(self) -> None:
        """Assigns later calls to another round."""
        self.rounds.append(collections.defaultdict(lambda: [0.0, 0.0]))

    def __call__(self, name: Any, function: Callable, *args: Any) -> Any:
        """The function's result, waited for."""
        import jax

        begin = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(function(*args))
        end = time.perf_counter(), time.process_time()
        for i in range(2):
            self.rounds[-1][name][i] += 1e3 * (end[i] - begin[i])
        return result


def profile_gradient(runs: int, space: Mapping[str, Any] = SMALL) -> dict[str, Any]:
    """Times a gradient of the scene loss by kind of block.

    Returns:
      'milliseconds': kind -> 'forward', 'backward' -> median; 'seconds' of the whole gradient and
      'product_gflops', by round.
    """
    import jax

    from manas_jax.models.network import init_architecture
    from manas_jax.models.variables import init_variables
    from manas_jax.search.modular_grad import scene_grad
    from manas_jax.training import build

    config = configure(space)
    network = build.network(config)
    grad_fn = scene_grad(network, build.loss_weights(config), internal_from=0)
    variables = jax.device_put(init_variables(network, seed=0))
    architecture = init_architecture(network.space, seed=0)
    batch = jax.device_put(noise_batch(4, 3, 64, 64))
    names = [kind(block.name) for block in network.blocks()]
    timer, products = Timer(), []

    def evaluate():
        order = {"forward": iter(names), "backward": reversed(names)}

        def run(program, *args):
            direction = program.__name__.strip("_")
            if direction in order:
                return timer((next(order[direction]), direction), program, *args)
            name = "loss" if direction == "head_grad" else "the rest"
            return timer((name, "forward"), program, *args)

        params, stats = variables["params"], variables["batch_stats"]
        return grad_fn(params, architecture, stats, 0, batch, run=run)

    for _ in range(1 + runs):  # the first one compiles
        products.append(product_gflops())
        timer.start_round()
        timer(WHOLE, evaluate)
    rounds = timer.rounds[1:]
    milliseconds: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for name, direction in rounds[0].keys() - {WHOLE}:
        clock = [spent[name, direction][0] for spent in rounds]
        milliseconds[name][direction] = statistics.median(clock)
    return {
        "milliseconds": milliseconds,
        "seconds": [spent[WHOLE][0] / 1e3 for spent in rounds],
        "product_gflops": products[1:],
    }


def gradient_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The table of a gradient, or in older records of a step, the largest first."""
    by_kind = record["milliseconds"]
    whole = 1e3 * statistics.median(record.get("step_seconds") or record["seconds"])
    rows = []
    for name in sorted(by_kind, key=lambda name: -sum(by_kind[name].values())):
        times = by_kind[name]
        cells = (f"{times[x]:.0f}" if x in times else "–" for x in ("forward", "backward"))
        rows.append([name, *cells, f"{sum(times.values()) / whole:.0%}"])
    return rows


def profile_image(runs: int, space: Mapping[str, Any]) -> dict[str, Any]:
    """Times an image by kind of block.

    Returns:
      'gflop' per image; 'parts' by kind and 'whole': 'milliseconds' and 'processor_milliseconds';
      'product_gflops'. All but the first are lists by round.
    """
    import jax
    import numpy as np

    from manas_jax.inference.derainer import POOL_SIDE
    from manas_jax.inference.fold_batch_norm import fold
    from manas_jax.inference.jax_engine import folded_network
    from manas_jax.models.network import Network
    from manas_jax.models.variables import init_variables

    genotype = alternating_genotype(SearchSpace(**space))
    network = Network(genotype.space, genotype, pool_side=POOL_SIDE)
    variables = jax.device_put(fold(init_variables(network, seed=0)))
    network = folded_network(network)
    image = jax.device_put(np.random.default_rng(0).random((1, HEIGHT, WIDTH, 3), np.float32))

    def run(module, params, inputs):
        return module.apply({"params": params}, inputs, False)

    calls, branches = [(WHOLE, jax.jit(network.apply), variables, image)], network.preprocess(image)
    for block in network.blocks():
        program = jax.jit(functools.partial(run, block.module()))
        call = program, variables["params"].get(block.name, {}), block.select(branches)
        branches = block.update(branches, call[0](*call[1:]))
        calls.append((kind(block.name), *call))

    timer, products = Timer(), []
    for _ in range(1 + runs):  # the first one compiles
        products.append(product_gflops())
        timer.start_round()
        for call in calls:
            timer(*call)

    def times(name):
        clock, processor = zip(*(spent[name] for spent in timer.rounds[1:]), strict=True)
        return {"milliseconds": clock, "processor_milliseconds": processor}

    return {
        "gflop": 2e-9 * cost.derived(genotype, HEIGHT, WIDTH).macs,
        "parts": {name: times(name) for name in timer.rounds[0] if name != WHOLE},
        "whole": times(WHOLE),
        "product_gflops": products[1:],
    }


def _medians(times: Mapping[str, Sequence[float]]) -> tuple[float, float]:
    """Milliseconds of the clock and of the processor."""
    return tuple(statistics.median(times[x]) for x in ("milliseconds", "processor_milliseconds"))


def image_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The table of an image, the largest first, then the whole."""
    parts = {name: _medians(times) for name, times in record["parts"].items()}
    total = sum(clock for clock, _ in parts.values())

    def row(name: str, clock: float, processor: float, share: str = "") -> list[str]:
        return [name, f"{clock:.1f}", f"{processor:.1f}", f"{processor / clock:.2f}", share]

    order = sorted(parts, key=lambda name: -parts[name][0])
    rows = [row(name, *parts[name], f"{parts[name][0] / total:.0%}") for name in order]
    return [*rows, row(WHOLE, *_medians(record["whole"]))]


def image_summary(record: Mapping[str, Any], cores: int) -> str:
    """The speed of the whole relative to the matrix product, and with all cores always busy."""
    gflop, products, whole = record["gflop"], record["product_gflops"], record["whole"]
    clock, processor = _medians(whole)
    pairs = zip(whole["milliseconds"], products, strict=True)
    shares = [gflop / (one / 1e3) / product for one, product in pairs]
    product, share = statistics.median(products), statistics.median(shares)
    return (
        f"{gflop:.0f} GFLOP in {clock:.0f} ms, {ranged(spread(shares), '.0%')} of the matrix "
        f"product of the same round; at its {product:.0f} GFLOP/s it would take "
        f"{1e3 * gflop / product:.0f} ms, with all cores always busy {processor / cores:.0f} ms "
        f"({share * clock * cores / processor:.0%})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("gradient", "image"))
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args(arguments)
    gradient = options.what == "gradient"
    out = options.out or THIS_MACHINE / ("parts.json" if gradient else "picture_parts.json")
    try:
        if options.runs < 1:
            raise UserError(f"--runs={options.runs}: give at least 1")

        import jax

        from manas_jax.runtime import malloc
        from manas_jax.workdir import provenance

        malloc.tune_jax()  # as the commands do
        if jax.default_backend() != "cpu":
            raise UserError("blocks are programs of their own on CPU only")
        out.parent.mkdir(parents=True, exist_ok=True)
        if gradient:
            record = profile_gradient(options.runs)
        else:
            sizes = {"small": SMALL, "paper": PAPER}
            record = {size: profile_image(options.runs, space) for size, space in sizes.items()}
        origin = provenance.describe()
        write_json(out, {"provenance": origin, **record})
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if gradient:
        print(aligned([GRADIENT_HEAD, *gradient_rows(record)]))
    else:
        for size, profiled in record.items():
            print(f"{size}: {image_summary(profiled, origin['machine']['cores'])}")
            print(aligned([IMAGE_HEAD, *image_rows(profiled)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
