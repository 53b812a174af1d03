"""Finding and splitting scenes: every layout, every mistake a folder can hold."""

import ml_collections
import numpy as np
import pytest
from PIL import Image

from manas_jax.data import images, scenes
from manas_jax.errors import UserError


def _config(**changes):
    defaults = {
        "source": "folder",
        "root": "",
        "tfds_name": "",
        "validation_scenes": 1,
        "architecture_share": 0.5,
        "split_seed": 0,
        "limit": 0,
    }
    return ml_collections.ConfigDict(defaults | changes)


def _picture(path, value, size=(12, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def _pair_folder(root, clean="norain/{}.png", rainy=("rain/{}.png",), count=3, first=0):
    for i in range(first, first + count):
        _picture(root / clean.format(i), 10 + i)
        for name in rainy:
            _picture(root / name.format(i), 110 + i)


def _value(picture):
    return int(scenes.read(picture)[0, 0, 0])


PAIR_LAYOUTS = {
    "rain100l": ("norain/{}.png", ["rain/{}.png"]),
    "jorder": ("norain/norain-{}.png", ["rain/rain-{}.png"]),
    "jorder with scale": ("norain/norain-{}.png", ["rain/norain-{}x2.png"]),
    "rain13k": ("target/{}.png", ["input/{}.jpg"]),
    "rainy and clean": ("Clean/{}.bmp", ["Rainy/{}.png"]),
    "raindrop": ("gt/{}_clean.png", ["data/{}_rain.png"]),
    "rain14000": ("ground_truth/{}.jpg", ["rainy_image/{}_1.jpg", "rainy_image/{}_14.jpg"]),
    "prefixes": ("norain-{}.png", ["rain-{}.png"]),
    "suffixes": ("{}_clean.png", ["{}_rain.png"]),
    "suffixes and versions": ("{}_clean.png", ["{}_rain_1.png", "{}_rain_2.png"]),
}


@pytest.mark.parametrize("layout", PAIR_LAYOUTS)
def test_pair_layouts(tmp_path, layout):
    clean, rainy = PAIR_LAYOUTS[layout]
    _pair_folder(tmp_path, clean, rainy, count=12)
    (tmp_path / "notes.txt").write_text("not a picture, and no harm")
    training, test = scenes.find_folder(tmp_path)
    assert test == ()
    assert [scene.name for scene in training] == [str(i) for i in range(12)]  # 2 before 10
    for i, scene in enumerate(training):
        assert len(scene.rainy) == len(rainy) and scene.size == (12, 16)
        assert abs(_value(scene.clean) - (10 + i)) <= 1  # JPEG
        assert all(abs(_value(picture) - (110 + i)) <= 1 for picture in scene.rainy)


def test_train_and_test_folders(tmp_path):
    _pair_folder(tmp_path / "train", count=4)
    _pair_folder(tmp_path / "test", count=2, first=50)
    found = scenes.load(_config(root=str(tmp_path)), crop=8)
    assert {len(found.weights), len(found.architecture), len(found.validation)} <= {1, 2}
    assert [_value(scene.clean) for scene in found.test] == [60, 61]


def test_several_folders_below_one(tmp_path):
    _pair_folder(tmp_path / "train", "target/{}.png", ["input/{}.png"])
    _pair_folder(tmp_path / "test" / "A", "target/{}.png", ["input/{}.png"], first=30)
    _pair_folder(tmp_path / "test" / "B", "target/{}.png", ["input/{}.png"], first=60)
    _, test = scenes.find_folder(tmp_path)
    assert [scene.name for scene in test] == ["A/30", "A/31", "A/32", "B/60", "B/61", "B/62"]


def test_clean_photographs(tmp_path):
    for i, name in enumerate(["b.png", "a.jpg", "summer_rain.png"]):
        _picture(tmp_path / name, i)
    training, _ = scenes.find_folder(tmp_path)
    assert [scene.name for scene in training] == ["a", "b", "summer_rain"]
    assert all(scene.rainy == () for scene in training)


def test_identical_clean_pictures_are_one_scene(tmp_path):
    _pair_folder(tmp_path, count=4)
    _picture(tmp_path / "norain/9.png", 11)  # the bytes of 1.png
    _picture(tmp_path / "rain/9.png", 99)
    merged = scenes.merge_identical(scenes.find_folder(tmp_path)[0])
    assert [scene.name for scene in merged] == ["0", "1", "2", "3"]
    assert [_value(picture) for picture in merged[1].rainy] == [111, 99]


def test_training_scenes_that_are_also_tested_are_left_out(tmp_path, caplog):
    _pair_folder(tmp_path / "train", count=5)
    _pair_folder(tmp_path / "test", count=2, first=3)  # 3 and 4 are in train too
    found = scenes.load(_config(root=str(tmp_path)), crop=8)
    training = (*found.weights, *found.architecture, *found.validation)
    assert sorted(scene.name for scene in training) == ["0", "1", "2"]
    assert "2 training scenes left out" in caplog.text


def _breakages():
    def remove(name):
        return lambda root: (root / name).unlink()

    def write(name, content):
        return lambda root: (root / name).write_bytes(content)

    def unequal(root):
        _picture(root / "rain/2.png", 5, size=(16, 12))

    def small(root):
        _picture(root / "rain/2.png", 5, size=(7, 16))
        _picture(root / "norain/2.png", 5, size=(7, 16))

    def emptied(root):
        for path in (root / "norain").iterdir():
            path.unlink()

    def without_rain_folder(root):
        for path in (root / "rain").iterdir():
            path.unlink()
        (root / "rain").rmdir()

    def two_clean_folders(root):
        _picture(root / "clean/1.png", 1)

    def one_name_twice(root):
        _picture(root / "norain/1.jpg", 1)

    return {
        "rainy without clean": (remove("norain/1.png"), r"rain/1\.png.*rainy without"),
        "clean without rainy": (remove("rain/1.png"), r"norain/1\.png.*clean without"),
        "unequal": (unequal, r"rain/2\.png: 16x12 .*norain/2\.png has 12x16"),
        "smaller than the crop": (small, r"norain/2\.png: 7x16 .* 8x8"),
        "zero bytes, clean": (write("norain/0.png", b""), r"norain/0\.png: the file is empty"),
        "zero bytes, rainy": (write("rain/0.png", b""), r"rain/0\.png: the file is empty"),
        "no picture": (write("rain/0.png", b"text"), r"rain/0\.png: cannot be read"),
        "emptied folder": (emptied, r"norain: no pictures"),
        "no rainy folder": (without_rain_folder, r"norain: there is no folder of rainy"),
        "two clean folders": (two_clean_folders, r"both clean and norain"),
        "one name twice": (one_name_twice, r"1\.jpg and 1\.png have one name"),
    }


@pytest.mark.parametrize("mistake", _breakages())
@pytest.mark.parametrize("part", ["train", "test"])
def test_mistakes_in_folders(tmp_path, mistake, part):
    _pair_folder(tmp_path / "train", count=4)
    _pair_folder(tmp_path / "test", count=4, first=0)
    for i in range(4):  # other backgrounds than in training
        _picture(tmp_path / "test/norain" / f"{i}.png", 200 + i)
    spoil, message = _breakages()[mistake]
    spoil(tmp_path / part)
    if (mistake, part) == ("smaller than the crop", "test"):  # whole pictures need not hold one
        assert len(scenes.load(_config(root=str(tmp_path)), crop=8).test) == 4
        return
    with pytest.raises(UserError, match=message) as caught:
        scenes.load(_config(root=str(tmp_path)), crop=8)
    assert "\n" not in str(caught.value)


def test_mistakes_in_marked_files(tmp_path):
    _picture(tmp_path / "1_rain.png", 1)
    with pytest.raises(UserError, match=r"1_rain\.png: rainy without"):
        scenes.find_folder(tmp_path)
    _picture(tmp_path / "1_clean.png", 1)
    _picture(tmp_path / "other.png", 1)
    with pytest.raises(UserError, match=r"other\.png: neither"):
        scenes.find_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "/no/such/folder"}, "data.root: /no/such/folder is not a folder"),
        ({"root": ""}, "data.root"),
        ({"source": "elsewhere"}, "data.source: 'elsewhere'"),
        ({"source": "tfds"}, "data.tfds_name"),
    ],
)
def test_mistakes_in_the_configuration(changes, message):
    with pytest.raises(UserError, match=message):
        scenes.load(_config(**changes), crop=8)


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no pictures"):
        scenes.find_folder(tmp_path)


def _some_scenes(count, per_photograph=1):
    return [
        scenes.Scene(f"s{i}", f"{i}.png", photograph=f"p{i // per_photograph}")
        for i in range(count)
    ]


def _names(part):
    return [scene.name for scene in part]


def _split(training, **changes):
    defaults = {"validation_scenes": 4, "architecture_share": 0.5, "seed": 0}
    return scenes.split(training, **(defaults | changes))


def test_split_is_disjoint_complete_and_seeded():
    training = _some_scenes(24)
    test = tuple(_some_scenes(2))
    found = _split(training, test=test)
    parts = [_names(p) for p in (found.weights, found.architecture, found.validation)]
    assert [len(part) for part in parts] == [10, 10, 4]
    assert sorted(name for part in parts for name in part) == sorted(_names(training))
    assert found.test == test
    assert found == _split(training, test=test)
    assert _names(found.validation) != _names(_split(training, seed=1).validation)


def test_split_goes_by_photograph():
    found = _split(_some_scenes(40, per_photograph=3))
    parts = [
        {scene.photograph for scene in part}
        for part in (found.weights, found.architecture, found.validation)
    ]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert 4 <= len(found.validation) <= 6
    assert len(found.weights + found.architecture + found.validation) == 40


def test_limit_keeps_validation():
    full, limited = _split(_some_scenes(24)), _split(_some_scenes(24), limit=5)
    assert _names(limited.validation) == _names(full.validation)
    assert len(limited.weights) + len(limited.architecture) == 5
    by_three = _split(_some_scenes(24, per_photograph=3), limit=5)
    assert len(by_three.weights) + len(by_three.architecture) == 5


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_split_may_give_all_to_one_side(share):
    found = _split(_some_scenes(10), architecture_share=share)
    assert (len(found.weights), len(found.architecture)) == ((6, 0) if share == 0 else (0, 6))


@pytest.mark.parametrize(
    "changes",
    [
        {"validation_scenes": 10},
        {"validation_scenes": 9},
        {"validation_scenes": 30},
        {"architecture_share": 1.5},
        {"limit": 1},
        {"validation_scenes": -1},
    ],
)
def test_split_that_cannot_be(changes):
    with pytest.raises(UserError, match=r"data\.validation_scenes"):
        _split(_some_scenes(10), **changes)


def test_photographs_are_there_and_stay_apart():
    found = scenes.load(_config(source="photographs", validation_scenes=8), crop=64)
    parts = [found.weights, found.architecture, found.validation]
    photographs = [{scene.photograph for scene in part} for part in parts]
    assert sum(map(len, photographs)) == len(set.union(*photographs)) == 8
    assert not set.union(*photographs) & {scene.name for scene in found.test}
    assert all(min(scene.size) >= 192 for part in parts for scene in part)
    assert len(found.validation) >= 8 and len(found.weights) >= 8
    for scene in found.test:
        assert images.read(scene.clean).std() > 20  # a picture, not a blank


def test_tiles_cover_a_photograph_without_overlap():
    training, _ = scenes.find_photographs(crop=64)
    tiles = [scene for scene in training if scene.photograph == "rocket"]
    assert sum(np.prod(tile.size) for tile in tiles) == 427 * 640
    rows = [[t.clean for t in tiles if t.name.startswith(f"rocket-{i}-")] for i in range(2)]
    path = scenes._packaged("skimage", "data/rocket.jpg")
    np.testing.assert_array_equal(
        np.concatenate([np.concatenate(row, 1) for row in rows]), images.read(path)
    )


def test_photographs_too_small_for_the_crop():
    with pytest.raises(UserError, match="do not hold a patch of 400x400"):
        scenes.load(_config(source="photographs"), crop=400)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two TFDS data sets, prepared for real: pairs and photographs."""
    tfds = pytest.importorskip("tensorflow_datasets")
    import tensorflow as tf

    folder = str(tmp_path_factory.mktemp("tfds"))
    image = tfds.features.Image(shape=(12, 16, 3), encoding_format="png")

    def prepare(name, keys, counts):
        def examples(count, base):
            for i in range(count):
                yield {
                    key: np.full((12, 16, 3), base + i + 100 * j, np.uint8)
                    for j, key in enumerate(keys)
                }

        spec = {key: tf.TensorSpec((12, 16, 3), tf.uint8) for key in keys}
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(dict.fromkeys(keys, image)),
            split_datasets={
                part: tf.data.Dataset.from_generator(
                    lambda count=count, base=base: examples(count, base), output_signature=spec
                )
                for base, (part, count) in zip((10, 60), counts.items(), strict=True)
            },
            data_dir=folder,
            disable_shuffling=True,
        )

    prepare("tiny_pairs", ["clean", "rainy"], {"train": 5, "test": 2})
    prepare("tiny_photographs", ["image"], {"train": 5, "validation": 2})
    prepare("tiny_riddle", ["left", "right"], {"train": 2, "test": 1})
    return folder


def test_tfds_pairs(prepared):
    config = _config(source="tfds", tfds_name="tiny_pairs", root=prepared)
    found = scenes.load(config, crop=8)
    training = (*found.weights, *found.architecture, *found.validation)
    assert sorted(_value(scene.clean) for scene in training) == [10, 11, 12, 13, 14]
    assert all(_value(s.rainy[0]) == _value(s.clean) + 100 for s in (*training, *found.test))
    assert len(found.test) == 2


def test_tfds_photographs_and_mistakes(prepared):
    training, test = scenes.find_tfds("tiny_photographs", prepared)
    assert (len(training), len(test)) == (5, 2)
    assert all(scene.rainy == () for scene in training)
    with pytest.raises(UserError, match=r"left.*right"):
        scenes.find_tfds("tiny_riddle", prepared)
    with pytest.raises(UserError, match="no TFDS data set 'no_such_set'"):
        scenes.find_tfds("no_such_set", prepared)
