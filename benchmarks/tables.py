"""Builds the documents' tables from results/: each stands between two comments that name it.

python -m benchmarks.tables           writes them into README.md and docs/scaling.md
python -m benchmarks.tables --check   says which documents are out of date, and fails
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "scaling.md")
RUNS = {
    "quickstart": "quickstart: embedded photographs, synthetic rain, 3 held out",
    "rain100l": "rain100l: Rain100L, 100 test pairs",
}

PRETRAINED = ("rain100l", "general")


def scores() -> str:
    """PSNR and SSIM of the runs, before and after, with what the network costs."""
    head = [
        "run", "PSNR / SSIM on Y", "on RGB", "parameters", "GFLOP a picture", "seconds a picture"
    ]  # fmt: skip
    rows = []
    for name, title in RUNS.items():
        if (run := _load(name)) is None:
            continue
        result = run["evaluate"]
        before, after = (result["mean"][side] for side in ("input", "output"))
        rows.append(
            [
                title,
                *(
                    f"{before[f'{c}_psnr']:.2f} / {before[f'{c}_ssim']:.3f} → "
                    f"**{after[f'{c}_psnr']:.2f} / {after[f'{c}_ssim']:.3f}**"
                    for c in ("y", "rgb")
                ),
                *_costs(result),
            ]
        )
    return _table(head, rows)


def budgets() -> str:
    """What the runs took and where they ran."""
    head = ["run", "search", "training", "seed", "machine", "commits, date"]
    rows = []
    for name in RUNS:
        if (run := _load(name)) is None:
            continue
        origin = run["provenance"][-1]
        rows.append(
            [
                name,
                *(_budget(run[stage]) for stage in ("search", "train")),
                str(run["config"]["seed"]),
                f"{origin['machine']['processor']}, {origin['machine']['cores']} cores, "
                f"jax {origin['versions']['jax']}",
                ", ".join(dict.fromkeys(start["commit"][:9] for start in run["provenance"]))
                + f", {origin['date'][:10]}",
            ]
        )
    return _table(head, rows)


def pretrained() -> str:
    """Scores of the weights in the package on Rain100L's test pairs, and what they cost."""
    head = [
        "weights", "PSNR / SSIM on Y", "with `--self-ensemble`", "parameters", "GFLOP a picture",
        "seconds a picture", "training, validation"
    ]  # fmt: skip
    rows = []
    for name in PRETRAINED:
        if (record := _load(f"pretrained_{name}")) is None:
            continue
        result, train = record["evaluate"], record["training"]["train"]
        before, after, ensemble = (
            "{y_psnr:.2f} / {y_ssim:.3f}".format(**result["mean"][kind])
            for kind in ("input", "output", "self_ensemble")
        )
        rows.append(
            [
                f"[{name}](results/pretrained_{name}.svg)",
                f"{before} → **{after}**",
                ensemble,
                *_costs(result),
                f"{_budget(train)}, {train['validation']['psnr']:.2f} dB",
            ]
        )
    return _table(head, rows)


# Scaling, by `benchmarks.scaling`

STAGES = {"search": "search", "train": "training"}
PROGRAMS = {
    "search_architecture": "search, architecture",
    "search_weights": "search, weights",
    "train": "training",
}


def scaling_costs() -> str:
    """What the programs of a step cost on one device."""
    head = [
        "size", "program", "scenes", "GFLOP", "parameters MB", "optimizer MB",
        "activations and other temporaries GB", "memory traffic GB"
    ]  # fmt: skip
    rows = []
    for size, name, programs, part in _programs():
        one, state = programs["1"], part["state_bytes"][name]
        rows.append(
            [
                size,
                PROGRAMS[name],
                str(one["scenes"]),
                f"{one['flops'] / 1e9:,.0f}",
                f"{state['weights'] / 1e6:.3g}",
                f"{state['optimizer'] / 1e6:.3g}",
                f"{one['temporary_bytes'] / 1e9:.3g}",
                f"{one['device_bytes_accessed'] / 1e9:.3g}",
            ]
        )
    return _table(head, rows)


def scaling_collectives() -> str:
    """All-reduces in the compiled programs, by number of simulated devices."""
    head = [
        "size", "program", "devices", "all-reduces", "MB", "other collectives",
        "operations of all devices over those of one"
    ]  # fmt: skip
    rows = []
    for size, name, programs, _ in _programs():
        for devices in sorted(programs, key=int):
            measured = programs[devices]
            kinds = dict(measured["collectives"])
            reduces = kinds.pop("all-reduce", {"count": 0, "bytes": 0})
            ratio = int(devices) * measured["device_flops"] / programs["1"]["device_flops"]
            rows.append(
                [
                    size,
                    PROGRAMS[name],
                    devices,
                    str(reduces["count"]),
                    f"{reduces['bytes'] / 1e6:.3f}",
                    ", ".join(f"{v['count']} {kind}" for kind, v in kinds.items()) or "none",
                    f"{ratio:.3f}",
                ]
            )
    return _table(head, rows)


def scaling_arithmetic() -> str:
    """The bytes of the all-reduces against arithmetic on the parameters' shapes."""
    head = [
        "size", "program", "parameters", "kernels summed as products", "layers used twice",
        "BatchNorm", "together", "counted", "difference"
    ]  # fmt: skip
    rows = []
    for size, name, programs, part in _programs():
        if expected := part["reduced_bytes"].get(name):
            counted = programs[max(programs, key=int)]["collectives"]["all-reduce"]["bytes"]
            keys = ("parameters", "factored", "shared", "statistics", "total")
            numbers = [*(expected[key] for key in keys), counted, counted - expected["total"]]
            rows.append([size, PROGRAMS[name], *(f"{number:,}" for number in numbers)])
    return _table(head, rows)


def scaling_systems() -> str:
    """The figures of the machines that the predictions are made for."""
    head = [
        "machine", "devices", "hosts x hardware threads", "TFLOP/s", "memory GB", "GB/s",
        "links GB/s", "small all-reduce µs", "sources"
    ]  # fmt: skip
    rows = []
    for name, system in _scaling().get("systems", {}).items():
        sources = ", ".join(f"[{i}]({url})" for i, url in enumerate(system["sources"], 1))
        rows.append(
            [
                name,
                str(system["devices"]),
                f"{system['hosts']} x {system['vcpus']}",
                f"{system['flops'] / 1e12:.0f}",
                f"{system['memory'] / 1e9:.0f}",
                f"{system['memory_bandwidth'] / 1e9:,.0f}",
                f"{system['link_bandwidth'] / 1e9:.0f}",
                f"{system['latency'] * 1e6:.1f}",
                sources,
            ]
        )
    return _table(head, rows)


def scaling_predictions() -> str:
    """Predicted steps of the paper's networks."""
    head = [
        "machine", "stage", "scenes a step", "computing ms", "limited by",
        "all-reduces ms (latency alone)", "step ms", "efficiency", "memory a device GB",
        "all steps of the stage"
    ]  # fmt: skip
    record, rows = _scaling(), []
    for name, stages in record.get("predictions", {}).items():
        for stage, made in stages.items():
            hours = made["stage_seconds"] / 3600
            rows.append(
                [
                    name,
                    STAGES[stage],
                    str(made["scenes"]),
                    f"{made['compute'] * 1e3:.1f}",
                    made["bound"],
                    f"{made['reduce'] * 1e3:.1f} ({made['latency'] * 1e3:.1f})",
                    f"{made['step'] * 1e3:.1f}",
                    f"{made['efficiency']:.0%}",
                    f"{made['device_bytes'] / 1e9:.1f}",
                    f"{hours:.1f} h",
                ]
            )
    return _table(head, rows)


def scaling_input() -> str:
    """What the input pipeline has to deliver at the predicted steps, and whether it does."""
    head = [
        "machine", "stage", "images/s a host", "MB/s a host", "cores, files decoded each time",
        "cores, pictures kept in memory", "hardware threads a host"
    ]  # fmt: skip
    record, rows = _scaling(), []
    for name, stages in record.get("predictions", {}).items():
        for stage, made in stages.items():
            rows.append(
                [
                    name,
                    STAGES[stage],
                    f"{made['host_images']:,.0f}",
                    f"{made['host_bytes'] / 1e6:.0f}",
                    *(f"{made['cores'][c]:.1f}" for c in ("pipeline_files", "pipeline_cached")),
                    str(record["systems"][name]["vcpus"]),
                ]
            )
    return _table(head, rows)


def scaling_pipeline() -> str:
    """What one core's input pipeline was measured to deliver."""
    head = ["pipeline", "images/s, median (range)", "matrix product GFLOP/s before, after"]
    rows = []
    for name, made in _scaling().get("pipeline", {}).items():
        rates = [made["images"] / made["seconds"][key] for key in ("median", "max", "min")]
        rows.append(
            [
                name,
                "{:,.0f} ({:,.0f}-{:,.0f})".format(*rates),
                ", ".join(f"{rate:.0f}" for rate in made["product_gflops"]),
            ]
        )
    return _table(head, rows)


def _scaling() -> dict[str, Any]:
    return _load("scaling") or {}


def _programs() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Size, program, its measurements by devices, and all that was measured of the size.

    Those for one device have to be there, and others to compare with them.
    """
    for size, part in _scaling().get("sizes", {}).items():
        for name, programs in part["programs"].items():
            if {"1"} < programs.keys():
                yield size, name, programs, part


TABLES = {
    "scores": scores,
    "budgets": budgets,
    "pretrained": pretrained,
    **{
        make.__name__: make
        for make in (
            scaling_costs,
            scaling_collectives,
            scaling_arithmetic,
            scaling_systems,
            scaling_predictions,
            scaling_pipeline,
            scaling_input,
        )
    },
}


def fill(text: str) -> str:
    """The text with the tables in place of what stands between their comments."""
    for name, make in TABLES.items():
        block = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        made = make()
        text = block.sub(lambda match, made=made: f"{match[1]}{made}{match[2]}", text)
    return text


def _costs(result: dict[str, Any]) -> list[str]:
    """Parameters, GFLOP and seconds a picture."""
    return [
        f"{result['parameters']:,}",
        f"{2 * result['macs'] / 1e9:.1f} at {'x'.join(map(str, result['macs_at']))}",
        f"{result['seconds_a_picture']:.2f}",
    ]


def _budget(summary: dict[str, Any]) -> str:
    minutes = (summary["seconds"] + summary["compile_seconds"]) / 60
    return f"{summary['steps']:,} steps, {minutes:.0f} min"


def _load(name: str) -> dict[str, Any] | None:
    file = ROOT / "results" / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for document in DOCUMENTS:
        before = document.read_text()
        after = fill(before)
        if before != after:
            stale.append(document.name)
            if not options.check:
                document.write_text(after)
    if options.check and stale:
        sys.exit(f"{', '.join(stale)}: run python -m benchmarks.tables")
