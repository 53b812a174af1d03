"""Scaling estimates: the cost of a step from its compiled program, predictions for accelerators.

python -m benchmarks.scaling [--sizes paper small] [--devices 1 2 4 8] [--out results/scaling.json]

Compiles the search step (as in configs/manas.py: one program for the architecture, one for the
weights) and the training step with the paper's batches for simulated devices of this machine's CPU,
and runs neither. Counts operations, memory and collectives of the programs, computes the bytes of
the all-reduces from the shapes of the parameters, measures the input pipeline on one core, and
predicts step times on the machines in `SYSTEMS`. docs/scaling.md discusses how far that carries. A
program takes minutes to compile; the file is written after each one, and --resume continues it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import RESULTS, ROOT, cases
from manas_jax.errors import UserError

# JAX is imported inside functions: the number of simulated devices is an option of this command.

SIZES = {"paper": cases.PAPER, "small": cases.SMALL, "narrow": cases.NARROW}
STAGES = {"search": ("search_architecture", "search_weights"), "train": ("train",)}
# Quick to compile; the passes that partition, fuse and combine run before and are not affected.
XLA_FLAGS = "--xla_backend_optimization_level=0"
PIPELINES = ("pipeline_files", "pipeline_cached")
FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class System:
    """A machine, by the figures of its vendor; bandwidths in bytes/s.

    Attributes:
      devices: JAX devices (chips, GPUs).
      hosts: processes that feed them.
      vcpus: hardware threads per host.
      flops: peak operations/s per device on float32 arrays as JAX multiplies them by default: in
        bfloat16 on TPU, in TF32 on H100; dense.
      memory: bytes per device.
      memory_bandwidth: per device.
      link_bandwidth: outgoing, per device.
      latency: seconds of an all-reduce of few bytes.
      sources: addresses of the figures' sources.
    """

    devices: int
    hosts: int
    vcpus: int
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    latency: float
    sources: tuple[str, ...]


_BOOK = "https://jax-ml.github.io/scaling-book/sharding"
_HOP = 8e-6 / 3  # seconds: the book's profile of a small all-gather over three hops

SYSTEMS = {
    # 2x4 chips, a mesh without wrap-around: the ring of all eight takes two of four links, 50 GB/s
    # each; the farthest chip is four hops away, there (reduce-scatter) and back (all-gather).
    "v5e-8": System(
        8, 1, 224, 197e12, 16e9, 819e9, 2 * 50e9, 2 * 4 * _HOP,
        ("https://cloud.google.com/tpu/docs/v5e", _BOOK),
    ),
    # 128 cores are 64 chips, a torus of 4x4x4; six links of 100 GB/s; six hops.
    "v5p-128": System(
        64, 16, 208, 459e12, 95 * 2**30, 2765e9, 6 * 100e9, 2 * 6 * _HOP,
        ("https://cloud.google.com/tpu/docs/v5p", _BOOK),
    ),
    # NVLink moves 450 GB/s each way by its data sheet, NCCL 370; small all-reduces over eight
    # H100 were measured at 20 to 25 microseconds.
    "8xH100": System(
        8, 1, 208, 494.7e12, 80e9, 3.35e12, 370e9, 22.5e-6,
        (
            "https://www.nvidia.com/en-us/data-center/h100/",
            "https://github.com/NVIDIA/nccl/issues/1442",
            "https://github.com/marin-community/marin/issues/6736",
            "https://cloud.google.com/compute/docs/gpus",
        ),
    ),
}  # fmt: skip

# Assumed, not measured: shares of the peaks that small convolutions reach.
SHARES = {"flops": 0.3, "memory_bandwidth": 0.7}


def reduced_bytes(params: Mapping, batch_stats: Mapping) -> dict[str, int]:
    """Bytes that the devices have to sum in a step that updates all weights, from shapes alone.

    BatchNorm sums x and x^2 per channel in the forward pass, and the gradient and its product with
    x in the backward pass; in a layer with scale and bias those give the gradients of both.

    Args:
      params: parameters or their shapes.
      batch_stats: running statistics or their shapes.

    Returns:
      Bytes, float32: 'parameters', each once; 'factored', the excess because `FactoredConv` sums
      the gradient of the dense kernel, not those of its two factors; 'statistics' of BatchNorm,
      forward and backward; 'total'.
    """
    from flax.traverse_util import flatten_dict

    weights, running = flatten_dict(params), flatten_dict(batch_stats)
    factored = 0
    for path, pointwise in weights.items():
        if path[-1] == "pointwise":
            spatial = weights[(*path[:-1], "spatial")]
            inputs = max(spatial.shape[2:])  # (3, 3, 1, inputs) or (3, 3, inputs, 1)
            dense = 9 * inputs * pointwise.shape[-1]
            factored += dense - spatial.size - pointwise.size
    means = {path[:-1]: x.size for path, x in running.items() if path[-1] == "mean"}
    backward = sum(0 if (*path, "scale") in weights else 2 * n for path, n in means.items())
    counts = {
        "parameters": sum(x.size for x in weights.values()),
        "factored": factored,
        "statistics": 2 * sum(means.values()) + backward,
    }
    counts["total"] = sum(counts.values())
    return {name: FLOAT * count for name, count in counts.items()}


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a step, ready to compile.

    Attributes:
      step: the jitted function.
      state: its state, as shapes.
      options: `config.search` or `config.train`.
      state_bytes: field of the state -> bytes.
      reduced: see `reduced_bytes`; None if the program does not update the weights.
    """

    step: Any
    state: Any
    options: Any
    state_bytes: Mapping[str, int]
    reduced: Mapping[str, int] | None


def programs(space: Mapping[str, Any]) -> tuple[Any, dict[str, Program]]:
    """The paper's configuration on a search space, and its programs by name, not yet compiled."""
    import jax

    from manas_jax.models.variables import variable_shapes
    from manas_jax.ops import XLA  # what accelerators run
    from manas_jax.training.state import init_search, init_train

    config = cases.configure(space)
    network, optimizers, step = cases.make_search_step(config, ops=XLA)
    state = jax.eval_shape(functools.partial(init_search, network, *optimizers, config.seed))
    search = {
        "weights": _size(state.params),
        "batch_stats": _size(state.batch_stats),
        "optimizer": _size(state.opt_state),
        "architecture": _size((state.architecture, state.architecture_opt_state)),
    }
    reduced = reduced_bytes(state.params, state.batch_stats)
    found = {
        "search_architecture": Program(step.architecture_step, state, config.search, search, None),
        "search_weights": Program(step.weight_step, state, config.search, search, reduced),
    }
    network, optimizer, step = cases.make_train_step(config, ops=XLA)
    state = jax.eval_shape(
        lambda v: init_train(v, optimizer, ema=bool(config.train.ema)), variable_shapes(network)
    )
    train = {
        "weights": _size(state.params),
        "batch_stats": _size(state.batch_stats),
        "optimizer": _size(state.opt_state),
    }
    reduced = reduced_bytes(state.params, state.batch_stats)
    found["train"] = Program(step.weight_step, state, config.train, train, reduced)
    return config, found


def _size(tree: Any) -> int:
    """Bytes of all arrays."""
    import jax

    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def measure(config: Any, name: str, program: Program, devices: int) -> dict[str, Any]:
    """Compiles a program with its batch split over simulated devices.

    Returns:
      'scenes' of the global batch; 'flops' of all devices together, as XLA counts them before
      partitioning and optimisation; of one device 'device_flops', 'device_bytes_accessed',
      'argument_bytes' and 'temporary_bytes'; 'collectives'; 'seconds' to lower and compile.

    Raises:
      UserError: there are fewer devices, or they do not divide the batch.
    """
    import jax

    from manas_jax.runtime import ahead, sharding
    from manas_jax.training import build

    start = time.monotonic()
    mesh = sharding.make_mesh(devices)
    sharding.check_batch(f"{name}: scenes", program.options.scenes, mesh)
    everywhere = sharding.replicated(mesh)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), program.state
    )
    batch = build.batch_shapes(config, program.options, mesh)
    batches = (batch, batch) if name == "search_architecture" else (batch,)
    lowered = program.step.lower(state, *batches)
    compiled = lowered.compile()
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "scenes": program.options.scenes,
        "flops": lowered.cost_analysis()["flops"],
        "device_flops": costs["flops"],
        "device_bytes_accessed": costs["bytes accessed"],
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "collectives": ahead.entry_costs(compiled.as_text()).collectives,
        "seconds": time.monotonic() - start,
    }


def line(points: Mapping[float, float]) -> tuple[float, float]:
    """Intercept and slope of the line through the points x -> y with the least and largest x."""
    low, high = min(points), max(points)
    if low == high:
        raise UserError(
            "give at least two numbers of --devices: costs are interpolated between them"
        )
    slope = (points[high] - points[low]) / (high - low)
    return points[low] - slope * low, slope


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a program on one device.

    Attributes:
      flops: operations.
      traffic: bytes between memory and processor.
      memory: bytes held at a time.
      reductions: number of all-reduces.
      reduced: bytes of all of them.
    """

    flops: float
    traffic: float
    memory: float
    reductions: int
    reduced: float


def cost(measured: Mapping[str, Mapping[str, Any]], share: float) -> Cost:
    """Cost at any number of scenes per device, by linear interpolation between compiled programs.

    Args:
      measured: devices -> result of `measure`.
      share: scenes per device.
    """
    points = {m["scenes"] / int(devices): m for devices, m in measured.items()}

    def at(value):
        intercept, slope = line({scenes: value(m) for scenes, m in points.items()})
        return intercept + slope * share

    reduce = measured[max(measured, key=int)]["collectives"].get("all-reduce", {})
    return Cost(
        flops=at(lambda m: m["device_flops"]),
        traffic=at(lambda m: m["device_bytes_accessed"]),
        memory=at(lambda m: m["argument_bytes"] + m["temporary_bytes"]),
        reductions=reduce.get("count", 0),
        reduced=reduce.get("bytes", 0),
    )


def compute_seconds(system: System, needed: Cost) -> float:
    """Seconds of the slower of arithmetic and memory traffic, at the shares in `SHARES`."""
    return max(
        needed.flops / (SHARES["flops"] * system.flops),
        needed.traffic / (SHARES["memory_bandwidth"] * system.memory_bandwidth),
    )


def latency_seconds(system: System, needed: Cost) -> float:
    """Seconds of the all-reduces in sequence, if they were empty."""
    return needed.reductions * system.latency


def reduce_seconds(system: System, needed: Cost) -> float:
    """Seconds of the all-reduces in sequence without overlap: latency and transfers of a ring."""
    crossing = 2 * (system.devices - 1) / system.devices * needed.reduced
    return latency_seconds(system, needed) + crossing / system.link_bandwidth


def batch_size(scenes: int, devices: int) -> int:
    """The paper's batch, rounded up to a multiple of the devices."""
    return -(-scenes // devices) * devices


def predict(
    system: System,
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]],
    stage: str,
    schedule: Mapping[str, int],
    scene: Mapping[str, int],
    pipeline: Mapping[str, float],
) -> dict[str, Any]:
    """Predicts a step of a stage on a system.

    Args:
      system: the machine.
      measured: program -> devices -> result of `measure`.
      stage: one of `STAGES`.
      schedule: program -> steps of the stage in which it runs.
      scene: its 'images', the rainy patches, and 'bytes' of these and the clean patch.
      pipeline: case -> measured images/s of one core.

    Returns:
      'scenes' of the global batch; seconds of 'compute', of 'reduce' (of which 'latency') and of
      their sum 'step'; 'bound', the limit of computing; 'efficiency', the time of one such device
      for the whole batch over `devices` times the step; 'device_bytes' in memory at a time;
      'stage_seconds' of all steps; per host the rainy patches/s ('host_images'), bytes/s of these
      and their clean patches ('host_bytes'), and 'cores' by case of the pipeline.
    """
    parts = {name: measured[name] for name in STAGES[stage]}
    paper = next(iter(measured[STAGES[stage][0]].values()))["scenes"]
    scenes = batch_size(paper, system.devices)
    shared = {name: cost(part, scenes / system.devices) for name, part in parts.items()}
    alone = sum(compute_seconds(system, cost(part, scenes)) for part in parts.values())
    seconds = {
        name: compute_seconds(system, needed) + reduce_seconds(system, needed)
        for name, needed in shared.items()
    }
    compute = sum(compute_seconds(system, needed) for needed in shared.values())
    reduce = sum(reduce_seconds(system, needed) for needed in shared.values())
    arithmetic = sum(n.flops for n in shared.values()) / (SHARES["flops"] * system.flops)
    step = compute + reduce
    scene_rate = len(parts) * scenes / step / system.hosts  # one batch per program
    images = scene_rate * scene["images"]
    return {
        "scenes": scenes,
        "compute": compute,
        "reduce": reduce,
        "latency": sum(latency_seconds(system, needed) for needed in shared.values()),
        "step": step,
        "bound": "arithmetic" if math.isclose(arithmetic, compute) else "memory traffic",
        "efficiency": alone / (system.devices * step),
        "device_bytes": max(needed.memory for needed in shared.values()),
        "stage_seconds": sum(schedule[name] * seconds[name] for name in parts),
        "host_images": images,
        "host_bytes": scene_rate * scene["bytes"],
        "cores": {case: images / rate for case, rate in pipeline.items()},
    }


def predictions(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """System -> stage -> `predict`; empty unless all programs of the paper's size are measured."""
    paper = record["sizes"].get("paper", {})
    done = paper.get("programs", {})
    if not all(len(done.get(name, ())) > 1 for names in STAGES.values() for name in names):
        return {}
    rates = {case: measured["images_a_second"] for case, measured in record["pipeline"].items()}
    return {
        name: {
            stage: predict(system, done, stage, paper["runs"], paper["scene"], rates)
            for stage in STAGES
        }
        for name, system in SYSTEMS.items()
    }


def measure_pipelines(runs: int) -> dict[str, dict[str, Any]]:
    """Images/s of the input pipeline on one core, from `benchmarks.speed`."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "speed.json"
        command = [sys.executable, "-m", "benchmarks.speed", *PIPELINES]
        done = subprocess.run(
            [*command, f"--runs={runs}", f"--out={out}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise UserError(f"benchmarks.speed {' '.join(PIPELINES)}: {' '.join(last)}")
        measured = json.loads(out.read_text())["cases"]
    keys = ("images_a_second", "seconds", "runs", "images", "product_gflops")
    return {case: {key: measured[case][key] for key in keys} for case in PIPELINES}


def run(
    sizes: Sequence[str], devices: Sequence[int], out: pathlib.Path, resume: bool, runs: int
) -> Iterator[str]:
    """Measures and predicts, rewriting the file after each program; yields lines of progress.

    Raises:
      UserError: as `measure`; the input pipeline fails; the file to resume is not this command's.
    """
    from manas_jax.files import write_json
    from manas_jax.runtime import checkout
    from manas_jax.workdir import provenance

    record: dict[str, Any] = _load(out) if resume else {"sizes": {}, "pipeline": {}}
    record |= {
        "provenance": [*record.get("provenance", []), provenance.describe()],
        "xla_flags": XLA_FLAGS,
        "systems": {name: dataclasses.asdict(system) for name, system in SYSTEMS.items()},
        "shares": SHARES,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    if not record["pipeline"] and runs:
        yield f"the input pipeline on one core, {runs} runs"
        record["pipeline"] = measure_pipelines(runs)
        write_json(out, record)
    total = len(sizes) * len(devices) * sum(map(len, STAGES.values()))
    done, spent, begin = 0, 0, time.monotonic()
    for size in sizes:
        config, found = programs(SIZES[size])
        part = {"programs": record["sizes"].get(size, {}).get("programs", {})}
        record["sizes"][size] = part
        part["scene"] = _scene(config)
        part["runs"] = _runs(config)
        part["state_bytes"] = {name: dict(p.state_bytes) for name, p in found.items()}
        part["reduced_bytes"] = {n: dict(p.reduced) for n, p in found.items() if p.reduced}
        for count in devices:
            for name, program in found.items():
                by_devices = part["programs"].setdefault(name, {})
                done += 1
                if str(count) not in by_devices:
                    measured = measure(config, name, program, count)
                    by_devices[str(count)] = {**measured, "commit": checkout.commit()}
                    spent += 1
                    left = (time.monotonic() - begin) / spent * (total - done) / 60
                    yield f"{size} {name} on {count}: {_line(measured)}; about {left:.0f} min left"
                record["predictions"] = predictions(record)
                write_json(out, record)


def _scene(config: Any) -> dict[str, int]:
    """Rainy patches per scene, and bytes of these and the clean one; same crop in both stages."""
    versions = config.data.versions
    return {
        "images": versions,
        "bytes": (versions + 1) * config.search.crop**2 * 3 * FLOAT,
    }


def _runs(config: Any) -> dict[str, int]:
    """Number of steps in which each program runs."""
    warmup = round(config.search.architecture_warmup * config.search.steps)
    return {
        "search_architecture": config.search.steps - warmup,
        "search_weights": config.search.steps,
        "train": config.train.steps,
    }


def _load(out: pathlib.Path) -> dict[str, Any]:
    try:
        record = json.loads(out.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--resume: {out} cannot be read ({error})") from None
    if not isinstance(record, dict) or not {"sizes", "pipeline"} <= record.keys():
        raise UserError(f"--resume: {out} was not written by benchmarks.scaling")
    return record


def _line(measured: Mapping[str, Any]) -> str:
    found = measured["collectives"].get("all-reduce", {"count": 0, "bytes": 0})
    return (
        f"{measured['seconds']:.0f} s, {measured['flops'] / 1e9:.4g} GFLOP, "
        f"{found['count']} all-reduces of {found['bytes'] / 1e6:.4g} MB"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["paper", "small"])
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "scaling.json")
    parser.add_argument("--resume", action="store_true", help="continue the file")
    parser.add_argument(
        "--runs", type=int, default=5, help="of the input pipeline; 0: leave it out"
    )
    options = parser.parse_args(arguments)
    if min(options.devices) < 1 or options.runs < 0:
        parser.error("--devices has to be 1 or more, --runs 0 or more")
    flags = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}"
    count = f"--xla_force_host_platform_device_count={max(options.devices)}"
    os.environ |= {"XLA_FLAGS": f"{flags} {count}", "JAX_PLATFORMS": "cpu"}
    try:
        lines = run(options.sizes, options.devices, options.out, options.resume, options.runs)
        for text in lines:
            print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
