"""Tables of docs/downstream.md, made of results/downstream/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.tables import load, origin, table
from manas_jax.downstream import bootstrap
from manas_jax.downstream.bootstrap import text

SHOWN = {"general": "general (302318c)"}
"""Names of rows in the tables, where the package now ships other weights of the name."""


def detection() -> str:
    """Average precision by variant of the pictures."""
    result = load("downstream/detection_rain100l")
    head = ["pictures", "AP50, pooled", f"minus {result['against']}", "AP",
            f"minus {result['against']}", "boxes found", "false boxes"]  # fmt: skip
    rows = [
        [
            name,
            *_estimates(row, ("pooled_ap50", "ap")),
            *(f"{sum(image[key] for image in row['images'])}" for key in ("found", "false")),
        ]
        for _, name, row in _rows(result)
    ]
    facts = (
        f"{len(result['pictures'])} pictures, {result['boxes']} boxes in the truth; "
        f"{origin(result['provenance'])}."
    )
    return f"{facts}\n\n{table(head, rows)}"


def detection_parts() -> str:
    """Average precision by size and by class."""
    found = list(_rows(load("downstream/detection_rain100l")))
    rows = [
        [f"{part} boxes, AP", *(_value(row["sizes"][part]) for _, _, row in found)]
        for part in found[0][2]["sizes"]
    ]
    rows += [
        [f"{part}, AP50", *(_value(row["classes_ap50"][part]) for _, _, row in found)]
        for part in found[0][2]["classes_ap50"]
    ]
    return table(["", *(name for _, name, _ in found)], rows)


def segmentation() -> str:
    """Mean IoU by level of rain and variant of the pictures."""
    result = load("downstream/segmentation_camvid")
    head = ["rain", "pictures", "mIoU", f"minus {result['against']}"]
    rows = [[kind, name, *_estimates(row, ("miou",))] for kind, name, row in _rows(result)]
    for row in rows:
        if row[0] == "none":  # its gain depends on the rain that it is compared with
            row[-1] = "–"
    recipe = result["segmenter"]
    height, width = recipe["size"]
    facts = (
        f"{len(result['pictures'])} pictures, rain of seed {result['seed']}; segmenter trained for "
        f"{recipe['steps']} steps of {recipe['batch']} pictures at {width}x{height}; "
        f"{origin(result['provenance'])}."
    )
    return f"{facts}\n\n{table(head, rows)}"


def segmentation_classes() -> str:
    """IoU of each class."""
    result = load("downstream/segmentation_camvid")
    rows = [
        [kind, name, *map(_value, row["classes_iou"].values())] for kind, name, row in _rows(result)
    ]
    return table(["rain", "pictures", *result["classes"]], rows)


def guided_filter() -> str:
    """What the parameters of the guided filters were chosen by."""
    result = load("downstream/guided_filter")
    best = max(result["grid"], key=lambda row: row["y_psnr"])
    chosen = ", ".join(f"{key} {value}" for key, value in result["chosen"].items())
    return (
        f"{len(result['grid'])} combinations on {len(result['pictures'])} training pairs, whose "
        f"mean PSNR on Y rises from {result['rainy_y_psnr']:.2f} to {best['y_psnr']:.2f} dB with "
        f"{chosen}; {origin(result['provenance'])}.\n"
    )


def feature_loss() -> str:
    """A training with the feature loss compared with one without it."""
    names = ("plain", "feature")
    detection, segmentation = (
        load(f"downstream/feature_loss_{task}") for task in ("detection", "segmentation")
    )
    against, psnr = detection["against"], _psnr(names, detection["against"])
    found = {"Rain100L, PSNR on Y, dB": {name: psnr[name]["psnr"] for name in names}}
    (rows,) = detection["results"].values()
    found["Rain100L, AP50, pooled"] = {name: rows[name]["pooled_ap50"] for name in names}
    found["Rain100L, AP"] = {name: rows[name]["ap"] for name in names}
    for level, rows in segmentation["results"].items():
        found[f"CamVid, {level} rain, mIoU"] = {name: rows[name]["miou"] for name in names}
    cells = [
        [measured, *(text(rows[name]) for name in names), text(rows["feature"]["gain"], "+")]
        for measured, rows in found.items()
    ]
    head = ["pictures, score", *names, f"feature minus {against}"]
    facts = f"{len(detection['pictures'])} and {len(segmentation['pictures'])} pictures"
    return f"{facts}; {origin(detection['provenance'])}.\n\n{table(head, cells)}"


def _psnr(names: Sequence[str], against: str) -> dict[str, Any]:
    """By name the mean PSNR on Y, with its gain over that of `against`."""
    rows = {}
    for name in names:
        images = load(f"downstream/feature_loss_psnr_{name}")["images"]
        weights = bootstrap.picture_weights(len(images), seed=0)
        rows[name] = {"psnr": weights @ [image["y_psnr"] for image in images] / len(images)}
    return bootstrap.with_gains(rows, against)


def _rows(result: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Kind of rain, variant and figures; the clean pictures once, as they have no rain."""
    found = {
        ("none" if name == "clean" else kind, SHOWN.get(name, name)): row
        for kind, rows in result["results"].items()
        for name, row in rows.items()
    }
    return [(kind, name, row) for (kind, name), row in found.items()]


def _estimates(row: dict[str, Any], keys: Sequence[str]) -> list[str]:
    return [cell for key in keys for cell in (text(row[key]), text(row[key]["gain"], "+"))]


def _value(found: dict[str, Any]) -> str:
    return "–" if found["value"] is None else f"{found['value']:.2f}"


TABLES = {
    f"downstream_{make.__name__}": make
    for make in (
        detection,
        detection_parts,
        segmentation,
        segmentation_classes,
        guided_filter,
        feature_loss,
    )
}
