import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from manas_jax.downstream import detection
from manas_jax.downstream.__main__ import main
from manas_jax.downstream.average_precision import Boxes

pytest.importorskip("pycocotools")

pytestmark = pytest.mark.usefixtures("no_networks")


class BrightDetector:
    """Finds the box around bright pixels; the score is the share of them in it."""

    classes = ("square", "other")

    def __init__(self, *_):
        pass

    def __call__(self, picture):
        bright = picture[..., 0] > 100
        rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return Boxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
        box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return Boxes(np.float64([box]), np.array([0.9]), np.array([0]))


@pytest.fixture(autouse=True)
def bright_detector(monkeypatch, tmp_path):
    monkeypatch.setattr(detection, "Detector", BrightDetector)
    (tmp_path / "bright.onnx").write_bytes(b"a model")


def arguments(folder, **changes):
    options = {
        "--detector": folder / "bright.onnx",
        "--clean": folder / "clean",
        "--rainy": folder / "rainy",
        "--weights": "general",
        "--json": folder / "result.json",
        **{f"--{key}": value for key, value in changes.items()},
    }
    return ["detection", *(str(x) for pair in options.items() if pair[1] is not None for x in pair)]


def coco(folder, **changes):
    """Labels of the squares, written to labels.json."""
    labels = {"images": [], "categories": [{"id": 7, "name": "square"}], "annotations": []}
    for i in range(4):
        picture = np.array(Image.open(folder / "clean" / f"{i}.png"))
        left, top, right, bottom = BrightDetector()(picture).corners[0].tolist()
        labels["images"].append({"id": 10 + i, "file_name": f"{i}.png", "width": 48, "height": 32})
        labels["annotations"].append(
            {"id": i, "image_id": 10 + i, "category_id": 7,
             "bbox": [left, top, right - left, bottom - top]}
        )  # fmt: skip
    path = folder / "labels.json"
    path.write_text(json.dumps(labels | changes))
    return path


def test_agreement_with_the_clean_pictures(squares, capsys):
    other = f"other={squares / 'other'}"
    assert main(arguments(squares, restored=other, pictures=squares / "drawn")) == 0
    result = json.loads((squares / "result.json").read_text())
    rows = result["results"]["rainy"]
    assert list(rows) == ["rainy", "general", "other"]
    assert rows["other"]["pooled_ap50"]["value"] == rows["other"]["ap"]["value"] == 1
    # Squares of 10 x 10, of which half lack 6 rows: an IoU of 0.4.
    assert rows["rainy"]["pooled_ap50"]["value"] == pytest.approx(51 / 101, abs=0.26)
    assert rows["rainy"]["images"][1] == {"truth": 1, "found": 0, "false": 1}
    gain = rows["other"]["pooled_ap50"]["gain"]
    assert gain["value"] == pytest.approx(1 - rows["rainy"]["pooled_ap50"]["value"])
    assert gain["low"] >= 0
    assert rows["other"]["classes_ap50"].keys() == {"square"}
    assert rows["other"]["sizes"]["small"]["value"] == 1
    assert rows["other"]["sizes"]["large"]["value"] is None
    assert result["boxes"] == 4 and result["rain"] == {"rainy": {"folder": "rainy"}}
    assert result["networks"]["general"]["provenance"] == {"file": "general.safetensors"}
    assert "other" in capsys.readouterr().out
    boxes = json.loads((squares / "drawn" / "boxes.json").read_text())
    assert boxes["clean"] == boxes["rainy"]["other"]
    assert len(list((squares / "drawn" / "rainy").glob("*.png"))) == 4


def test_labels_are_the_truth_where_there_are_some(squares):
    assert main(arguments(squares, labels=coco(squares), weights="general")) == 0
    result = json.loads((squares / "result.json").read_text())
    assert result["truth"] == "labels.json" and result["truth_score"] is None
    assert result["results"]["rainy"]["clean"]["ap"]["value"] == 1
    assert result["results"]["rainy"]["rainy"]["ap"]["value"] < 1


def test_synthetic_rain_is_recorded_and_comes_again(squares):
    found = []
    for seed in (3, 3, 4):
        options = arguments(squares, rainy=None, rain="heavy", seed=seed)
        assert main(options) == 0
        result = json.loads((squares / "result.json").read_text())
        assert (result["rain"]["heavy"]["level"], result["rain"]["heavy"]["seed"]) == (
            "heavy",
            seed,
        )
        assert len(result["rain"]["heavy"]["density"]) == 2
        found.append(result["results"]["heavy"])
    assert found[0] == found[1]


def test_rain_differs_between_pictures_and_seeds():
    from manas_jax.data import rain

    clean = np.zeros((32, 48, 3), np.uint8)
    rainy = [
        rain.synthesize_8_bits(clean, seed, "heavy") for seed in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert (rainy[0] == rainy[1]).all() and rainy[0].any()
    assert (rainy[0] != rainy[2]).any() and (rainy[0] != rainy[3]).any()


def _lose_a_picture(folder):
    (folder / "rainy" / "2.png").unlink()


def _resize_a_picture(folder):
    Image.new("RGB", (40, 32)).save(folder / "rainy" / "2.png")


def _darken(folder):
    for path in (folder / "clean").iterdir():
        Image.new("RGB", (48, 32)).save(path)


def _empty(folder):
    for path in (folder / "rainy").iterdir():
        path.unlink()


def _repeat_a_name(folder):
    for side in ("clean", "rainy"):
        Image.open(folder / side / "2.png").save(folder / side / "2.bmp")


def _change_nothing(_):
    pass


@pytest.mark.parametrize(
    ("spoil", "changes", "words"),
    [
        (_lose_a_picture, {}, "2.png"),
        (_resize_a_picture, {}, "40x32 pixels, but"),
        (_darken, {}, "no boxes in"),
        (_empty, {}, "holds no pictures"),
        (_change_nothing, {"rainy": "nowhere"}, "nowhere: no such folder"),
        (_change_nothing, {"weights": "nothing"}, "weights nothing: neither a file nor one of"),
        (_change_nothing, {"weights": "rainy=general"}, "rainy: give each network"),
        (_change_nothing, {"restored": "other"}, "give NAME=PATH"),
        (_change_nothing, {"against": "other"}, "--against other: give one of rainy, general"),
        (_change_nothing, {"seed": -1}, "--seed -1"),
        (_change_nothing, {"json": "nowhere/result.json"}, "--json=nowhere"),
        (_change_nothing, {"json": "."}, "--json=. cannot be written"),
        (_change_nothing, {"pictures": "."}, "--pictures .: exists"),
        (_change_nothing, {"json": "x", "pictures": "x"}, "--pictures x: also given with --json"),
        (_repeat_a_name, {"pictures": "shown"}, "two pictures of --clean as 2; rename one"),
        (_change_nothing, {"labels": "nowhere.json"}, "nowhere.json: no labels in COCO's format"),
        (
            _change_nothing,
            {"rainy": None, "rain": "light", "restored": "other=clean"},
            "--restored",
        ),
    ],
)
def test_bad_input_is_one_line(squares, refused, spoil, changes, words):
    spoil(squares)
    refused(main(arguments(squares, **changes)), words)


def test_outputs_may_not_replace_inputs(squares, refused):
    detector = squares / "bright.onnx"
    before = detector.read_bytes()
    refused(main(arguments(squares, json=detector)), "bright.onnx is an input: give another file")
    below = detector / "drawn"
    refused(main(arguments(squares, pictures=below)), f"--pictures: cannot write {below}")
    assert detector.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": []}, "no labels of 0.png, 1.png, 2.png and 1 more"),
        ({"images": [{"id": i, "file_name": f"{i}.png", "width": 9, "height": 9}
                     for i in range(4)]},
         "labels 0.png as 9x9 pixels, but it has 48x32"),
        ({"images": [{"id": 9 * i + j, "file_name": f"{folder}/{i}.png"} for i in range(4)
                     for j, folder in enumerate("ab")]},
         "several pictures of the name 0.png, 1.png, 2.png and 1 more"),
        ({"categories": [{"id": 7, "name": "zebra"}]}, "knows none of its classes (zebra)"),
        ({"annotations": [{"id": 1}]}, "no 'image_id'"),
        ({"annotations": [{"id": 1, "image_id": 10, "category_id": 7, "bbox": [0, 0, 9, 9],
                           "area": None}]}, "area None"),
        ({"annotations": []}, "no boxes in"),
        ({"categories": 3}, "no labels in COCO's format"),
    ],
)  # fmt: skip
def test_bad_labels_are_one_line(squares, capsys, changes, words):
    assert main(arguments(squares, labels=coco(squares, **changes))) == 1
    line = capsys.readouterr().err
    assert words in line and "labels.json" in line and line.count("\n") == 1


def test_a_missing_package_is_named_before_anything_is_computed(squares, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda x: None if "coco" in x else find(x))
    monkeypatch.setattr(BrightDetector, "__call__", None)
    assert main(arguments(squares)) == 1
    line = capsys.readouterr().err
    assert "needs pycocotools; pip install" in line and "requirements-downstream.txt" in line
