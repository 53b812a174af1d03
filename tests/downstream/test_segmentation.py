import json

import numpy as np
import pytest
from PIL import Image

from manas_jax.downstream import segmentation, segmenters
from manas_jax.downstream.__main__ import main
from manas_jax.downstream.onnx_model import Input
from manas_jax.downstream.segmenters import OnnxSegmenter, Recipe
from manas_jax.errors import UserError
from manas_jax.models.unet import UNet

pytestmark = pytest.mark.usefixtures("no_networks")

STRETCH = Input(resize="stretch")


def bright(picture):
    """Class 1 where pixels are bright."""
    return (picture[..., 0] > 100).astype(np.uint8)


@pytest.fixture
def masks(squares):
    """masks/ of the squares, with a void column at the left."""
    (squares / "masks").mkdir()
    for path in (squares / "clean").iterdir():
        mask = bright(np.array(Image.open(path)))
        mask[:, 0] = 9
        Image.fromarray(mask).save(squares / "masks" / path.name)
    return squares


@pytest.fixture
def trained_bright(monkeypatch):
    """Training gives `bright` at once."""
    monkeypatch.setattr(segmenters, "trained", lambda *_: (bright, "0123.safetensors"))


def arguments(folder, **changes):
    options = {
        "--train": folder / "train",
        "--classes": "dark,bright",
        "--clean": folder / "clean",
        "--rainy": folder / "rainy",
        "--masks": folder / "masks",
        "--weights": "general",
        "--json": folder / "result.json",
        **{f"--{key}": value for key, value in changes.items()},
    }
    pairs = (pair for pair in options.items() if pair[1] is not None)
    return ["segmentation", *(str(x) for pair in pairs for x in pair)]


@pytest.fixture
def train_folder(squares):
    """train/images and train/masks of pictures that are not among the clean ones."""
    for kind in ("images", "masks"):
        (squares / "train" / kind).mkdir(parents=True)
    for i in range(3):
        picture = np.zeros((32, 48, 3), np.uint8)
        picture[4 : 12 + i, 8:30] = 240
        Image.fromarray(picture).save(squares / "train" / "images" / f"{i}.png")
        Image.fromarray(bright(picture)).save(squares / "train" / "masks" / f"{i}.png")
    return squares / "train"


def test_confusion_and_iou():
    truth = np.uint8([[0, 0, 1], [1, 1, 7]])
    found = np.uint8([[0, 1, 1], [1, 5, 0]])
    confusion = segmentation.confusion(truth, found, 3)
    np.testing.assert_array_equal(confusion, [[1, 1, 0, 0], [0, 2, 0, 1], [0, 0, 0, 0]])
    iou = segmentation.intersection_over_union(confusion)
    np.testing.assert_allclose(iou, [1 / 2, 2 / 4, np.nan])


@pytest.mark.usefixtures("masks", "train_folder", "trained_bright")
def test_against_masks(squares, capsys):
    other = f"other={squares / 'other'}"
    assert main(arguments(squares, restored=other, pictures=squares / "drawn")) == 0
    result = json.loads((squares / "result.json").read_text())
    rows = result["results"]["rainy"]
    assert list(rows) == ["clean", "rainy", "general", "other"]
    assert rows["clean"]["miou"]["value"] == rows["other"]["miou"]["value"] == 1
    # Two squares of four lack 6 of 10 rows.
    assert rows["rainy"]["classes_iou"]["bright"]["value"] == pytest.approx(0.7, abs=0.05)
    assert rows["rainy"]["images"][1] < rows["rainy"]["images"][0] == 1
    assert rows["other"]["miou"]["gain"]["value"] == 1 - rows["rainy"]["miou"]["value"]
    assert result["segmenter"]["trained"] == "0123.safetensors"
    assert "mIoU" in capsys.readouterr().out
    assert len(list((squares / "drawn" / "rainy").glob("*.png"))) == 4


@pytest.mark.usefixtures("train_folder", "trained_bright")
def test_without_masks_the_clean_pictures_are_the_truth(squares):
    assert main(arguments(squares, masks=None)) == 0
    result = json.loads((squares / "result.json").read_text())
    assert result["truth"] == "own masks" and "clean" not in result["results"]["rainy"]


def test_onnx_segmenters_give_scores_or_classes(save_onnx):
    pytest.importorskip("onnxruntime")
    picture = np.zeros((16, 64, 3), np.uint8)
    picture[:, :32, 0], picture[:, 32:, 2] = 200, 200
    scores = OnnxSegmenter(save_onnx({"x": ("Identity", {}, (1, 3, 32, 32))}), STRETCH)
    mask = scores(picture)
    assert scores.classes == 3 and mask.shape == (16, 64)
    assert (mask[:, :30] == 0).all() and (mask[:, 34:] == 2).all()
    classes = OnnxSegmenter(save_onnx({"x": np.full((1, 8, 8), 2, np.int64)}), STRETCH)
    assert classes.classes is None and (classes(picture) == 2).all()


@pytest.mark.parametrize(
    ("output", "layout", "words"),
    [
        (np.zeros((1, 5), np.float32), STRETCH, "has an output (1, 5) of float32"),
        (np.zeros((1, 8, 8), np.float32), STRETCH, "integers are needed"),
        (np.zeros((1, 2, 8, 8), np.float32), Input(), "resize = 'stretch'"),
    ],
)
def test_other_outputs_of_segmenters_are_one_line(save_onnx, output, layout, words):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError) as error:
        OnnxSegmenter(save_onnx({"x": output}), layout)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_is_trained_segments_and_is_kept(train_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = Recipe(size=(16, 16), widths=(8,), steps=40, batch=4, learning_rate=0.02)
    segment, name = segmenters.trained(train_folder, 2, recipe)
    picture = np.array(Image.open(train_folder / "images" / "0.png"))
    assert (segment(picture) == bright(picture)).mean() > 0.9
    monkeypatch.setattr(segmenters, "train", None)
    again, same = segmenters.trained(train_folder, 2, recipe)
    assert same == name and (again(picture) == segment(picture)).all()
    Image.fromarray(picture[::-1]).save(train_folder / "images" / "0.png")
    with pytest.raises(TypeError, match="NoneType"):  # other pictures are trained on
        segmenters.trained(train_folder, 2, recipe)


def test_parts_of_pictures_and_masks_agree():
    picture = np.random.default_rng(0).integers(0, 2, (40, 40)).repeat(4, 0).repeat(4, 1)
    mask = picture.astype(np.uint8)
    pixels, labels = segmenters._augmented(
        np.stack([200 * mask] * 3, -1), mask, (80, 80), np.random.default_rng(1)
    )
    assert ((pixels[..., 0] > pixels.mean()) == labels).mean() > 0.9


def test_names_and_shapes_of_the_parameters():
    import jax

    params = segmenters._init(UNet(3, (8, 16)), np.random.default_rng(0))
    output = jax.eval_shape(UNet(3, (8, 16)).apply, {"params": params}, np.zeros((2, 32, 32, 3)))
    assert output.shape == (2, 16, 16, 3)


def _overlap(folder):
    for kind, source in (("images", "clean"), ("masks", "masks")):
        (folder / source / "0.png").replace(folder / "train" / kind / "0.png")
    (folder / "rainy" / "0.png").unlink()
    picture = folder / "clean" / "1.png"
    (folder / "train" / "images" / "1.png").write_bytes(picture.read_bytes())


def _void(folder):
    for path in (folder / "masks").iterdir():
        Image.new("L", (48, 32), 200).save(path)


def _colour(folder):
    Image.new("RGB", (48, 32)).save(folder / "masks" / "2.png")


def _shrink(folder):
    Image.new("L", (24, 16)).save(folder / "masks" / "2.png")


def _lose(folder):
    (folder / "masks" / "2.png").unlink()


def _change_nothing(_):
    pass


@pytest.mark.usefixtures("masks", "train_folder", "trained_bright")
@pytest.mark.parametrize(
    ("spoil", "changes", "words"),
    [
        (_overlap, {}, "1.png: in --train and in --clean"),
        (_void, {}, "no pixel has one of the 2 classes"),
        (_colour, {}, "2.png: no mask (RGB)"),
        (_shrink, {}, "24x16 pixels, but"),
        (_lose, {}, "2.png"),
        (_change_nothing, {"train": "nowhere"}, "nowhere"),
        (_change_nothing, {"classes": None}, "--classes: name the classes"),
        (_change_nothing, {"classes": "one"}, "--classes: names 1, but there are at least 2"),
        (_change_nothing, {"steps": 0}, "--steps 0"),
        (_change_nothing, {"layout": "x.json"}, "--layout: is that of a --segmenter"),
        (
            _change_nothing,
            {"train": None, "segmenter": "x.onnx", "steps": 9},
            "--steps: are those of --train",
        ),
    ],
)
def test_bad_input_is_one_line(squares, refused, spoil, changes, words):
    spoil(squares)
    refused(main(arguments(squares, **changes)), words)
