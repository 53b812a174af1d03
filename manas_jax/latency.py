"""Measures how long each part of the networks of a space takes, for a budget of milliseconds.

python -m manas_jax.latency --config=configs/budget.py --out=latency.json [--engine=jax]

Every choice of the space is measured on this device as de-raining computes it: by ONNX Runtime on
CPUs, by JAX elsewhere. Pictures have `objectives.complexity_size`. Whole networks of random
genotypes show what the rest of the network takes, and others how far the sum of a genotype's parts
is from what it takes. The file is for `search.budget_of=milliseconds`; weights are random, and no
data are read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import onnx
from absl import flags, logging
from ml_collections import ConfigDict
from onnx import TensorProto, helper

from manas_jax import app, ops
from manas_jax.config import validate, without_data
from manas_jax.files import check_writable, write_named_json
from manas_jax.inference import onnx_graph
from manas_jax.inference.derainer import ENGINES, POOL_SIDE, Derainer, default_engine
from manas_jax.inference.fold_batch_norm import fold
from manas_jax.inference.tiling import multiple
from manas_jax.latency_table import FORMAT, NANOSECONDS, VERSION, LatencyTable
from manas_jax.models.candidates import Edge
from manas_jax.models.columns import Fusion
from manas_jax.models.layers import ResidualBlock
from manas_jax.models.network import Network
from manas_jax.models.variables import init_variables
from manas_jax.ops.norm import FoldedNorm
from manas_jax.runtime import signals
from manas_jax.runtime.onnx_session import open_session
from manas_jax.space import Genotype, SearchSpace, hidden_channels, random_genotype
from manas_jax.workdir import provenance

flags.adopt_module_key_flags(app)
_OUT = flags.DEFINE_string("out", None, "File to write the table to.")
_ENGINE = flags.DEFINE_enum("engine", None, ENGINES, "What computes; default: as de-raining.")

ROUNDS = 9  # of all programs in turn
IN_A_ROW = 5  # runs of a program in a round
COPIES = 1, 4  # of a part in a row: the difference has none of what a call costs by itself
ANCHORS, CHECKS = 3, 5  # random genotypes whose networks are measured

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Part:
    """A module that a genotype may choose.

    Attributes:
      kind: as in `SearchSpace.decisions`: 'columns' for a fusion, 'widths' for a residual block.
      branches: of a fusion their number; else the branch.
      choice: the column's, the candidate, or the width.
    """

    kind: str
    branches: int
    choice: Any


Timer = Callable[[Mapping[Any, Run]], Mapping[Any, float]]
"""Runs by name -> milliseconds of each."""


def time_in_turn(runs: Mapping[Any, Run]) -> dict[Any, float]:
    """Milliseconds of each run: the least of several rounds, in which all take turns.

    Whatever else the machine does only adds. In a round each runs several times in a row: right
    after another program its memory is in no cache, and threads of the other one still occupy the
    cores.
    """
    times = dict.fromkeys(runs, math.inf)
    for _ in range(ROUNDS):
        for key, run in runs.items():
            for _ in range(IN_A_ROW):
                begin = time.perf_counter()
                run()
                times[key] = min(times[key], 1000 * (time.perf_counter() - begin))
    return times


def measure(
    config: ConfigDict, engine: str | None = None, timer: Timer = time_in_turn
) -> dict[str, Any]:
    """Measures the space of a configuration.

    Args:
      config: of a run; its data are not read.
      engine: one of `ENGINES`; None for the one that de-rains on this device.
      timer: measures.

    Returns:
      The content of the file.

    Raises:
      UserError: the configuration is not valid, or a candidate has no form for the engine.
    """
    config = without_data(config)
    # The file may be for its budget, and no search method matters to it.
    config.search.update(budget=0.0, latency="", method="bilevel", choice="likeliest")
    validate(config)
    space, size = SearchSpace(**config.space), tuple(config.objectives.complexity_size)
    genotypes = [random_genotype(space, seed) for seed in range(ANCHORS + CHECKS)]
    engine = engine or default_engine(genotypes[0])
    make = {"onnx": _onnx_part, "jax": _jax_part}[engine]
    runs: dict[Any, Run] = {}
    for part in parts(space):
        for copies in COPIES:
            runs[part, copies] = make(space, size, part, copies)
    for genotype in genotypes:
        runs[genotype] = _network(genotype, size, engine)
    logging.info("latency: timing %d programs, %d rounds", len(runs), ROUNDS)
    times = timer(runs)

    one, several = COPIES
    found = {
        part: max(0.0, (times[part, several] - times[part, one]) / (several - one))
        for part in parts(space)
    }
    rows = _rows(space, found)
    table = LatencyTable("", "", space, size, 0, _in_nanoseconds(rows))
    rest = [times[g] - table.cost(g) / NANOSECONDS for g in genotypes[:ANCHORS]]
    fixed = max(0.0, statistics.mean(rest))
    checked = [
        {"predicted": fixed + table.cost(g) / NANOSECONDS, "measured": times[g]}
        for g in genotypes[ANCHORS:]
    ]
    errors = [100 * (pair["predicted"] / pair["measured"] - 1) for pair in checked]
    return {
        "format": FORMAT,
        "version": VERSION,
        "device": provenance.device(),
        "engine": engine,
        "dtype": "float32",
        "space": space.to_dict(),
        "size": list(size),
        "milliseconds": {"fixed": fixed, **rows},
        "parts": [dataclasses.asdict(part) | {"milliseconds": ms} for part, ms in found.items()],
        "check": {
            "genotypes": checked,
            "mean_error_percent": statistics.mean(map(abs, errors)),
            "largest_error_percent": max(errors, key=abs),
        },
        **provenance.describe(),
    }


def parts(space: SearchSpace) -> list[Part]:
    """The different parts that take time: equal ones of other columns and modules are left out."""
    found = []
    if "fusion" in space.column_choices:
        found += [Part("columns", count, "fusion") for count in sorted(set(space.branches))]
    timed = [name for name in space.candidates if name not in ("none", "skip_connect")]
    for branch in range(len(space.channels)):
        if space.residual_blocks:
            found += [Part("widths", branch, width) for width in space.widths]
        found += [Part("attention", branch, name) for name in timed]
    return found


def _rows(space: SearchSpace, found: Mapping[Part, float]) -> dict[str, list[list[float]]]:
    """Milliseconds of every choice of every decision, by kind, as `cost.tables` has them."""
    counts = [
        n for n, columns in zip(space.branches, space.columns, strict=True) for _ in range(columns)
    ]
    decisions = {
        "columns": (counts, space.column_choices),
        "attention": ([b for _, b in space.modules for _ in range(space.edges)], space.candidates),
        "widths": ([b for _, b in space.residual_blocks], space.widths),
    }
    return {
        kind: [
            [found.get(Part(kind, where, choice), 0.0) for choice in choices] for where in places
        ]
        for kind, (places, choices) in decisions.items()
    }


def _in_nanoseconds(rows: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, list[list[int]]]:
    return {k: [[round(ms * NANOSECONDS) for ms in row] for row in v] for k, v in rows.items()}


def _network(genotype: Genotype, size: tuple[int, int], engine: str) -> Run:
    """De-rains a picture with a network of random weights."""
    variables = init_variables(Network(genotype.space, genotype), 0)
    derainer = Derainer(genotype, variables, engine=engine)
    picture = np.random.default_rng(0).random((*size, 3), np.float32)
    return functools.partial(derainer, picture)


def _shapes(space: SearchSpace, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Height, width and channels of each branch, of a picture that is padded as for de-raining."""
    padded = [-(-side // _multiple(space)) * _multiple(space) for side in size]
    return [
        (*(side // (space.patch * 2**b) for side in padded), channels)
        for b, channels in enumerate(space.channels)
    ]


def _multiple(space: SearchSpace) -> int:
    return multiple(space, POOL_SIDE)


def _inputs(space: SearchSpace, size: tuple[int, int], part: Part) -> list[np.ndarray]:
    """Noise in the place of feature maps, NHWC."""
    shapes = _shapes(space, size)
    used = shapes[: part.branches] if part.kind == "columns" else [shapes[part.branches]]
    if part.kind == "attention":
        (height, width, channels) = used[0]
        used = [(height, width, channels // space.attention_groups)]
    draw = np.random.default_rng(0)
    return [draw.random((1, *shape), np.float32) for shape in used]


class _Noise(onnx_graph.Graph):
    """A graph whose parameters are noise of whatever shape is asked for."""

    def param(self, name: str, *shape: int) -> np.ndarray:
        """Noise."""
        return np.random.default_rng(0).random(shape, np.float32)


def _onnx_part(space: SearchSpace, size: tuple[int, int], part: Part, copies: int) -> Run:
    """Runs a part several times in a row, in one model of ONNX Runtime."""
    arrays = [x.transpose(0, 3, 1, 2).copy() for x in _inputs(space, size, part)]
    graph = _Noise({})
    maps = [onnx_graph.Map(f"x{i}", x.shape[1]) for i, x in enumerate(arrays)]
    values = [_value(*named) for named in zip(maps, arrays, strict=True)]
    for number in range(copies):
        maps = _onnx_copy(graph, space, part, maps, str(number))
    outputs = [_value(*named) for named in zip(maps, arrays, strict=True)]
    session = open_session(graph.model(values, outputs).SerializeToString())
    feed = {f"x{i}": x for i, x in enumerate(arrays)}
    return functools.partial(session.run, None, feed)


def _value(x: onnx_graph.Map, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(x.name, TensorProto.FLOAT, array.shape)


def _onnx_copy(
    graph: onnx_graph.Graph,
    space: SearchSpace,
    part: Part,
    maps: Sequence[onnx_graph.Map],
    name: str,
) -> list[onnx_graph.Map]:
    if part.kind == "columns":
        return onnx_graph.fusion(graph, maps, name)
    if part.kind == "widths":
        return [onnx_graph.residual_block(graph, maps[0], name, part.choice)]
    return [onnx_graph.gated(graph, maps[0], part.choice, name, _window(space, part))]


def _jax_part(space: SearchSpace, size: tuple[int, int], part: Part, copies: int) -> Run:
    """Runs a part several times in a row, in one program of JAX."""
    kernels, arrays = ops.default(None, jax.default_backend()), _inputs(space, size, part)
    inputs = tuple(arrays) if part.kind == "columns" else arrays[0]
    folded = dataclasses.replace(kernels, norm=FoldedNorm)
    module = _jax_module(space, part, folded)
    init = functools.partial(_jax_module(space, part, kernels).init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), inputs)
    draw = np.random.default_rng(0)
    variables = fold(jax.tree.map(lambda x: draw.random(x.shape, np.float32), shapes))

    def apply(variables, x):
        for _ in range(copies):
            x = module.apply(variables, x, False)
        return x

    placed = jax.device_put((variables, inputs))
    compiled = jax.jit(apply).lower(*placed).compile()
    return lambda: jax.block_until_ready(compiled(*placed))


def _jax_module(space: SearchSpace, part: Part, kernels: ops.Ops) -> nn.Module:
    if part.kind == "columns":
        return Fusion(ops=kernels)
    if part.kind == "widths":
        return ResidualBlock(hidden_channels(space.channels[part.branches], part.choice), kernels)
    return Edge((part.choice,), _window(space, part), kernels)


def _window(space: SearchSpace, part: Part) -> int:
    """Side of the squares of channel gates on a branch, see `Network.pool_side`."""
    return _multiple(space) // (space.patch * 2**part.branches)


def main(config: ConfigDict, _workdir: str | None) -> None:
    """Measures and writes the table."""
    check_writable(_OUT.value, "--out")
    with signals.interruptible():
        table = measure(config, _ENGINE.value)
    write_named_json(_OUT.value, "--out", table)
    check = table["check"]
    logging.info(
        "latency: %s; predicted times of %d random genotypes are off by %.1f %% in the mean, by "
        "%.1f %% at most",
        _OUT.value, len(check["genotypes"]), check["mean_error_percent"],
        check["largest_error_percent"],
    )  # fmt: skip


if __name__ == "__main__":
    app.start(main, required=("config", "out"))
