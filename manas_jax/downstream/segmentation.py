"""Are de-rained pictures segmented better? Mean IoU before and after.

The truth is masks or, where there are none, what the segmenter itself makes of the clean pictures:
then it is agreement that is measured. The segmenter is an ONNX model, or a small one that is
trained on clean pictures and kept in the cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from manas_jax.data import images
from manas_jax.downstream import bootstrap, overlays, segmenters
from manas_jax.downstream.onnx_model import Input, read_layout
from manas_jax.downstream.pictures import CLEAN, Comparison, counterparts, measure_variants
from manas_jax.downstream.segmenters import OnnxSegmenter, Recipe, Segment, read_mask
from manas_jax.errors import UserError
from manas_jax.files import first_few, sha256

_STRETCH = Input(resize="stretch")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What was opened before anything was computed.

    Attributes:
      onnx: the segmenter, unless one is trained.
      classes: names.
      masks: of the clean pictures, uint8 (H, W), or None.
    """

    onnx: OnnxSegmenter | None
    classes: Sequence[str]
    masks: Sequence[np.ndarray] | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--train", metavar="DIR", help="train a small one on DIR/images and DIR/masks"
    )
    source.add_argument("--segmenter", metavar="FILE.onnx", help="the segmenter")
    parser.add_argument("--layout", metavar="FILE.json", help="how its input is prepared")
    parser.add_argument(
        "--classes", metavar="A,B,…", help="names of the classes 0, 1, …; others count nowhere"
    )
    parser.add_argument(
        "--masks",
        metavar="DIR",
        help="the truth, paired by name; without it the segmenter's masks of the clean pictures",
    )
    parser.add_argument("--steps", type=int, help=f"of training ({Recipe.steps})")


def prepare(options: argparse.Namespace, compared: Comparison) -> Prepared:
    """Opens the segmenter and finds the masks.

    Raises:
      UserError: one of them cannot be used; says why.
    """
    onnx = masks = None
    if options.train and options.layout:
        raise UserError("--layout: is that of a --segmenter; leave it out with --train")
    if options.segmenter and options.steps is not None:
        raise UserError("--steps: are those of --train; leave it out with --segmenter")
    if options.segmenter:
        layout = read_layout(options.layout, Input) if options.layout else _STRETCH
        onnx = OnnxSegmenter(options.segmenter, layout)
    classes = tuple(filter(None, (options.classes or "").split(",")))
    count = onnx.classes if onnx else None
    if not classes and count is None:
        raise UserError("--classes: name the classes, in the order of their numbers")
    classes = classes or tuple(map(str, range(count)))
    if count not in (None, len(classes)) or not 1 < len(classes) < 256:
        raise UserError(
            f"--classes: names {len(classes)}, but there are {count or 'at least 2'} classes"
        )
    if options.train:
        if options.steps is not None and options.steps < 2:
            raise UserError(f"--steps {options.steps}: give at least 2")
        _check_apart(segmenters.training_files(options.train)[0], compared.clean)
    if options.masks:
        files = counterparts(options.masks, compared.clean, "--masks")
        masks = [read_mask(path) for path in files]
        if not any((mask < len(classes)).any() for mask in masks):
            raise UserError(f"{options.masks}: no pixel has one of the {len(classes)} classes")
    return Prepared(onnx, classes, masks)


def _check_apart(train: Sequence[pathlib.Path], clean: Sequence[pathlib.Path]) -> None:
    """Raises UserError if a picture would be both trained on and measured on."""
    known = {sha256(path) for path in train}
    if both := [path.name for path in clean if sha256(path) in known]:
        raise UserError(f"{first_few(both)}: in --train and in --clean; measure on other pictures")


def run(options: argparse.Namespace, prepared: Prepared, compared: Comparison) -> dict[str, Any]:
    """Trains the segmenter if need be, and measures; returns the result, JSON-ready.

    Raises:
      UserError: the segmenter fails, or nothing can be trained.
    """
    count, segment, origin = len(prepared.classes), prepared.onnx, None
    if segment:
        origin = {"file": pathlib.Path(options.segmenter).name, "sha256": sha256(options.segmenter)}
    else:
        recipe = Recipe() if options.steps is None else Recipe(steps=options.steps)
        segment, name = segmenters.trained(options.train, count, recipe)
        folder = pathlib.Path(options.train).resolve().name
        origin = {"trained": name, "folder": folder, **dataclasses.asdict(recipe)}
    clean = [segment(images.read(path)) for path in tqdm(compared.clean, CLEAN, disable=None)]
    truth = prepared.masks or clean
    weights = bootstrap.picture_weights(len(clean), compared.seed)

    def scores(found: Sequence[np.ndarray]) -> dict[str, Any]:
        return _scores(np.stack(found), weights, prepared.classes)

    rows = {}
    if prepared.masks:
        rows[CLEAN] = scores([confusion(*pair, count) for pair in zip(truth, clean, strict=True)])
    results = {}
    for kind in compared.rain:
        found = _segment(options, segment, compared, kind, truth, count)
        measured = rows | {name: scores(confusions) for name, confusions in found.items()}
        results[kind] = bootstrap.with_gains(measured, options.against)
    return {
        "task": "segmentation",
        "segmenter": origin,
        "truth": pathlib.Path(options.masks).resolve().name if prepared.masks else "own masks",
        "classes": prepared.classes,
        "resamples": bootstrap.RESAMPLES,
        **compared.record,
        "results": results,
    }


def _segment(
    options: argparse.Namespace,
    segment: Segment,
    compared: Comparison,
    kind: str,
    truth: Sequence[np.ndarray],
    classes: int,
) -> dict[str, list[np.ndarray]]:
    """Confusion matrices of all pictures of every variant; draws masks if that was asked for."""
    return measure_variants(
        compared,
        kind,
        segment,
        lambda picture, mask: overlays.draw_mask(picture, mask, classes),
        truth=("truth", truth),
        folder=options.pictures,
        keep=lambda mask, number: confusion(truth[number], mask, classes),
    )


def confusion(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by class in the truth (rows) and class found (columns).

    Args:
      truth: uint8 (H, W); values from `classes` on count nowhere.
      found: uint8 (H, W).
      classes: their number.

    Returns:
      (classes, classes + 1); the last column is for whatever else was found.
    """
    known = truth < classes
    found = np.minimum(found[known].astype(int), classes)
    pairs = truth[known].astype(int) * (classes + 1) + found
    return np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def intersection_over_union(confusions: np.ndarray) -> np.ndarray:
    """IoU per class of (…, classes, classes + 1) -> (…, classes); NaN of classes not in the truth.

    Everingham et al.: The PASCAL Visual Object Classes Challenge. IJCV 2015.
    """
    inside = confusions[..., :-1]
    correct = np.diagonal(inside, axis1=-2, axis2=-1)
    truth, found = confusions.sum(axis=-1), inside.sum(axis=-2)
    return np.where(truth > 0, correct / np.maximum(truth + found - correct, 1), np.nan)


def _scores(confusions: np.ndarray, weights: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """IoUs of one variant for all resamples, and the mean IoU of each picture."""
    of_classes = intersection_over_union(np.einsum("rn,nij->rij", weights, confusions))
    of_pictures = intersection_over_union(confusions)
    return {
        "miou": bootstrap.mean_of_known(of_classes, axis=1),
        "classes_iou": dict(zip(classes, of_classes.T, strict=True)),
        "images": [
            None if np.isnan(x) else float(x) for x in bootstrap.mean_of_known(of_pictures, axis=1)
        ],
    }


def table(result: Mapping[str, Any]) -> str:
    """Aligned text: one line per kind of rain and variant."""
    return bootstrap.table(result["results"], {"mIoU": "miou"})
