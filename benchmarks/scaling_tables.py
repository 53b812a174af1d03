"""Tables of docs/scaling.md, from results/scaling.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.markdown import load, table

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
    return table(head, rows)


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
    return table(head, rows)


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
            parts = (expected.get(key, 0) for key in keys)
            numbers = [*parts, counted, counted - expected["total"]]
            rows.append([size, PROGRAMS[name], *(f"{number:,}" for number in numbers)])
    return table(head, rows)


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
    return table(head, rows)


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
    return table(head, rows)


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
    return table(head, rows)


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
    return table(head, rows)


def _scaling() -> dict[str, Any]:
    return load("scaling") or {}


def _programs() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Size, program, its measurements by devices, and all that was measured of the size.

    Those for one device have to be there, and others to compare with them.
    """
    for size, part in _scaling().get("sizes", {}).items():
        for name, programs in part["programs"].items():
            if {"1"} < programs.keys():
                yield size, name, programs, part


TABLES = {
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
}
