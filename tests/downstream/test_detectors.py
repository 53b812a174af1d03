import json

import numpy as np
import pytest

from manas_jax.downstream.average_precision import Boxes
from manas_jax.downstream.detectors import Detector, DetectorLayout, suppress
from manas_jax.downstream.onnx_model import Input, prepare, read_layout
from manas_jax.errors import UserError

PICTURE = np.zeros((16, 64, 3), np.uint8)  # half of the size of the models' input

pytest.importorskip("onnxruntime")


def test_yolox_output_is_decoded_on_its_grids(save_onnx):
    cells = 4 * 4 + 2 * 2 + 1
    output = np.zeros((1, cells, 85), np.float32)
    row = 16 + 2 * 0 + 1  # stride 16, second column
    output[0, row, :4] = 0.25, 0.5, np.log(0.5), np.log(0.25)
    output[0, row, 4], output[0, row, 5 + 2] = 0.8, 0.5
    boxes = Detector(save_onnx({"output": output}))(PICTURE)
    across, down, width, height = 2 * 20, 2 * 8, 2 * 8, 2 * 4
    np.testing.assert_allclose(
        boxes.corners,
        [[across - width / 2, max(0, down - height / 2), across + width / 2, 16]],
    )
    assert boxes.scores == pytest.approx(0.4) and boxes.labels == [2]


BOX = [4.0, 8, 12, 16]  # left, top, right, bottom in the input
ROWS = {
    "xyxy": BOX,
    "yxyx": [8.0, 4, 16, 12],
    "xywh": [4.0, 8, 8, 8],
    "cxcywh": [8.0, 12, 8, 8],
}


@pytest.mark.parametrize("box_format", ROWS)
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_of_boxes_and_scores(save_onnx, box_format, transposed):
    table = np.float32([[*ROWS[box_format], 0.1, 0.7], [0, 0, 1, 1, 0, 0]])[None]
    path = save_onnx({"found": table.swapaxes(1, 2) if transposed else table})
    layout = DetectorLayout(box_format=box_format, transposed=transposed, classes=("a", "b"))
    boxes = Detector(path, layout)(np.zeros((64, 64, 3), np.uint8))
    np.testing.assert_allclose(boxes.corners, [np.multiply(BOX, 2)])
    assert boxes.scores == pytest.approx(0.7) and boxes.labels == [1]


def test_boxes_scores_and_labels_of_their_own(save_onnx):
    path = save_onnx(
        {
            "labels": np.int64([[2, 1]]),
            "boxes": np.float32([BOX, BOX])[None] / 32,
            "scores": np.float32([[-2, 3]]),
        }
    )
    layout = DetectorLayout(
        boxes="boxes", scores="scores", labels="labels", box_units="relative", first_label=1,
        activation="sigmoid", nms=None, classes=("a", "b"), resize="letterbox_centre",
    )  # fmt: skip
    boxes = Detector(path, layout)(np.zeros((16, 32, 3), np.uint8))
    np.testing.assert_allclose(boxes.corners, [[4, 0, 12, 8]] * 2)
    np.testing.assert_allclose(boxes.scores, 1 / (1 + np.exp([2, -3])))
    assert boxes.labels.tolist() == [1, 0]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_boxes_without_an_axis_of_pictures(save_onnx, count):
    outputs = {
        "boxes": np.tile(np.float32(BOX), (count, 1)),
        "scores": np.full(count, 0.5, np.float32),
        "labels": np.zeros(count, np.int64),
    }
    layout = DetectorLayout(
        boxes="boxes", scores="scores", labels="labels", nms=None, classes=("a",)
    )
    boxes = Detector(save_onnx(outputs), layout)(np.zeros((32, 32, 3), np.uint8))
    assert boxes.corners.shape == (count, 4) and boxes.labels.tolist() == [0] * count


def test_suppression_keeps_the_best_of_each_class():
    corners = np.float64([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [30, 0, 40, 10]])
    boxes = Boxes(corners, np.array([0.5, 0.9, 0.4, 0.3]), np.array([0, 0, 1, 0]))
    assert suppress(boxes, 0.45).scores.tolist() == [0.9, 0.4, 0.3]
    assert suppress(boxes, 0.95).scores.tolist() == [0.9, 0.5, 0.4, 0.3]


@pytest.mark.parametrize(
    ("layout", "corner", "inner"),
    [
        (Input(fill=7), (0, 0), (8, 32)),
        (Input(fill=7, resize="letterbox_centre"), (12, 0), (8, 32)),
        (Input(resize="stretch"), (0, 0), (32, 32)),
    ],
)
def test_pictures_are_placed_in_the_input(layout, corner, inner):
    picture = np.full((16, 64, 3), (10, 20, 30), np.uint8)
    pixels, placement = prepare(picture, layout, (32, 32))
    assert (placement.top, placement.left) == corner
    assert (placement.down * 16, placement.across * 64) == inner
    part = pixels[corner[0] : corner[0] + inner[0]]
    assert (part == (10, 20, 30)).all() and (pixels == 7).sum() == 3 * (32 - inner[0]) * 32


def test_input_is_normalised_in_the_order_of_the_channels():
    layout = Input(colours="bgr", mean=(1, 2, 3), std=(2, 2, 4))
    pixels, _ = prepare(np.full((4, 4, 3), (7, 6, 5), np.uint8), layout, (4, 4))
    np.testing.assert_allclose(pixels[0, 0], [(5 - 1) / 2, (6 - 2) / 2, (7 - 3) / 4])


@pytest.mark.parametrize(
    ("outputs", "layout", "words"),
    [
        ({"x": np.zeros((1, 84, 21), np.float32)}, {}, "scores per box, but 80 classes"),
        ({"x": np.zeros((1, 3, 4, 5), np.float32)}, {}, "no table of boxes"),
        ({"x": np.zeros((1, 20, 85), np.float32)}, {"strides": (8, 16, 32), "objectness": True},
         "20 boxes, but grids of 21 cells"),
        ({"x": np.full((1, 2, 84), 3, np.float32)}, {}, "scores outside of 0 to 1"),
        ({"x": np.full((1, 2, 84), [[4, 0, 1, 9, *[0.5] * 80]], np.float32)}, {},
         "boxes that end before they begin: are they xyxy?"),
        ({"x": np.zeros((1, 2, 84), np.float32)}, {"scores": "y"}, "no output 'y'"),
        ({"x": np.zeros((1, 2, 3), np.float32)}, {}, "rows of other than 4"),
        ({"x": np.zeros((1, 2, 4), np.float32), "y": np.zeros((1, 2), np.float32),
          "z": np.int64([[0, 80]])}, {"scores": "y", "labels": "z"}, "labels beyond"),
        ({"x": np.zeros((1, 2, 4), np.float32), "y": np.zeros((1, 2), np.float32)},
         {"scores": "y", "labels": "z"}, "no output 'z'"),
        ({"x": np.zeros((1, 3, 4), np.float32), "y": np.zeros((1, 80, 3), np.float32)},
         {"scores": "y"}, "has 3 boxes, but 80 rows of scores"),
        ({"x": np.zeros((1, 3, 4), np.float32), "y": np.zeros((2,), np.float32)},
         {"scores": "y"}, "has 3 boxes, but 2 rows of scores"),
    ],
)  # fmt: skip
def test_another_layout_is_one_line(save_onnx, outputs, layout, words):
    with pytest.raises(UserError) as error:
        Detector(save_onnx(outputs), DetectorLayout(**layout))
    line = str(error.value)
    assert words in line and "model.onnx" in line and "--layout" in line and "\n" not in line


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 3, "h", "w"), "any size"), ((1, 4, 32, 32), "a model with one input")],
)
def test_models_of_other_inputs(save_onnx, shape, words):
    path = save_onnx({"x": np.zeros((1, 2, 84), np.float32)}, shape)
    with pytest.raises(UserError, match=words):
        Detector(path, DetectorLayout())


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_files_that_are_no_models_are_one_line(tmp_path, content):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be opened as an ONNX model") as error:
        Detector(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ('{"sides": 3}', "keys size, resize"),
        ("[]", "keys size, resize"),
        ('{"resize": "crop"}', "resize = 'crop'"),
        ('{"mean": [1, 2]}', "mean = "),
        ('{"size": [1, "2"]}', "size = "),
        ('{"size": [0, 5]}', "size = (0, 5): give whole pixels, 1 or more"),
        ('{"size": [5.5, 4]}', "size = (5.5, 4): give whole pixels"),
        ('{"std": [1, 1, 0]}', "std"),
        ('{"std": [1, 1, NaN]}', "std = (1, 1, nan): give 3 numbers"),
        ('{"mean": [Infinity, 1, 1]}', "mean = (inf, 1, 1): give 3 numbers"),
        ('{"fill": -1}', "fill = -1: give a number from 0 to 255"),
        ('{"box_format": "corners"}', "box_format = "),
        ('{"nms": 2}', "nms = 2"),
        ('{"strides": [0]}', "strides"),
        ('{"classes": "car"}', "classes"),
        ('{"labels": "x"}', "labels = 'x'"),
        ('{"boxes": 3}', "boxes, scores and labels"),
    ],
)
def test_wrong_layout_files_are_one_line(tmp_path, text, words):
    path = tmp_path / "layout.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_layout(path, DetectorLayout)
    line = str(error.value)
    assert line.startswith(str(path)) and words in line and "\n" not in line


def test_layout_file(tmp_path):
    path = tmp_path / "layout.json"
    path.write_text(json.dumps({"colours": "bgr", "size": [8, 16], "nms": None}))
    assert read_layout(path, DetectorLayout) == DetectorLayout(
        colours="bgr", size=(8, 16), nms=None
    )
