"""Tables of speed, one folder of results/speed/ for each machine."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from benchmarks import RESULTS, profile
from benchmarks.speed import cold_and_warm, ranged
from benchmarks.tables import load, origin, table

TITLES = {
    "search_first_order_small": "search step, first order, small",
    "search_finite_difference_small": "search step, finite difference, small",
    "search_exact_small": "search step, exact, small",
    "search_first_order_paper": "search step, first order, paper's size",
    "train_small": "training step, derived small",
    "train_paper": "training step, derived paper's size",
    "inference_320x480_small": "320x480 image, derived small",
    "inference_320x480_paper": "320x480 image, derived paper's size",
    "inference_1080p_small": "1920x1080 image, derived small",
    "inference_1080p_frames_small": "8 frames of a 1920x1080 video, derived small",
    "inference_4k_small": "4K image by tiles, derived small",
    "pipeline_files": "training batch from PNG files, one core",
    "pipeline_cached": "training batch from memory, one core",
    "pipeline_disk": "training batch from decoded files on disk, one core",
    "losses": "gradients of the losses alone",
    "evaluation_small": "320x480 image restored and scored",
}


def speed(machine: str) -> str:
    """Steps, memory and first steps, beside the released code if it was measured with them."""
    record, theirs = load(f"speed/{machine}/speed"), _released(machine)
    beside = ["released code s, peak GB", "times as fast"] if theirs else []
    head = ["work", "s/step (range)", *beside, "share of product", "first step s, cold / warm",
            "peak GB, cold / warm", "matmul GFLOP/s"]  # fmt: skip
    rows = []
    for key, title in TITLES.items():
        if (case := record["cases"].get(key)) is None or "error" in case:
            continue
        beside = ["-", "-"] if theirs else []
        if released := theirs.get(key):
            ratio = released["seconds"]["median"] / case["seconds"]["median"]
            seconds = ranged(released["seconds"], ".3g")
            beside = [f"{seconds}, {released['peak_gb']:.2f}", f"{ratio:.1f}"]
        rows.append(
            [
                title,
                ranged(case["seconds"], ".3g"),
                *beside,
                f"{case['share_of_product']:.0%}" if case["gflop"] else "-",
                cold_and_warm(case["first_step_seconds"], 1),
                cold_and_warm(case["peak_gb"], 2),
                f"{statistics.mean(case['product_gflops']):.0f}",
            ]
        )
    notes = f"{origin(record['provenance'])}; median of {record['runs']} runs"
    if theirs:
        notes += f"; PyTorch {next(iter(theirs.values()))['torch']}"
    return f"{notes}.\n\n{table(head, rows)}"


def _released(machine: str) -> dict[str, Any]:
    """The cases of the released code, if they were measured on this machine at the same commit."""
    if not (RESULTS / "speed" / machine / "released.json").exists():
        return {}
    ours, theirs = (load(f"speed/{machine}/{name}") for name in ("speed", "released"))
    for key in ("machine", "commit"):
        if ours["provenance"][key] != theirs["provenance"][key]:
            raise ValueError(f"results/speed/{machine}: speed and released differ in {key}")
    return theirs["cases"]


def ratios(*machines: str) -> str:
    """Costs relative to other cases, timed with interleaved runs."""
    columns = {m: {(x["base"], x["case"]): x for x in load(f"speed/{m}/ratios")} for m in machines}
    pairs = dict.fromkeys(pair for column in columns.values() for pair in column)
    rows = [
        [
            case,
            base,
            *(
                ranged(column[base, case]["ratio"], ".2f") if (base, case) in column else "-"
                for column in columns.values()
            ),
        ]
        for base, case in pairs
    ]
    origins = dict.fromkeys(
        f"{machine}: {len(next(iter(entry['seconds'].values())))} rounds; "
        f"{origin(entry['provenance'])}."
        for machine, column in columns.items()
        for entry in column.values()
    )
    return f"{' '.join(origins)}\n\n{table(['case', 'against', *machines], rows)}"


def gradient_parts(machine: str) -> str:
    """Time by block of a gradient of the small search, in older records of a whole step."""
    record = load(f"speed/{machine}/parts")
    what = "step" if "step_seconds" in record else "gradient"
    seconds = statistics.median(record.get("step_seconds") or record["seconds"])
    notes = f"A {what} takes {seconds:.3g} s; {origin(record['provenance'])}."
    return f"{notes}\n\n{table(profile.GRADIENT_HEAD, profile.gradient_rows(record))}"


def image_parts(machine: str, size: str) -> str:
    """Time by block of an image, with this size of network."""
    record = load(f"speed/{machine}/picture_parts")
    cores = record["provenance"]["machine"]["cores"]
    notes = f"{profile.image_summary(record[size], cores)}; {origin(record['provenance'])}."
    return f"{notes}\n\n{table(profile.IMAGE_HEAD, profile.image_rows(record[size]))}"


TABLES = {
    **{f"speed_{name}": functools.partial(speed, name) for name in ("epyc", "genoa", "xeon")},
    "speed_ratios": functools.partial(ratios, "epyc", "genoa"),
    "speed_engines": functools.partial(ratios, "engines"),
    "speed_parts_epyc": functools.partial(gradient_parts, "epyc"),
    "speed_parts_xeon": functools.partial(gradient_parts, "xeon"),
    "speed_picture_parts_small": functools.partial(image_parts, "xeon", "small"),
    "speed_picture_parts_paper": functools.partial(image_parts, "xeon", "paper"),
}
