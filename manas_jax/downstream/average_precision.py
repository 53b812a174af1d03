"""Average precision of detections, by COCO's definition, for any weights of the pictures.

pycocotools matches detections with the truth. It has no weights of pictures, which a bootstrap
needs, so precision and recall are computed here; with unit weights they are those of its
`COCOeval.accumulate`. Lin et al.: Microsoft COCO. ECCV 2014; https://cocodataset.org/#detection-eval
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

IOUS = np.linspace(0.5, 0.95, 10)
SIZES = ("all", "small", "medium", "large")
"""Areas of boxes in pixels: any, below 32 x 32, below 96 x 96, above."""

_RECALLS = np.linspace(0, 1, 101)
_AT_ONCE = 100  # rows of weights, which bounds the memory


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Detections in one picture.

    Attributes:
      corners: (n, 4) left, top, right and bottom in pixels.
      scores: (n,) in [0, 1].
      labels: (n,) indices of classes.
    """

    corners: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def above(self, score: float) -> Boxes:
        """Those with at least this score."""
        chosen = self.scores >= score
        return Boxes(self.corners[chosen], self.scores[chosen], self.labels[chosen])


@dataclasses.dataclass(frozen=True)
class Matches:
    """Detections of one class and size, matched with the truth.

    Attributes:
      scores: (n,) of the detections.
      pictures: (n,) indices of their pictures.
      correct: (IoUs, n), whether each has a box of the truth to itself.
      ignored: (IoUs, n), whether it counts neither as correct nor as false.
      truths: (pictures,) number of boxes in the truth.
    """

    scores: np.ndarray
    pictures: np.ndarray
    correct: np.ndarray
    ignored: np.ndarray
    truths: np.ndarray


def annotations(boxes: Sequence[Boxes]) -> list[dict[str, Any]]:
    """Boxes in the form of COCO's annotations; pictures are numbered from 0."""
    found = []
    for picture, here in enumerate(boxes):
        sides = here.corners[:, 2:] - here.corners[:, :2]
        for corner, side, score, label in zip(
            here.corners[:, :2], sides, here.scores, here.labels, strict=True
        ):
            found.append(
                {
                    "id": len(found) + 1,  # pycocotools takes 0 for no match
                    "image_id": picture,
                    "category_id": int(label),
                    "bbox": [*corner.tolist(), *side.tolist()],
                    "area": float(side.prod()),
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
    return found


def match(
    truth: Sequence[dict[str, Any]], boxes: Sequence[Boxes], labels: Sequence[int]
) -> dict[str, list[Matches]]:
    """Matches detections with the truth.

    Args:
      truth: in the form of COCO's annotations, see `annotations`.
      boxes: detections of each picture, of which the 100 best per class count.
      labels: the classes to evaluate.

    Returns:
      For each of `SIZES` the matches of each class.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def indexed(found: Sequence[dict[str, Any]]) -> Any:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(boxes))],
            "categories": [{"id": label} for label in labels],
            "annotations": [dict(one) for one in found],  # as it adds keys of its own
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(indexed(truth), indexed(annotations(boxes)), "bbox")
        evaluation.params.imgIds = list(range(len(boxes)))
        evaluation.params.catIds = list(labels)
        evaluation.params.iouThrs = IOUS
        evaluation.evaluate()
    shape = len(labels), len(SIZES), len(boxes)
    table = np.empty(shape, object)
    table.reshape(-1)[:] = evaluation.evalImgs
    return {size: [_matches(row) for row in table[:, i]] for i, size in enumerate(SIZES)}


def _matches(pictures: Sequence[dict[str, Any] | None]) -> Matches:
    """Gathers pycocotools's matches of one class and size over the pictures."""
    known = [(i, found) for i, found in enumerate(pictures) if found]
    truths = np.zeros(len(pictures))
    for i, found in known:
        truths[i] = np.sum(np.asarray(found["gtIgnore"]) == 0)
    none = np.zeros((len(IOUS), 0), bool)
    return Matches(
        np.concatenate([np.zeros(0), *(found["dtScores"] for _, found in known)]),
        np.concatenate([np.zeros(0, int), *(np.full(len(f["dtScores"]), i) for i, f in known)]),
        np.concatenate([none, *(found["dtMatches"] > 0 for _, found in known)], axis=1),
        np.concatenate([none, *(found["dtIgnore"].astype(bool) for _, found in known)], axis=1),
        truths,
    )


def pool(matches: Sequence[Matches]) -> Matches:
    """All classes as one: detections of all of them are ranked together by their scores."""
    return Matches(
        *(
            np.concatenate([getattr(one, name) for one in matches], axis=-1)
            for name in ("scores", "pictures", "correct", "ignored")
        ),
        sum(one.truths for one in matches),
    )


def average_precision(
    matches: Matches, weights: np.ndarray, ious: slice = slice(None), exact: bool = False
) -> np.ndarray:
    """The mean of the interpolated precision over recalls from 0 to 1, and over IoUs.

    Args:
      matches: of one class and size.
      weights: (rows, pictures), how often each picture counts.
      ious: which of `IOUS`; their mean is taken.
      exact: whether the mean is over all recalls, the area below the curve, as in PASCAL VOC from
        2010 on, rather than over 101 as in COCO.

    Returns:
      (rows,); NaN where there is no box in the truth.
    """
    order = np.argsort(-matches.scores, kind="stable")
    pictures, correct = matches.pictures[order], matches.correct[ious][:, order]
    counts = ~matches.ignored[ious][:, order]
    result = []
    for rows in np.array_split(weights, -(-len(weights) // _AT_ONCE)):
        truths, drawn = rows @ matches.truths, rows[:, pictures]
        values = [
            _interpolated(drawn, hit & count, count, truths, exact)
            for hit, count in zip(correct, counts, strict=True)
        ]
        result.append(np.where(truths > 0, np.mean(values, axis=0), np.nan))
    return np.concatenate(result)


def _interpolated(
    drawn: np.ndarray, hits: np.ndarray, counts: np.ndarray, truths: np.ndarray, exact: bool
) -> np.ndarray:
    """Average precision at one IoU.

    Args:
      drawn: (rows, n), how often each detection counts, best scores first.
      hits: (n,), whether it is correct.
      counts: (n,), whether it counts at all.
      truths: (rows,), number of boxes in the truth.
      exact: see `average_precision`.
    """
    # Precision has its maxima, and recall its steps, at correct detections.
    ranked = np.cumsum(drawn * counts, axis=1)[:, hits]
    found = np.cumsum(drawn[:, hits], axis=1)
    precision = found / np.maximum(ranked, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / np.maximum(truths, 1)[:, None]
    if not exact:  # the share of recalls up to each detection
        recall = np.searchsorted(_RECALLS, recall, side="right") / len(_RECALLS)
    return np.sum(precision * np.diff(recall, axis=1, prepend=0), axis=1)
