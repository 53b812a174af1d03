"""Detectors: an ONNX model and a description of its output.

Without a description a detector is read as a YOLOX: raw outputs on grids of strides 8, 16 and 32.
Ge et al.: YOLOX: Exceeding YOLO Series in 2021. arXiv 2107.08430.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

import numpy as np

from manas_jax.downstream.average_precision import Boxes
from manas_jax.downstream.onnx_model import Input, OnnxModel, Placement, is_number
from manas_jax.errors import UserError

BOX_FORMATS = ("cxcywh", "xyxy", "xywh", "yxyx")
BOX_UNITS = ("pixels", "relative")
ACTIVATIONS = ("none", "sigmoid")
MIN_SCORE = 0.001  # below it detections are dropped, as usual for COCO's average precision

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat",
    "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack",
    "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball",
    "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket",
    "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair",
    "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DetectorLayout(Input):
    """How the input is prepared, and where boxes, scores and classes are in the outputs.

    Attributes:
      boxes: name of the output with a row per box; '' for the first output.
      scores: name of an output with a row of scores per box; '' where they follow in the rows of
        `boxes`.
      labels: name of an output with the class of each box; then `scores` has one per box.
      transposed: whether a box is a column rather than a row.
      box_format: of the four numbers, 'cxcywh', 'xyxy', 'xywh' or 'yxyx'.
      box_units: 'pixels' of the input, or 'relative' to its sides.
      strides: of grids that boxes are relative to, as in YOLOX; empty for finished boxes.
      objectness: whether a factor of all scores comes before those of the classes.
      activation: of the scores, 'none' or 'sigmoid'.
      first_label: number of the first class in `labels`.
      nms: IoU from which the weaker of two boxes of a class is dropped; None for a model that does
        so itself.
      classes: their names; empty for COCO's 80.
    """

    boxes: str = ""
    scores: str = ""
    labels: str = ""
    transposed: bool = False
    box_format: str = "xyxy"
    box_units: str = "pixels"
    strides: tuple[int, ...] = ()
    objectness: bool = False
    activation: str = "none"
    first_label: int = 0
    nms: float | None = 0.65
    classes: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        for key, choices in (
            ("box_format", BOX_FORMATS),
            ("box_units", BOX_UNITS),
            ("activation", ACTIVATIONS),
            ("transposed", (True, False)),
            ("objectness", (True, False)),
        ):
            if getattr(self, key) not in choices:
                raise UserError(
                    f"{key} = {getattr(self, key)!r}: give one of {', '.join(map(str, choices))}"
                )
        names = self.boxes, self.scores, self.labels
        if not all(isinstance(name, str) for name in names):
            raise UserError("boxes, scores and labels: give names of outputs")
        if self.labels and not self.scores:
            raise UserError(f"labels = {self.labels!r}: name the output with the scores as well")
        if self.nms is not None and not (is_number(self.nms) and 0 < self.nms <= 1):
            raise UserError(f"nms = {self.nms!r}: give a number above 0 up to 1, or null")
        whole = isinstance(self.strides, tuple) and all(
            isinstance(s, int) and s > 0 for s in self.strides
        )
        if not whole or not isinstance(self.first_label, int):
            raise UserError("strides and first_label: give whole numbers")
        if not isinstance(self.classes, tuple) or not all(isinstance(c, str) for c in self.classes):
            raise UserError("classes: give a list of names")


YOLOX = DetectorLayout(colours="bgr", box_format="cxcywh", strides=(8, 16, 32), objectness=True)


class Detector:
    """Finds boxes in pictures.

    Attributes:
      layout: of its outputs.
      classes: names of the classes; a label is an index of this.
    """

    def __init__(self, path: str | os.PathLike, layout: DetectorLayout = YOLOX):
        """Opens the model and runs it once.

        Raises:
          UserError: it cannot be opened, or its outputs are not those of the layout.
        """
        self.layout = layout
        self.classes = layout.classes or COCO_CLASSES
        self._model = OnnxModel(path, layout)
        self(np.full((*self._model.size, 3), layout.fill, np.uint8))

    def __call__(self, picture: np.ndarray) -> Boxes:
        """The boxes in a picture, RGB, uint8 (H, W, 3).

        Raises:
          UserError: the outputs are not those of the layout.
        """
        outputs, placement = self._model(picture)
        try:
            boxes = self._decode(outputs)
        except UserError as error:
            shapes = ", ".join(f"{name} {x.shape}" for name, x in outputs.items())
            raise UserError(
                f"{self._model.path}: {error}; its outputs are {shapes}; describe them in a file "
                "for --layout, see docs/downstream.md"
            ) from None
        boxes = boxes.above(MIN_SCORE)
        corners = _in_picture(boxes.corners, placement, picture.shape[:2])
        boxes = Boxes(corners, boxes.scores, boxes.labels)
        return boxes if self.layout.nms is None else suppress(boxes, self.layout.nms)

    def _decode(self, outputs: Mapping[str, np.ndarray]) -> Boxes:
        """Boxes in pixels of the input."""
        layout = self.layout
        rows = _output(outputs, layout.boxes or next(iter(outputs)), layout.transposed)
        if layout.scores:
            scores = _output(outputs, layout.scores, layout.transposed)
            rows = rows.reshape(-1, rows.shape[-1])
            if scores.shape[0] == 1 and scores.shape[1] == len(rows):  # of a batch of one picture
                scores = scores.T
        else:
            rows, scores = rows[:, :4], rows[:, 4:]
        if rows.shape[1:] != (4,):
            raise UserError("has rows of other than 4 numbers for a box")
        if len(scores) != len(rows):
            raise UserError(f"has {len(rows)} boxes, but {len(scores)} rows of scores")
        if layout.activation == "sigmoid":
            scores = 1 / (1 + np.exp(-scores))
        if layout.objectness:
            scores = scores[:, 1:] * scores[:, :1]
        if layout.labels:
            labels = _output(outputs, layout.labels, transposed=False)
            labels = np.ravel(labels).astype(int) - layout.first_label
            if labels.shape != (len(rows),) or scores.shape[1] != 1:
                raise UserError("has other numbers of boxes, scores and labels")
            best = scores[:, 0]
        else:
            if scores.shape[1] != len(self.classes):
                raise UserError(
                    f"has {scores.shape[1]} scores per box, but {len(self.classes)} classes"
                )
            labels, best = scores.argmax(axis=1), scores.max(axis=1)
        if ((labels < 0) | (labels >= len(self.classes))).any():
            raise UserError(f"has labels beyond its {len(self.classes)} classes")
        if not np.isfinite(rows).all() or not ((best >= 0) & (best <= 1)).all():
            raise UserError("has scores outside of 0 to 1")
        if layout.strides:
            rows = _from_grids(rows, layout.strides, self._model.size)
        corners = _corners(rows, layout.box_format)
        if (corners[:, 2:] < corners[:, :2])[best >= MIN_SCORE].any():
            raise UserError(f"has boxes that end before they begin: are they {layout.box_format}?")
        if layout.box_units == "relative":
            corners = corners * np.tile(self._model.size[::-1], 2)
        return Boxes(corners, best, labels)


def _output(outputs: Mapping[str, np.ndarray], name: str, transposed: bool) -> np.ndarray:
    """A float64 output of the only picture, (boxes, numbers)."""
    if name not in outputs:
        raise UserError(f"has no output {name!r}")
    output = np.asarray(outputs[name], np.float64)
    if output.ndim == 3 and output.shape[0] == 1:
        output = output[0]
    output = output[:, None] if output.ndim == 1 else output
    if output.ndim != 2:
        raise UserError(f"has the output {name!r}, which is no table of boxes")
    return output.T if transposed else output


def _from_grids(rows: np.ndarray, strides: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """Centre, width and height in pixels, from offsets in cells and logarithms of sides."""
    cells, scales = [], []
    for stride in strides:
        grid = np.indices((size[0] // stride, size[1] // stride))[::-1]
        cells.append(grid.reshape(2, -1).T)
        scales.append(np.full(cells[-1].shape, stride))
    cells, scales = np.concatenate(cells), np.concatenate(scales)
    if len(cells) != len(rows):
        raise UserError(f"has {len(rows)} boxes, but grids of {len(cells)} cells")
    return np.concatenate([(rows[:, :2] + cells) * scales, np.exp(rows[:, 2:]) * scales], axis=1)


def _corners(rows: np.ndarray, box_format: str) -> np.ndarray:
    """Left, top, right, bottom."""
    if box_format == "yxyx":
        return rows[:, [1, 0, 3, 2]]
    if box_format == "xyxy":
        return rows
    first, sides = rows[:, :2], rows[:, 2:]
    upper_left = first - sides / 2 if box_format == "cxcywh" else first
    return np.concatenate([upper_left, upper_left + sides], axis=1)


def _in_picture(corners: np.ndarray, placement: Placement, size: tuple[int, int]) -> np.ndarray:
    """Corners in pixels of the picture rather than of the input, inside of it."""
    shift = np.tile([placement.left, placement.top], 2)
    corners = (corners - shift) / np.tile([placement.across, placement.down], 2)
    return np.clip(corners, 0, np.tile(size[::-1], 2))


def suppress(boxes: Boxes, iou: float) -> Boxes:
    """Non-maximum suppression: drops boxes that overlap a better one of their class by `iou`."""
    order = np.argsort(-boxes.scores, kind="stable")
    corners, labels = boxes.corners[order], boxes.labels[order]
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    left = np.ones(len(order), bool)
    for i in range(len(order)):
        if not left[i]:
            continue
        inner = np.minimum(corners[i, 2:], corners[i + 1 :, 2:])
        inner -= np.maximum(corners[i, :2], corners[i + 1 :, :2])
        shared = np.prod(np.maximum(inner, 0), axis=1)
        union = areas[i] + areas[i + 1 :] - shared
        left[i + 1 :] &= (shared <= iou * union) | (labels[i + 1 :] != labels[i])
    kept = order[left]
    return Boxes(boxes.corners[kept], boxes.scores[kept], boxes.labels[kept])
