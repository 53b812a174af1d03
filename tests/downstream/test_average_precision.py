import contextlib
import io

import numpy as np
import pytest

from manas_jax.downstream import average_precision as ap
from manas_jax.downstream.average_precision import Boxes

pytest.importorskip("pycocotools")


def random_boxes(draw, count, classes=3, near=None):
    if near is None:
        corner = draw.uniform(0, 200, (count, 2))
        corners = np.concatenate([corner, corner + draw.uniform(8, 150, (count, 2))], axis=1)
        labels = draw.integers(0, classes, count)
    else:
        chosen = draw.integers(0, len(near.scores), count)
        corners = near.corners[chosen] + draw.normal(0, 4, (count, 4))
        labels = near.labels[chosen]
    return Boxes(corners, draw.uniform(0, 1, count).round(2), labels)


@pytest.fixture(scope="module")
def scene():
    draw = np.random.default_rng(3)
    truth = [random_boxes(draw, n) for n in (4, 0, 6, 3, 5)]
    found = [random_boxes(draw, 8, near=t if len(t.scores) else None) for t in truth]
    return truth, found


def precision_of_coco(truth, found):
    """AP by class and size, as pycocotools accumulates it, (IoUs, classes, sizes)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        for boxes in (truth, found):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": i} for i in range(len(truth))],
                "categories": [{"id": i} for i in range(3)],
                "annotations": ap.annotations(boxes),
            }
            coco.createIndex()
            sides.append(coco)
        evaluation = COCOeval(*sides, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # (IoUs, recalls, classes, sizes)
    return np.where(precision == -1, np.nan, precision).mean(axis=1)


def test_unit_weights_give_what_pycocotools_gives(scene):
    truth, found = scene
    expected = precision_of_coco(truth, found)
    matches = ap.match(ap.annotations(truth), found, range(3))
    ones = np.ones((1, len(truth)))
    assert np.isfinite(expected).sum() > 60
    for i, size in enumerate(ap.SIZES):
        for label in range(3):
            for iou in range(len(ap.IOUS)):
                value = ap.average_precision(matches[size][label], ones, slice(iou, iou + 1))
                np.testing.assert_allclose(value, expected[iou, label, i], atol=1e-9)
            value = ap.average_precision(matches[size][label], ones)
            np.testing.assert_allclose(value, expected[:, label, i].mean(), atol=1e-9)


def test_weights_repeat_pictures(scene):
    truth, found = scene
    weights = np.array([[2, 1, 0, 3, 1]])
    repeated = [np.repeat(np.arange(5), weights[0])][0]
    once = ap.match(ap.annotations(truth), found, range(3))["all"]
    often = ap.match(
        ap.annotations([truth[i] for i in repeated]), [found[i] for i in repeated], range(3)
    )["all"]
    for matches, expected in (*zip(once, often, strict=True), (ap.pool(once), ap.pool(often))):
        np.testing.assert_allclose(
            ap.average_precision(matches, weights),
            ap.average_precision(expected, np.ones((1, len(repeated)))),
            atol=0.02,  # equal scores of one picture and another are in another order
        )


def test_pooled_classes_rank_together():
    corners = np.array([[0.0, 0, 10, 10]])
    truth = [Boxes(corners, np.ones(1), np.array([label])) for label in (0, 1)]
    found = [
        Boxes(corners, np.array([0.9]), np.array([1])),  # right place, wrong class
        Boxes(corners, np.array([0.5]), np.array([1])),
    ]
    pooled = ap.pool(ap.match(ap.annotations(truth), found, range(2))["all"])
    recalls_up_to_a_half, ones = 51 / 101, np.ones((1, 2))
    assert ap.average_precision(pooled, ones) == pytest.approx(recalls_up_to_a_half / 2)
    assert ap.average_precision(pooled, ones, exact=True) == pytest.approx(0.5 / 2)


def test_no_truth_and_no_detections(scene):
    truth, _ = scene
    nothing = Boxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    ones = np.ones((2, 5))
    nowhere = ap.match(ap.annotations(truth), [nothing] * 5, range(3))["all"]
    assert (ap.average_precision(ap.pool(nowhere), ones) == 0).all()
    untrue = ap.match([], truth, range(3))["all"]
    assert np.isnan(ap.average_precision(ap.pool(untrue), ones)).all()
