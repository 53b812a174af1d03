"""Compares steps of search and training between layouts of devices and processes.

python -m benchmarks.agreement [--steps 20] [--out results/robustness/agreement.json]
python -m benchmarks.agreement --platform cuda --out FILE   one device of a platform against the CPU

Every layout searches and trains for a few steps from the same initial state, with the batches of
the data pipeline, in processes of its own on simulated host devices. The losses of every step, the
final state (parameters, statistics, optimizers) and the pictures that the processes read, together
those of one process and each once, are compared with the first layout, one process on one device.
In float64 only the order of sums differs; in float32 rounding errors show, amplified by the finite
difference and Adam's first steps. A platform is compared in float32, with products of full
precision, and its device is named.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import RESULTS, ROOT

WORKER = "MANAS_AGREEMENT_WORKER"  # environment variable: the task of a child process


@dataclasses.dataclass(frozen=True)
class Layout:
    """Number of processes, devices per process, and devices that share a picture's height.

    `platform` is JAX's name of it; its devices are simulated on 'cpu'.
    """

    processes: int = 1
    devices: int = 1
    height_shards: int = 1
    platform: str = "cpu"

    def __str__(self) -> str:
        if self.platform != "cpu":
            return self.platform
        height = f", height over {self.height_shards}" if self.height_shards > 1 else ""
        return f"{self.processes} x {self.devices}{height}"


LAYOUTS = tuple(
    Layout(*numbers)
    for numbers in [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (4, 1), (2, 4), (1, 8, 2), (2, 4, 4)]
)
SCENES = 8  # of a batch, for up to eight devices
NARROW = {
    "space.branches": (2,),
    "space.columns": (1,),
    "space.candidates": ("none", "SE", "dil_conv_3x3_spatial"),
}
"""Changes to configs/tiny.py: little to compile, but some of every kind of module."""


def compare(layouts: Sequence[Layout], steps: int, dtype: str) -> list[dict[str, Any]]:
    """Runs every layout and compares it with the first one.

    Args:
      layouts: to run.
      steps: of the search, and of the training.
      dtype: 'float32' or 'float64'.

    Returns:
      For each layout its fields as 'layout', and for 'search' and 'train' the largest relative
      difference of a loss ('losses') and of an array of the final state ('state'), and whether
      every batch held the same scenes, once each ('same_pictures'). 'device' is the kind that ran.
    """
    with tempfile.TemporaryDirectory() as folder:
        records = []
        for number, layout in enumerate(layouts):
            here = pathlib.Path(folder) / str(number)
            here.mkdir()
            _run(layout, {"steps": steps, "dtype": dtype}, here)
            records.append((layout, here))
        first = records[0][1]
        return [
            {
                "layout": dataclasses.asdict(layout),
                "device": json.loads((here / "device.json").read_text()),
                **_differences(first, here, layout.processes),
            }
            for layout, here in records
        ]


def _run(layout: Layout, task: Mapping[str, Any], folder: pathlib.Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": layout.platform,
        "JAX_ENABLE_X64": str(task["dtype"] == "float64"),
        # By default GPUs multiply in TF32 and TPUs in bfloat16.
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={layout.devices}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.agreement"],
            cwd=ROOT,
            env=environment
            | {
                WORKER: json.dumps(
                    {
                        **task,
                        "devices": layout.processes * layout.devices,
                        "height_shards": layout.height_shards,
                        "folder": str(folder),
                        "start": [f"localhost:{port}", layout.processes, number]
                        if layout.processes > 1
                        else [None, None, None],
                    }
                )
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(layout.processes)
    ]
    errors = [process.communicate()[1] for process in processes]
    for process, error in zip(processes, errors, strict=True):
        if process.returncode:
            raise RuntimeError(f"{layout}: status {process.returncode}: {error}")


def _work(task: Mapping[str, Any]) -> None:
    """The task of a child process."""
    from manas_jax.runtime import distributed

    distributed.start(*task["start"])

    import jax

    from manas_jax.data.sources import load_splits
    from manas_jax.models.variables import init_variables
    from manas_jax.runtime import sharding
    from manas_jax.search.step import SearchStep
    from manas_jax.space import random_genotype
    from manas_jax.training import build, state
    from manas_jax.training.build import Role
    from manas_jax.training.losses import ComplexityModel
    from manas_jax.training.step import TrainStep

    config = runpy.run_path(str(ROOT / "configs" / "tiny.py"))["get_config"]()
    steps, dtype, folder = task["steps"], np.dtype(task["dtype"]), pathlib.Path(task["folder"])
    config.search.steps = config.train.steps = steps
    config.search.scenes = config.train.scenes = SCENES
    config.train.ema = 0.9
    if dtype == np.float64:
        config.search.hypergradient = "finite_difference"
    config.update_from_flattened_dict(NARROW)
    mesh = sharding.make_mesh(task["devices"], task["height_shards"])
    splits = load_splits(config.data, config.search.crop)
    supernet = build.network(config)
    loss_weights = build.loss_weights(config)
    optimizers = (
        build.search_weight_optimizer(config.search),
        build.architecture_optimizer(config.search),
    )
    network = build.network(config, random_genotype(supernet.space, 0))
    train_optimizer = build.train_optimizer(config.train)
    process = jax.process_index()
    if process == 0:
        kind = mesh.devices.flat[0].device_kind
        (folder / "device.json").write_text(json.dumps(kind))

    def cast(tree):
        return jax.tree.map(
            lambda x: np.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else x.dtype), tree
        )

    def loop(name, advance, fresh, *roles):
        """Runs the steps; writes the losses, digests of the pictures and the final state."""
        carried = sharding.replicate(cast(fresh), mesh)
        sources = [build.batches(config, splits, role, mesh).iterate(0, steps) for role in roles]
        losses, read = [], []
        for batches in zip(*sources, strict=True):
            read.append([_digests(batch) for batch in batches])
            placed = [sharding.shard_batch(cast(batch), mesh) for batch in batches]
            carried, metrics = advance(carried, *placed)
            losses.append({key: float(value) for key, value in metrics.items()})
        (folder / f"{name}{process}.json").write_text(json.dumps({"losses": losses, "read": read}))
        if process == 0:
            leaves = jax.tree_util.tree_leaves_with_path(carried)
            arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
            np.savez(folder / f"{name}.npz", **arrays)

    loop(
        "search",
        SearchStep(
            supernet,
            *optimizers,
            hypergradient=config.search.hypergradient,
            loss_weights=loss_weights,
            devices=mesh.devices.size,
            complexity_model=ComplexityModel(supernet.space, 64, 64),
        ),
        state.init_search(supernet, *optimizers, seed=0),
        Role.SEARCH_WEIGHTS,
        Role.SEARCH_ARCHITECTURE,
    )
    loop(
        "train",
        TrainStep(network, train_optimizer, loss_weights=loss_weights, ema=config.train.ema),
        state.init_train(init_variables(network, 0), train_optimizer, ema=True),
        Role.TRAIN,
    )


def _digests(batch: Mapping[str, np.ndarray]) -> list[str]:
    """One digest per scene."""
    pairs = zip(batch["rainy"], batch["clean"], strict=True)
    return [hashlib.md5(rainy.tobytes() + clean.tobytes()).hexdigest() for rainy, clean in pairs]


def _differences(first: pathlib.Path, other: pathlib.Path, processes: int) -> dict[str, Any]:
    differences = {}
    for name in ("search", "train"):
        expected = json.loads((first / f"{name}0.json").read_text())
        found = [json.loads((other / f"{name}{i}.json").read_text()) for i in range(processes)]
        losses = _largest(
            abs(a[key] - b[key]) / max(abs(a[key]), 1e-3)
            for part in found
            for a, b in zip(expected["losses"], part["losses"], strict=True)
            for key in a
        )
        # For each step and source, the parts of all processes joined.
        joined = [
            [list(itertools.chain(*parts)) for parts in zip(*step, strict=True)]
            for step in zip(*(part["read"] for part in found), strict=True)
        ]
        with np.load(first / f"{name}.npz") as a, np.load(other / f"{name}.npz") as b:
            state = _largest(_difference(a[key], b[key]) for key in a.files)
        differences[name] = {
            "losses": losses,
            "state": state,
            "same_pictures": joined == expected["read"],
        }
    return differences


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.max(np.abs(a - b), initial=0.0) / max(np.max(np.abs(a), initial=0.0), 1e-3))


def _largest(values: Iterable[float]) -> float:
    """The largest value; NaN if one of them is."""
    return float(np.max(list(values)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    if task := os.environ.get(WORKER):
        _work(json.loads(task))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--out", type=pathlib.Path, default=RESULTS / "robustness" / "agreement.json"
    )
    parser.add_argument("--platform", help="such as cuda or tpu: its first device alone")
    parser.add_argument(
        "--limit", type=float, default=1e-2, help="relative difference of a loss that is an error"
    )
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps={options.steps}: give at least 1")
    if options.platform and options.out == parser.get_default("out"):
        parser.error("--platform needs --out=FILE: the default is the record of all layouts")
    pathlib.Path(options.out).parent.mkdir(parents=True, exist_ok=True)

    from manas_jax.files import write_json
    from manas_jax.workdir import provenance

    layouts, kinds = LAYOUTS, ("float64", "float32")
    if options.platform:
        layouts, kinds = (Layout(), Layout(platform=options.platform)), ("float32",)
    rows = {dtype: compare(layouts, options.steps, dtype) for dtype in kinds}
    write_json(options.out, {"provenance": provenance.describe(), "steps": options.steps, **rows})
    for dtype in kinds:
        for layout, row in zip(layouts, rows[dtype], strict=True):
            differences = ", ".join(
                f"{stage} {row[stage]['losses']:.1e} {row[stage]['state']:.1e}"
                for stage in ("search", "train")
            )
            print(f"{dtype}  {layout} ({row['device']}): {differences}")
    compared = [row[stage] for kind in kinds for row in rows[kind] for stage in ("search", "train")]
    largest = _largest(stage["losses"] for stage in compared)
    if not largest <= options.limit:
        print(f"error: losses differ by {largest:.1e}; limit {options.limit:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
