"""Folders: every layout that is detected, every mistake in names."""

import pytest
from fake_data import save_flat, value, write_pair_folder

from manas_jax.data import folders
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
