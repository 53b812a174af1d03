"""Tables of docs/scaling.md, made of results/scaling.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.tables import load, table

STAGES = {"search": "search", "train": "training"}
PROGRAMS = {
    "search_architecture": "search, architecture",
    "search_weights": "search, weights",
    "train": "training",
}


def scaling_costs() -> str:
    """Cost of a step's programs on one device."""
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
    """Bytes of the all-reduces, counted and computed from the shapes of the parameters."""
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
    """Figures of the machines of the predictions."""
    head = [
        "machine", "devices", "hosts x hardware threads", "TFLOP/s", "memory GB", "GB/s",
        "links GB/s", "small all-reduce µs", "sources"
    ]  # fmt: skip
    rows = []
    for name, system in load("scaling")["systems"].items():
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
        "machine", "stage", "scenes/step", "compute ms", "limited by",
        "all-reduces ms (latency alone)", "step ms", "efficiency", "GB/device",
        "all steps of the stage"
    ]  # fmt: skip
    record, rows = load("scaling"), []
    for name, stages in record["predictions"].items():
        for stage, predicted in stages.items():
            hours = predicted["stage_seconds"] / 3600
            rows.append(
                [
                    name,
                    STAGES[stage],
                    str(predicted["scenes"]),
                    f"{predicted['compute'] * 1e3:.1f}",
                    predicted["bound"],
                    f"{predicted['reduce'] * 1e3:.1f} ({predicted['latency'] * 1e3:.1f})",
                    f"{predicted['step'] * 1e3:.1f}",
                    f"{predicted['efficiency']:.0%}",
                    f"{predicted['device_bytes'] / 1e9:.1f}",
                    f"{hours:.1f} h",
                ]
            )
    return table(head, rows)


def scaling_input() -> str:
    """Load of the input pipeline at the predicted steps, in cores per host."""
    head = [
        "machine", "stage", "images/s per host", "MB/s per host", "cores, files decoded each time",
        "cores, decoded pictures in memory", "hardware threads per host"
    ]  # fmt: skip
    record, rows = load("scaling"), []
    for name, stages in record["predictions"].items():
        for stage, predicted in stages.items():
            rows.append(
                [
                    name,
                    STAGES[stage],
                    f"{predicted['host_images']:,.0f}",
                    f"{predicted['host_bytes'] / 1e6:.0f}",
                    *(
                        f"{predicted['cores'][c]:.1f}"
                        for c in ("pipeline_files", "pipeline_cached")
                    ),
                    str(record["systems"][name]["vcpus"]),
                ]
            )
    return table(head, rows)


def scaling_pipeline() -> str:
    """Measured throughput of the input pipeline on one core."""
    head = ["pipeline", "images/s, median (range)", "matrix product GFLOP/s before, after"]
    rows = []
    for name, measured in load("scaling")["pipeline"].items():
        rates = [measured["images"] / measured["seconds"][key] for key in ("median", "max", "min")]
        rows.append(
            [
                name,
                "{:,.0f} ({:,.0f}-{:,.0f})".format(*rates),
                ", ".join(f"{rate:.0f}" for rate in measured["product_gflops"]),
            ]
        )
    return table(head, rows)


def _programs() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Size, program, its measurements by number of devices, and the record of the size.

    Programs without measurements on one device and on several are left out.
    """
    for size, part in load("scaling")["sizes"].items():
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
