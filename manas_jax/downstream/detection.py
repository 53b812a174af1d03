"""Do detectors find more in de-rained pictures? Average precision before and after.

The truth is labels in COCO's format or, where there are none, what the detector itself finds in
the clean pictures: then it is agreement that is measured.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from manas_jax.data import images
from manas_jax.downstream import bootstrap, overlays
from manas_jax.downstream.average_precision import (
    SIZES,
    Boxes,
    Matches,
    annotations,
    average_precision,
    match,
    pool,
)
from manas_jax.downstream.detectors import YOLOX, Detector, DetectorLayout
from manas_jax.downstream.onnx_model import is_number, read_layout
from manas_jax.downstream.pictures import CLEAN, Comparison, measure_variants
from manas_jax.errors import UserError, check_extra, one_line
from manas_jax.files import first_few, sha256, write_json

SHOWN_SCORE = 0.5
"""Boxes with at least this score are drawn, are counted per picture, and are the truth of clean
pictures without labels."""

Prepared = tuple[Detector, "list[dict[str, Any]] | None"]
"""The detector, and the annotations of the clean pictures if there are labels."""

_AT_50 = slice(0, 1)  # of `average_precision.IOUS`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument("--detector", required=True, metavar="FILE.onnx", help="the detector")
    parser.add_argument(
        "--layout", metavar="FILE.json", help="its input and output (default: those of YOLOX)"
    )
    parser.add_argument(
        "--labels",
        metavar="COCO.json",
        help="the truth; without it the detector's own boxes in the clean pictures",
    )


def prepare(options: argparse.Namespace, compared: Comparison) -> Prepared:
    """Opens the detector and reads the labels.

    Raises:
      UserError: the detector has another layout, or the labels are of other pictures or classes.
    """
    check_extra("downstream", "pycocotools")
    labels = options.labels and read_labels(options.labels)
    layout = read_layout(options.layout, DetectorLayout) if options.layout else YOLOX
    detector = Detector(options.detector, layout)
    if not labels:
        return detector, None
    return detector, labelled_truth(options.labels, labels, compared.clean, detector.classes)


def run(
    options: argparse.Namespace,
    prepared: Prepared,
    compared: Comparison,
) -> dict[str, Any]:
    """Measures; returns the result, JSON-ready.

    Raises:
      UserError: the detector fails, or there are no boxes in the truth.
    """
    detector, labelled = prepared
    classes, file = detector.classes, pathlib.Path(options.detector)
    clean = [detector(images.read(path)) for path in tqdm(compared.clean, CLEAN, disable=None)]
    own = [boxes.above(SHOWN_SCORE) for boxes in clean]
    truth = annotations(own) if labelled is None else labelled
    if not truth:
        where = options.labels or f"{options.clean} with a score of at least {SHOWN_SCORE}"
        raise UserError(f"there are no boxes in {where}: nothing to compare with")
    present = sorted({one["category_id"] for one in truth})
    weights = bootstrap.picture_weights(len(clean), compared.seed)

    def scores(boxes: Sequence[Boxes]) -> dict[str, Any]:
        return _scores(match(truth, boxes, present), weights, [classes[i] for i in present])

    rows = {} if labelled is None else {CLEAN: scores(clean)}
    results, drawn = {}, {CLEAN: _listed(own, compared.clean, classes)}
    for kind in compared.rain:
        found = _detect(options, detector, compared, kind, own)
        drawn[kind] = {
            name: _listed([b.above(SHOWN_SCORE) for b in boxes], compared.clean, classes)
            for name, boxes in found.items()
        }
        measured = rows | {name: scores(boxes) for name, boxes in found.items()}
        results[kind] = bootstrap.with_gains(measured, options.against)
    if options.pictures:
        write_json(pathlib.Path(options.pictures) / "boxes.json", drawn)
    return {
        "task": "detection",
        "detector": {"file": file.name, "sha256": sha256(file)},
        "truth": "own boxes" if labelled is None else pathlib.Path(options.labels).name,
        "truth_score": SHOWN_SCORE if labelled is None else None,
        "boxes": len(truth),
        "resamples": bootstrap.RESAMPLES,
        **compared.record,
        "results": results,
    }


def _detect(
    options: argparse.Namespace,
    detector: Detector,
    compared: Comparison,
    kind: str,
    own: Sequence[Boxes],
) -> dict[str, list[Boxes]]:
    """Boxes in all pictures of every variant; draws them if that was asked for."""

    def draw(picture: np.ndarray, boxes: Boxes) -> np.ndarray:
        return overlays.draw_boxes(picture, boxes.above(SHOWN_SCORE), detector.classes)

    return measure_variants(
        compared,
        kind,
        detector,
        draw,
        truth=(CLEAN, own),
        folder=options.pictures,
    )


def _scores(
    matches: Mapping[str, Sequence[Matches]], weights: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Average precisions of one variant, for all resamples, and counts per picture."""
    everything = matches["all"]
    at_50 = [average_precision(one, weights, _AT_50) for one in everything]
    of_sizes = {
        size: bootstrap.mean_of_known([average_precision(one, weights) for one in matches[size]])
        for size in SIZES
    }
    return {
        "pooled_ap50": average_precision(pool(everything), weights, _AT_50, exact=True),
        "ap": of_sizes.pop("all"),
        "ap50": bootstrap.mean_of_known(at_50),
        "sizes": of_sizes,
        "classes_ap50": dict(zip(classes, at_50, strict=True)),
        "images": _counts(pool(everything)),
    }


def _counts(matches: Matches) -> list[dict[str, int]]:
    """Per picture the boxes of the truth, and those found and false with a score that is shown."""
    shown = (matches.scores >= SHOWN_SCORE) & ~matches.ignored[0]
    pictures = len(matches.truths)
    found, false = (
        np.bincount(matches.pictures[shown & chosen], minlength=pictures)
        for chosen in (matches.correct[0], ~matches.correct[0])
    )
    return [
        {"truth": int(t), "found": int(f), "false": int(n)}
        for t, f, n in zip(matches.truths, found, false, strict=True)
    ]


def _listed(
    boxes: Sequence[Boxes], clean: Sequence[pathlib.Path], classes: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Boxes by the name of their picture, JSON-ready."""
    return {
        path.name: [
            {"box": np.round(corners, 1), "score": round(float(score), 4), "class": classes[label]}
            for corners, score, label in zip(b.corners, b.scores, b.labels, strict=True)
        ]
        for path, b in zip(clean, boxes, strict=True)
    }


def read_labels(path: str | os.PathLike) -> dict[str, Any]:
    """Reads labels in COCO's format.

    Raises:
      UserError: the file cannot be read, or has no pictures, categories and boxes of that format.
    """
    try:
        with open(path, encoding="utf-8") as file:
            labels = json.load(file)
        for one in labels["images"]:
            _ = one["id"], one["file_name"] + ""
        for one in labels["categories"]:
            _ = one["id"], one["name"] + ""
        for one in labels["annotations"]:
            _ = one["id"], one["image_id"], one["category_id"]
            if len(one["bbox"]) != 4 or not all(map(is_number, one["bbox"])):
                raise ValueError(f"bbox {one['bbox']}")
            for key in ("area", "iscrowd"):
                if not is_number(one.get(key, 0)):
                    raise ValueError(f"{key} {one[key]}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        missing = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{path}: no labels in COCO's format ({missing})") from None
    return labels


def labelled_truth(
    path: str | os.PathLike,
    labels: dict[str, Any],
    clean: Sequence[pathlib.Path],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """The annotations of the clean pictures, numbered as these and as the detector's classes.

    Classes that the detector does not know are left out.

    Raises:
      UserError: a picture has no labels, those of another size or of several pictures of its
        name, or no class is known.
    """
    names = [pathlib.PurePath(one["file_name"]).name for one in labels["images"]]
    pictures, counts = dict(zip(names, labels["images"], strict=True)), collections.Counter(names)
    if unlabelled := [file.name for file in clean if file.name not in pictures]:
        raise UserError(f"{path}: has no labels of {first_few(unlabelled)}; give those of --clean")
    if several := [file.name for file in clean if counts[file.name] > 1]:
        raise UserError(
            f"{path}: labels several pictures of the name {first_few(several)}, in different "
            "folders; leave the others out"
        )
    for file in clean:
        one = pictures[file.name]
        sides = one.get("height"), one.get("width")
        if None not in sides and sides != images.size(file):
            raise UserError(
                f"{path}: labels {file.name} as {sides[1]}x{sides[0]} pixels, but it has "
                "{1}x{0}".format(*images.size(file))
            )
    numbers = {pictures[file.name]["id"]: i for i, file in enumerate(clean)}
    known = {
        one["id"]: classes.index(one["name"])
        for one in labels["categories"]
        if one["name"] in classes
    }
    if not known:
        names = first_few([one["name"] for one in labels["categories"]])
        raise UserError(f"{path}: the detector knows none of its classes ({names})")
    return [
        {
            "id": i,
            "image_id": numbers[one["image_id"]],
            "category_id": known[one["category_id"]],
            "bbox": one["bbox"],
            "area": one.get("area", one["bbox"][2] * one["bbox"][3]),
            "iscrowd": one.get("iscrowd", 0),
        }
        for i, one in enumerate(labels["annotations"], 1)
        if one["image_id"] in numbers and one["category_id"] in known
    ]


def table(result: Mapping[str, Any]) -> str:
    """Aligned text: one line per kind of rain and variant."""
    return bootstrap.table(result["results"], {"AP50, pooled": "pooled_ap50", "AP": "ap"})
