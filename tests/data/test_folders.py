"""Folders: every layout that is detected, every mistake in names."""

import logging
import os
import pathlib

import pytest
from fake_data import data_config, save_flat, value, write_pair_folder

from manas_jax.data import folders, sources
from manas_jax.errors import UserError

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
    write_pair_folder(tmp_path, clean, rainy, count=12)
    (tmp_path / "notes.txt").write_text("not an image, and ignored")
    training, test = folders.load(tmp_path)
    assert test == ()
    assert [scene.name for scene in training] == [str(i) for i in range(12)]  # 2 before 10
    for i, scene in enumerate(training):
        assert len(scene.rainy) == len(rainy) and scene.size == (12, 16)
        assert abs(value(scene.clean) - (10 + i)) <= 1  # JPEG
        assert all(abs(value(image) - (110 + i)) <= 1 for image in scene.rainy)


def test_nested_folders(tmp_path):
    write_pair_folder(tmp_path / "train", "target/{}.png", ["input/{}.png"])
    write_pair_folder(tmp_path / "test" / "A", "target/{}.png", ["input/{}.png"], first=30)
    write_pair_folder(tmp_path / "test" / "B", "target/{}.png", ["input/{}.png"], first=60)
    _, test = folders.load(tmp_path)
    assert [scene.name for scene in test] == ["A/30", "A/31", "A/32", "B/60", "B/61", "B/62"]


def test_clean_photographs(tmp_path):
    for i, name in enumerate(["b.png", "a.jpg", "summer_rain.png"]):
        save_flat(tmp_path / name, i)
    training, _ = folders.load(tmp_path)
    assert [scene.name for scene in training] == ["a", "b", "summer_rain"]
    assert all(scene.rainy == () for scene in training)


def test_rainy_files_beside_clean_ones_of_no_role_are_pairs(tmp_path):
    for i, name in enumerate(["1.png", "1_rain.png", "2.png", "2_rain_1.png", "2_rain_2.png"]):
        save_flat(tmp_path / name, i)
    scenes = {scene.name: scene for scene in folders.load(tmp_path)[0]}
    rainy = {name: [pathlib.Path(x).name for x in scene.rainy] for name, scene in scenes.items()}
    assert rainy == {"1": ["1_rain.png"], "2": ["2_rain_1.png", "2_rain_2.png"]}
    assert {pathlib.Path(scene.clean).name for scene in scenes.values()} == {"1.png", "2.png"}
    save_flat(tmp_path / "3_rain.png", 9)
    with pytest.raises(UserError, match=r"3_rain\.png: rainy without"):
        folders.load(tmp_path)


def test_files_with_inconsistent_roles(tmp_path):
    save_flat(tmp_path / "1_rain.png", 1)
    with pytest.raises(UserError, match=r"1_rain\.png: rainy without"):
        folders.load(tmp_path)
    save_flat(tmp_path / "1_clean.png", 1)
    save_flat(tmp_path / "other.png", 1)
    with pytest.raises(UserError, match=r"other\.png: the name says neither"):
        folders.load(tmp_path)


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no images"):
        folders.load(tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Rain100L/train", "Rain100L/test"),
        ("a/Rain100L/train", "a/Rain100L/test"),
        ("RainTrainL", "Rain100L"),
        ("train/RainTrainL", "test/Rain100L"),
        ("rain_data_train_Light", "rain_data_test_Light"),
        ("trainset", "testset"),
        ("DID-MDN-training", "DID-MDN-test"),
        ("Rain12600", "Rain1400"),
        ("TRAIN", "Testing"),
    ],
)
def test_splits_by_published_names_and_in_a_folder_above(tmp_path, train, test):
    write_pair_folder(tmp_path / train, count=4)
    write_pair_folder(tmp_path / test, count=2, first=50)
    found = folders.load(tmp_path)
    assert [[scene.name for scene in split] for split in found] == [list("0123"), ["50", "51"]]


@pytest.mark.parametrize(
    "name", ["contest", "latest", "train_test", "strain", "Rain100", "test1x", "untrained"]
)
def test_names_without_a_split(name):
    assert folders.split_role(name) == ("test" if name == "test1x" else "")


def test_several_datasets_with_splits_of_their_own(tmp_path):
    for first, dataset in enumerate(["Rain100L", "Rain14000"]):
        write_pair_folder(tmp_path / dataset / "training", count=1, first=first)
        write_pair_folder(tmp_path / dataset / "testing", count=1, first=first + 50)
    training, test = folders.load(tmp_path)
    assert [scene.name for scene in training] == ["Rain100L/0", "Rain14000/1"]
    assert [scene.name for scene in test] == ["Rain100L/50", "Rain14000/51"]


def test_what_lies_beside_the_splits_is_named(tmp_path, caplog):
    write_pair_folder(tmp_path / "train")
    write_pair_folder(tmp_path / "validation")
    folders.load(tmp_path)
    assert "validation: beside training and test data, ignored" in caplog.text


def test_what_lies_beside_pictures_and_pairs_is_named(tmp_path, caplog):
    write_pair_folder(tmp_path / "pairs")
    write_pair_folder(tmp_path / "pairs" / "more")
    (tmp_path / "files" / "more").mkdir(parents=True)
    for name in ("pairs/more/overview.png", "files/0.png", "files/more/1.png"):
        save_flat(tmp_path / name, 9)
    assert len(folders.load(tmp_path / "pairs")[0]) == len(folders.load(tmp_path / "pairs/more")[0])
    assert "pairs/more: beside folders of clean and rainy images, ignored" in caplog.text
    assert "overview.png: beside folders of clean and rainy images, ignored" in caplog.text
    assert len(folders.load(tmp_path / "files")[0]) == 1
    assert "files/more: beside images, ignored" in caplog.text


def test_images_of_kinds_that_are_not_read_are_named(tmp_path, caplog):
    write_pair_folder(tmp_path / "pairs")
    for folder in ("pairs/norain", "photographs"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("a.AVIF", "b.gif"):
            (tmp_path / folder / name).write_bytes(b"an image")
    folders.load(tmp_path / "pairs")
    assert "norain/a.AVIF, " in caplog.text
    assert "b.gif: .avif, .gif is not read in training and scoring, ignored" in caplog.text
    caplog.clear()
    with pytest.raises(UserError, match="photographs: no images"):
        folders.load(tmp_path / "photographs")
    assert "photographs/a.AVIF" in caplog.text


def test_training_on_images_called_test_is_warned_about(tmp_path, caplog):
    write_pair_folder(tmp_path / "data" / "test", count=4)
    sources.load_splits(data_config(root=str(tmp_path / "data" / "test")), crop=8)
    assert "'test' in their path, such as test/norain/0.png" in caplog.text
    caplog.clear()
    write_pair_folder(tmp_path / "data" / "train", count=4, first=9)
    found = sources.load_splits(data_config(root=str(tmp_path / "data")), crop=8)
    assert not caplog.text
    with caplog.at_level(logging.INFO):
        sources.log_splits(found)
    assert f"4 scenes for test, such as {tmp_path}/data/test/norain/0.png" in caplog.text


@pytest.mark.parametrize("kind", ["pipe", "link to nothing"])
def test_entries_that_are_no_files(tmp_path, kind):
    write_pair_folder(tmp_path)
    odd = tmp_path / "rain" / "9.png"
    os.mkfifo(odd) if kind == "pipe" else odd.symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"rain/9\.png is neither a file nor a folder"):
        folders.load(tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_root_that_no_folder_can_have(tmp_path, name):
    with pytest.raises(UserError, match="is not a folder"):
        folders.load(tmp_path / name)


def test_folders_in_a_circle(tmp_path):
    write_pair_folder(tmp_path / "A", count=1)
    (tmp_path / "B").symlink_to(tmp_path)
    assert [scene.name for scene in folders.load(tmp_path)[0]] == ["0"]
