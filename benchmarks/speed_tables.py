"""Tables of what everything takes, from what `benchmarks.speed` left in results/."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from benchmarks import checkouts, parts, picture_parts, ratios, speed
from benchmarks.markdown import load, machine, table

TITLES = {
    "search_first_order_small": "search step, first order, small",
    "search_finite_difference_small": "search step, finite difference, small",
    "search_exact_small": "search step, exact, small",
    "search_first_order_paper": "search step, first order, paper's size",
    "train_small": "training step, derived small",
    "train_paper": "training step, derived paper's size",
    "inference_320x480_small": "a picture of 320x480, derived small",
    "inference_320x480_paper": "a picture of 320x480, derived paper's size",
    "inference_1080p_small": "a picture of 1920x1080, derived small",
    "inference_1080p_frames_small": "8 frames of a video of 1920x1080, derived small",
    "inference_4k_small": "a picture in 4K by tiles, derived small",
    "pipeline_files": "a training batch from PNG files, one core",
    "pipeline_cached": "a training batch from the cache, one core",
    "pipeline_disk": "a training batch from decoded pictures on disk, one core",
    "losses": "gradients of the losses alone",
    "evaluation_small": "a picture of 320x480 restored and scored",
}


def _cases(name: str) -> dict[str, Any]:
    """The cases of a results file that were measured, by name."""
    return {key: case for key, case in load(name)["cases"].items() if "error" not in case}


def measured(name: str = "speed", released: bool = True) -> str:
    """Steps, memory and the time to the first step, beside the released code if wanted."""
    head = [
        "work", "seconds", *["times as fast as released code (at equal product)"] * released,
        "share of product", "first step s, cold / warm", "peak GB, cold / warm", "product GFLOP/s",
    ]  # fmt: skip
    rows = []
    for key, case in _cases(name).items():
        if key in TITLES:
            rows.append(
                [
                    TITLES[key],
                    _seconds(case),
                    *[speed.against_released(key, case, digits=1)] * released,
                    f"{case['share_of_product']:.0%}" if case["gflop"] else "-",
                    _both(case["first_step_seconds"], 1),
                    _both(case["peak_gb"], 2),
                    _product(case),
                ]
            )
    return f"{_origin(name)}\n\n{table(head, rows)}"


def against_released(name: str, released: str) -> str:
    """Steps and memory beside those of the released code on the same machine."""
    head = [
        "work", "released code s", "here s", "times as fast", "peak GB, released code / here, warm"
    ]  # fmt: skip
    ours, rows = _cases(name), []
    for key, theirs in _cases(released).items():
        case = ours[key]
        ratio = theirs["seconds"]["median"] / case["seconds"]["median"]
        peaks = f"{theirs['peak_gb']:.2f} / {case['peak_gb']['warm']:.2f}"
        rows.append([TITLES[key], _seconds(theirs), _seconds(case), f"{ratio:.1f}", peaks])
    torch = next(iter(_cases(released).values()))["torch"]
    return f"{_origin(released)[:-1]}; PyTorch {torch}.\n\n{table(head, rows)}"


def doublings(name: str = "speed") -> str:
    """What each doubling costs."""
    rows = speed.size_costs(_cases(name))
    return table(["doubled", "times the cost (range)"], rows)


def before_and_after(name: str, *results: str) -> str:
    """A case in several results files, the oldest first, all from one kind of machine."""
    head = [
        "commit", "seconds", "product GFLOP/s", "first step s, cold / warm", "peak GB, cold / warm"
    ]  # fmt: skip
    rows = []
    for result in results:
        case = _cases(result)[name]
        rows.append(
            [
                case["commit"][:9],
                _seconds(case),
                _product(case),
                _both(case["first_step_seconds"], 1),
                _both(case["peak_gb"], 2),
            ]
        )
    return table(head, rows)


def in_turn(command: ModuleType, name: str) -> str:
    """What cases cost against each other or other commits, as `ratios` or `checkouts` has it."""
    record = load(name)
    origins = dict.fromkeys(
        f"{len(next(iter(one['seconds'].values())))} rounds; {machine(one['provenance'])}."
        for one in record
    )
    made = table(command.HEAD, [command.row(one) for one in record])
    return f"{' '.join(origins)}\n\n{made}"


def parts_of_a_step(name: str = "parts") -> str:
    """Where a step of the small search spends its time."""
    record = load(name)
    step = statistics.median(record["step_seconds"])
    made = (
        f"A step took {step:.3g} s, the product {record['product_gflops']:.0f} GFLOP/s; compiling "
        f"{record['compiler_seconds']:.0f} s in all threads. {machine(record['provenance'])}."
    )
    return f"{made}\n\n{table(parts.HEAD, parts.rows(record))}"


def parts_of_a_picture(size: str) -> str:
    """Where de-raining a picture of this size of network spends its time."""
    record = load("picture_parts")
    made = f"{picture_parts.summary(record, size)}. {machine(record['provenance'])}."
    return f"{made}\n\n{table(picture_parts.HEAD, picture_parts.rows(record[size]))}"


def _origin(name: str) -> str:
    record = load(name)
    return f"Measured on {machine(record['provenance'])}; median of {record['runs']} runs (range)."


def _seconds(case: Mapping[str, Any]) -> str:
    return speed.ranged(case["seconds"], ".3g")


def _product(case: Mapping[str, Any]) -> str:
    return f"{statistics.mean(case['product_gflops']):.0f}"


def _both(values: Mapping[str, float], digits: int) -> str:
    return " / ".join(f"{values[key]:.{digits}f}" for key in ("cold", "warm"))


TABLES = {
    "speed_genoa": functools.partial(measured, "speed_genoa"),
    "speed_genoa_ratios": functools.partial(in_turn, ratios, "ratios_genoa"),
    "speed_genoa_second_order": functools.partial(in_turn, ratios, "ratios_genoa_second"),
    "speed_start": functools.partial(
        before_and_after,
        "search_first_order_small",
        *(f"speed_start_{when}_{i}" for i in (1, 2, 3) for when in ("after", "before")),
    ),
    "speed_epyc": functools.partial(measured, "speed_epyc", released=False),
    "speed_epyc_released": functools.partial(against_released, "speed_epyc", "released_epyc"),
    "speed_epyc_doublings": functools.partial(doublings, "speed_epyc"),
    "speed_emerald": functools.partial(measured, "speed_emerald", released=False),
    "speed_separable": functools.partial(measured, "speed_separable", released=False),
    "speed_minimal": functools.partial(measured, "speed_minimal", released=False),
    "speed_checkouts": functools.partial(in_turn, checkouts, "checkouts"),
    "speed_separable_ratios": functools.partial(in_turn, ratios, "ratios_separable"),
    "speed_frames": functools.partial(
        before_and_after,
        "inference_1080p_frames_small",
        "speed_tiles_before",
        "speed_frames",
    ),
    "speed_tiles_1080p": functools.partial(
        before_and_after, "inference_1080p_small", "speed_tiles_before", "speed_tiles"
    ),
    "speed_tiles_4k": functools.partial(
        before_and_after, "inference_4k_small", "speed_tiles_before", "speed_tiles"
    ),
    "speed_ratios": functools.partial(in_turn, ratios, "ratios"),
    "speed_epyc_parts": functools.partial(parts_of_a_step, "parts_epyc"),
    "speed_picture_parts_small": functools.partial(parts_of_a_picture, "small"),
    "speed_picture_parts_paper": functools.partial(parts_of_a_picture, "paper"),
    "speed": measured,
    "speed_doublings": doublings,
    "speed_later": functools.partial(measured, "speed_later"),
    "speed_before_and_after": functools.partial(
        before_and_after, "search_first_order_small", "speed_before", "speed", "speed_later"
    ),
    "speed_same_hour_search": functools.partial(
        before_and_after, "search_first_order_small", "speed_hour_before", "speed_hour_after"
    ),
    "speed_same_hour_train": functools.partial(
        before_and_after, "train_small", "speed_hour_before", "speed_hour_after"
    ),
    "speed_parts": parts_of_a_step,
}
