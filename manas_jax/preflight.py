"""Compiles the steps of a run for a slice of TPUs, on any machine, before anyone rents the slice.

python -m manas_jax.preflight --config=configs/manas.py --topology=v5e:4x4 [--stage=train]

The programs are those that `manas_jax.main` would run there with the same flags, on the same shapes
and shardings. It prints what they take to compile, the memory of a chip that they need, what the
chips exchange, and how long the compiler expects a step to take. It reads no data, runs nothing and
needs no TPU, but libtpu (the extra `tpu`). The programs themselves are not stored: the pod
compiles them again.

The derived network is that of train.genotype or of the workdir, else one that alternates its
columns and its candidates. The evaluation restores a picture of objectives.complexity_size.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging
from jax.sharding import Mesh, SingleDeviceSharding
from ml_collections import ConfigDict

from manas_jax import app, evaluate
from manas_jax.buckets import as_path, check_local, exists
from manas_jax.config import STAGES, validate, without_data
from manas_jax.errors import UserError
from manas_jax.files import check_writable, write_named_json
from manas_jax.inference import pretrained
from manas_jax.models.network import Network
from manas_jax.models.variables import variable_shapes
from manas_jax.runtime import sharding, signals, tpu_slice
from manas_jax.runtime.ahead import AheadCompiler, Costs, OutOfMemory, Program
from manas_jax.search import supernet
from manas_jax.space import Genotype, SearchSpace, alternating_genotype
from manas_jax.training import build
from manas_jax.training import run as train_run
from manas_jax.training.restore import find_genotype, search_template, train_template
from manas_jax.workdir import provenance

flags.adopt_module_key_flags(app)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Slice to compile for: a topology (v5e:4x4) or accelerator type (v5p-128)."
)
_STAGE = flags.DEFINE_enum("stage", None, STAGES, "Stage to compile; default: those of the config.")
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")

FLOAT = 4  # bytes, of the patches that go to the devices


def run(
    config: ConfigDict, where: tpu_slice.Slice, workdir: str | os.PathLike | None = None
) -> dict[str, Any]:
    """Compiles the steps of the configured stages for a slice.

    Args:
      config: of the run; its data are not read.
      where: the slice.
      workdir: of the run, for its genotype; None or a folder without one for a stand-in.

    Returns:
      JSON-ready figures: of the slice, and by stage what `_figures` returns.

    Raises:
      UserError: the run could not start there, or does not fit; the message says how it would.
    """
    config = without_data(config)
    validate(config)
    if config.train.weights:
        config.train.weights = str(pretrained.find(config.train.weights))
    mesh = sharding.make_mesh(config.devices, config.height_shards, where.devices)
    stages = STAGES if config.stage == "all" else (config.stage,)
    if "search" in stages and config.search.method != "bilevel":
        raise UserError(
            f"search.method = {config.search.method}: only the steps of bilevel can be compiled "
            "ahead; give --stage=train for the training of the network that is found"
        )
    for stage in stages:
        if stage != "evaluate":
            build.check_sharding(config, stage, mesh)
    found = {}
    with jax.default_matmul_precision(config.network.precision):
        for stage in stages:
            logging.info("%s: compiling for %s, which takes minutes", stage, where.topology)
            compiler = AheadCompiler(sharding.replicated(mesh))
            try:
                described = _COMPILE[stage](config, workdir, mesh, compiler)
                if config.network.dtype != "float32":
                    described["dtype"] = config.network.dtype
                if stage != "evaluate" and config.network.batch_norm_group:
                    described["batch_norm_group"] = config.network.batch_norm_group
                found[stage] = _figures(config, stage, where, described, compiler.programs)
            except OutOfMemory as error:
                raise UserError(f"{stage}: {error}; {_remedies(config, stage)}") from None
    return {
        "topology": where.topology,
        "chips": len(where.devices),
        "hosts": where.hosts,
        "chip": dataclasses.asdict(where.chip),
        "space": config.space.to_dict(),
        "stages": found,
    }


def _compile_search(
    config: ConfigDict, workdir: Any, mesh: Mesh, compiler: AheadCompiler
) -> dict[str, Any]:
    network = build.network(config, mesh=mesh)
    step = supernet.make_step(config, network, mesh.devices.size)
    if step.compiles_lazily:
        raise UserError(
            "search.hypergradient = exact: without search.fuse its mixed product is compiled only "
            "while it runs; set search.fuse=True"
        )
    state = search_template(config, network, mesh)
    step.compile_programs(compiler, state, build.batch_shapes(config, config.search, mesh))
    return {"hypergradient": config.search.hypergradient}


def _compile_train(
    config: ConfigDict, workdir: Any, mesh: Mesh, compiler: AheadCompiler
) -> dict[str, Any]:
    network, described = _derived(config, workdir, mesh)
    step = train_run.make_step(config, network)
    state = train_template(config, network, mesh)
    shapes = build.batch_shapes(config, config.train, mesh)
    step.compile_programs(compiler, state, shapes, train_run.kinds_of_steps(config.train))
    return described


def _compile_evaluate(
    config: ConfigDict, workdir: Any, mesh: Mesh, compiler: AheadCompiler
) -> dict[str, Any]:
    network, described = _derived(config, workdir, mesh)
    where = SingleDeviceSharding(mesh.devices.flat[0])  # each process restores its own pictures
    variables, picture = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        (
            variable_shapes(network),
            jax.ShapeDtypeStruct((*config.objectives.complexity_size, 3), jnp.uint8),
        ),
    )
    compiler(evaluate.restoring_program(network), variables, picture)
    return described


_COMPILE = {"search": _compile_search, "train": _compile_train, "evaluate": _compile_evaluate}


def _derived(
    config: ConfigDict, workdir: str | os.PathLike | None, mesh: Mesh
) -> tuple[Network, dict[str, Any]]:
    """The derived network, and where its genotype is from."""
    given = config.train.genotype or config.train.weights
    if given or (workdir and exists(as_path(workdir) / "genotype.json")):
        genotype: Genotype = find_genotype(config, workdir or "")
        origin = given or "the search"
    else:
        genotype, origin = alternating_genotype(SearchSpace(**config.space)), "alternating"
    return build.network(config, genotype, mesh), {"genotype": origin}


def _remedies(config: ConfigDict, stage: str) -> str:
    """Keys that make the programs of a stage smaller, as the end of an error message."""
    if stage == "evaluate":
        return "evaluate smaller pictures"
    options = config[stage]
    accumulate = f"{stage}.accumulate={2 * options.accumulate}"
    if stage == "search" and options.fuse:
        accumulate += " with search.fuse=False"
    keys = [
        *([] if config.network.remat else ["network.remat=True"]),
        *([] if config.network.dtype == "bfloat16" else ["network.dtype=bfloat16"]),
        accumulate,
        f"fewer than {options.scenes} {stage}.scenes or more chips",
        f"{stage}.crop below {options.crop}",
    ]
    return f"any of these helps: {', '.join(keys)}"


def _figures(
    config: ConfigDict,
    stage: str,
    where: tpu_slice.Slice,
    described: Mapping[str, Any],
    programs: Sequence[Program],
) -> dict[str, Any]:
    """What a stage's programs tell.

    Returns:
      'programs', each as `Program`; what is in `described`; of a step the 'images', rainy patches
      or pictures, of all chips, their 'pixels' and their 'bytes' with the clean ones;
      'compile_seconds' and 'compile_cpu_seconds'; of a chip 'memory_bytes', those of the largest
      program and the code of all; of a step (programs of 0 calls left out) 'flops', 'collectives',
      'optimal_seconds' and 'estimate_seconds', the compiler's lower bound and its estimate without
      collectives, the latter also in 'cycles_by_kind' and 'cycles_by_module'; from it
      'share_of_peak', 'images_per_second' of the slice and
      'host_bytes_per_second' of the input pipeline. What the compiler does not estimate is None.

    Raises:
      OutOfMemory: the programs do not fit together.
    """
    total, flops, optimal = Costs(), 0.0, 0.0
    for program in programs:
        total.add(program.costs, program.calls)
        flops += program.calls * program.flops
        optimal += program.calls * program.optimal_seconds
    memory = max(program.data_bytes for program in programs)
    memory += sum(program.code_bytes for program in programs)
    if memory > where.chip.memory:
        raise OutOfMemory("a step", memory, where.chip.memory)
    images, pixels, size = _input(config, stage, where)
    estimate = total.cycles / where.chip.clock
    rate = 1 / estimate if estimate else None
    return {
        **described,
        "programs": [dataclasses.asdict(program) for program in programs],
        "images": images,
        "pixels": pixels,
        "bytes": size,
        "compile_seconds": sum(program.seconds for program in programs),
        "compile_cpu_seconds": sum(program.cpu_seconds for program in programs),
        "memory_bytes": memory,
        "flops": flops,
        "collectives": total.collectives,
        "optimal_seconds": optimal if optimal > 0 else None,
        "estimate_seconds": estimate or None,
        "cycles_by_kind": dict(total.kinds),
        "cycles_by_module": dict(total.modules),
        "share_of_peak": rate and rate * flops / where.chip.peak_flops,
        "images_per_second": rate and rate * images,
        "host_bytes_per_second": rate and rate * size / where.hosts,
    }


def _input(
    config: ConfigDict, stage: str, where: tpu_slice.Slice
) -> tuple[int, tuple[int, int], int]:
    """Images of a step in all processes, their height and width, and bytes that hosts read."""
    if stage == "evaluate":
        height, width = config.objectives.complexity_size
        return where.hosts, (height, width), where.hosts * height * width * 3
    options, versions = config[stage], config.data.versions
    scenes = options.scenes * (2 if stage == "search" else 1)  # weights and architecture
    size = scenes * (versions + 1) * options.crop**2 * 3 * FLOAT
    return scenes * versions, (options.crop, options.crop), size


def text(figures: Mapping[str, Any]) -> str:
    """The figures of `run` for reading."""
    chip = figures["chip"]
    lines = [
        f"{figures['topology']}: chips {figures['chips']}, hosts {figures['hosts']}, "
        f"{_mib(chip['memory'])} MiB and {chip['peak_flops'] / 1e12:.0f} TFLOP/s a chip"
    ]
    for stage, found in figures["stages"].items():
        lines += ["", *_stage_lines(stage, found, chip["memory"])]
    return "\n".join(lines)


def _stage_lines(stage: str, found: Mapping[str, Any], memory: int) -> list[str]:
    kinds = ("hypergradient", "genotype", "dtype", "batch_norm_group")
    about = ", ".join(f"{kind}: {found[kind]}" for kind in kinds if kind in found)
    lines = [
        f"{stage} ({about})",
        f"  compiled in {found['compile_seconds']:.0f} s "
        f"({found['compile_cpu_seconds']:.0f} s of processors)",
    ]
    for program in found["programs"]:
        parts = ", ".join(
            f"{part} {_mib(program[f'{name}_bytes'])}"
            for part, name in (
                ("arguments", "argument"),
                ("results", "output"),
                ("temporaries", "temporary"),
                ("code", "code"),
            )
        )
        several = f", {program['calls']} calls a step"
        special = {0: ", in fewer of the steps (train.batch_norm)", 1: ""}
        calls = special.get(program["calls"], several)
        lines.append(f"  {program['name']}{calls}: {parts} MiB a chip")
    lines.append(f"  memory: {_mib(found['memory_bytes'])} of {_mib(memory)} MiB a chip: it fits")
    collectives = ", ".join(
        f"{part['count']} {kind} of {part['bytes'] / 1e6:.3f} MB"
        for kind, part in found["collectives"].items()
    )
    lines.append(f"  collectives a step: {collectives or 'none'}")
    lines.append(f"  arithmetic a step: {found['flops'] / 1e9:,.2f} GFLOP a chip")
    if found["estimate_seconds"] is None:
        return [*lines, "  the compiler estimates no time"]
    bound = found["optimal_seconds"]
    return [
        *lines,
        f"  compiler's estimate without collectives: {found['estimate_seconds'] * 1e3:.3f} ms a "
        f"step, {found['share_of_peak']:.1%} of the peak"
        + (f" (its lower bound: {bound * 1e3:.3f} ms)" if bound else ""),
        f"  of the estimate: {_shares(found['cycles_by_kind'])}",
        f"  most of it: {_shares(found['cycles_by_module'], 4)}",
        f"  at most {found['images_per_second']:,.0f} images/s, for which each host reads "
        f"{found['host_bytes_per_second'] / 1e6:,.1f} MB/s of patches",
    ]


def _shares(cycles: Mapping[str, int], number: int | None = None) -> str:
    """The largest shares as text."""
    found = collections.Counter(cycles).most_common(number)
    return ", ".join(f"{n / sum(cycles.values()):.0%} {name or 'no module'}" for name, n in found)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"


def main(config: ConfigDict, workdir: str | None) -> None:
    """Compiles and prints."""
    jax.config.update("jax_platforms", "cpu")  # a TPU of this machine is left alone
    # Programs of devices that are not there can be stored in the cache, but not loaded from it.
    jax.config.update("jax_enable_compilation_cache", False)
    check_local(_JSON.value)
    file = _JSON.value and pathlib.Path(_JSON.value)
    if file:
        check_writable(file, "--json")
    config.stage = _STAGE.value or config.stage
    with signals.interruptible():
        figures = run(config, tpu_slice.find(_TOPOLOGY.value), workdir)
    print(text(figures))
    if file:
        origin = {"provenance": provenance.describe()}
        origin["versions"] = {"libtpu": importlib.metadata.version("libtpu")}
        write_named_json(file, "--json", {**origin, **figures})


if __name__ == "__main__":
    app.start(main, required=("config", "topology"))
