"""Table of the steps compiled for TPUs, made of results/pod/*.json."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from typing import Any

from benchmarks import RESULTS
from benchmarks.tables import table

SIZES = ("tiny", "small", "paper")
STAGES = ("search", "train", "evaluate")
KINDS = {"convolutions": "convolution", "copies": "copy", "other operations": "other"}
PARTS = {  # words in the names of the network's modules
    "stem": ("stem", "bottleneck"),
    "columns": ("column",),
    "attention": ("attention",),
    "transitions, head": ("transition", "fusion", "head"),
}


def pod() -> str:
    """What the compiler tells of each step, by size, stage and slice."""
    head = [
        "size", "stage", "slice", "images a step", "compile s, wall (processors)",
        "arguments, temporaries, code MiB/chip", "of MiB", "all-reduces", "MB",
        "GFLOP/chip", "estimate ms", "share of peak", "images/s", "MB/s per host"
    ]  # fmt: skip
    rows = []
    for size, stage, record, found in sorted(_results(), key=_order):
        reduces = found["collectives"].get("all-reduce", {"count": 0, "bytes": 0})
        wall, busy = found["compile_seconds"], found["compile_cpu_seconds"]
        parts = (
            max(program[f"{part}_bytes"] for program in found["programs"]) / 2**20
            for part in ("argument", "temporary", "code")
        )
        rows.append(
            [
                size,
                _name(stage, found),
                record["topology"],
                str(found["images"]),
                f"{wall:,.0f} ({busy:,.0f})",
                ", ".join(f"{part:,.0f}" for part in parts),
                f"{record['chip']['memory'] / 2**20:,.0f}",
                str(reduces["count"]),
                f"{reduces['bytes'] / 1e6:.3f}",
                f"{found['flops'] / 1e9:.3g}",
                f"{found['estimate_seconds'] * 1e3:.3g}",
                f"{100 * found['share_of_peak']:.2g}%",
                f"{found['images_per_second']:,.0f}",
                f"{found['host_bytes_per_second'] / 1e6:,.0f}",
            ]
        )
    return table(head, rows)


def _results() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Size, which the name of the file begins with, stage, the file, and the stage in it."""
    for file in (RESULTS / "pod").glob("*.json"):
        record = json.loads(file.read_text())
        for stage, found in record["stages"].items():
            yield file.stem.partition("_")[0], stage, record, found


def _order(result: tuple[str, str, dict[str, Any], dict[str, Any]]) -> tuple:
    size, stage, record, found = result
    where = record["topology"].partition(":")[0], record["chips"]
    return SIZES.index(size), STAGES.index(stage), _name(stage, found), where


def _name(stage: str, found: dict[str, Any]) -> str:
    kind = found.get("hypergradient", "").replace("_", " ")
    group = found.get("batch_norm_group", 0)
    return ", ".join(
        filter(None, [stage, kind, found.get("dtype"), group and f"BatchNorm groups of {group}"])
    )


def pod_estimates() -> str:
    """Where the estimated time goes, by kind of operation and by part of the network."""
    head = [
        "size", "stage", "slice", "images a step", "estimate ms", *KINDS, *PARTS, "loss, updates"
    ]  # fmt: skip
    rows = []
    for size, stage, record, found in sorted(_results(), key=_order):
        kinds = collections.Counter(found.get("cycles_by_kind"))
        if not kinds.total():
            continue
        parts: collections.Counter[str] = collections.Counter()
        for module, cycles in found["cycles_by_module"].items():
            parts[_part(module)] += cycles
        shares = [*(kinds[kind] for kind in KINDS.values()), *(parts[part] for part in PARTS)]
        rows.append(
            [
                size,
                _name(stage, found),
                record["topology"],
                str(found["images"]),
                f"{found['estimate_seconds'] * 1e3:.3g}",
                *(f"{share / kinds.total():.0%}" for share in (*shares, parts[""])),
            ]
        )
    return table(head, rows)


def _part(module: str) -> str:
    """A key of `PARTS`, or '' for what belongs to no module of the network."""
    name = module.lower()
    return next((part for part, words in PARTS.items() if any(w in name for w in words)), "")


TABLES = {"pod": pod, "pod_estimates": pod_estimates}
