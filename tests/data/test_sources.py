"""From the configuration to scenes: splits, leaks, every mistake that a folder can hold."""

import pytest
from fake_data import data_config, save_flat, value, write_pair_folder, write_rain100l

from manas_jax.data import images
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError


def test_train_and_test_folders(tmp_path):
    write_pair_folder(tmp_path / "train", count=4)
    write_pair_folder(tmp_path / "test", count=2, first=50)
    found = load_splits(data_config(root=str(tmp_path)), crop=8)
    assert {len(found.weights), len(found.architecture), len(found.validation)} <= {1, 2}
    assert [value(scene.clean) for scene in found.test] == [60, 61]


def test_training_scenes_that_are_also_tested_are_excluded(tmp_path, caplog):
    write_pair_folder(tmp_path / "train", count=5)
    write_pair_folder(tmp_path / "test", count=2, first=3)  # 3 and 4 are in train too
    found = load_splits(data_config(root=str(tmp_path)), crop=8)
    training = (*found.weights, *found.architecture, *found.validation)
    assert sorted(scene.name for scene in training) == ["0", "1", "2"]
    assert "2 training scenes left out" in caplog.text


def _breakages():
    def remove(name):
        return lambda root: (root / name).unlink()

    def write(name, content):
        return lambda root: (root / name).write_bytes(content)

    def unequal(root):
        save_flat(root / "rain/2.png", 5, size=(16, 12))

    def small(root):
        save_flat(root / "rain/2.png", 5, size=(7, 16))
        save_flat(root / "norain/2.png", 5, size=(7, 16))

    def emptied(root):
        for path in (root / "norain").iterdir():
            path.unlink()

    def without_rain_folder(root):
        for path in (root / "rain").iterdir():
            path.unlink()
        (root / "rain").rmdir()

    def two_clean_folders(root):
        save_flat(root / "clean/1.png", 1)

    def one_name_twice(root):
        save_flat(root / "norain/1.jpg", 1)

    return {
        "rainy without clean": (remove("norain/1.png"), r"rain/1\.png.*rainy without"),
        "clean without rainy": (remove("rain/1.png"), r"norain/1\.png.*clean without"),
        "unequal": (unequal, r"rain/2\.png: 16x12 .*norain/2\.png has 12x16"),
        "smaller than the crop": (small, r"norain/2\.png: 7x16 .* 8x8"),
        "zero bytes, clean": (write("norain/0.png", b""), r"norain/0\.png: the file is empty"),
        "zero bytes, rainy": (write("rain/0.png", b""), r"rain/0\.png: the file is empty"),
        "not an image": (write("rain/0.png", b"text"), r"rain/0\.png: no image of a known"),
        "emptied folder": (emptied, r"norain: no images"),
        "no rainy folder": (without_rain_folder, r"norain: there is no folder of rainy"),
        "two clean folders": (two_clean_folders, r"has both clean and norain"),
        "one name twice": (one_name_twice, r"1\.jpg and .*1\.png have one name"),
    }


@pytest.mark.parametrize("mistake", _breakages())
@pytest.mark.parametrize("part", ["train", "test"])
def test_faulty_folders(tmp_path, mistake, part):
    write_pair_folder(tmp_path / "train", count=4)
    write_pair_folder(tmp_path / "test", count=4, first=0)
    for i in range(4):  # other backgrounds than in training
        save_flat(tmp_path / "test/norain" / f"{i}.png", 200 + i)
    spoil, message = _breakages()[mistake]
    spoil(tmp_path / part)
    if (mistake, part) == ("smaller than the crop", "test"):  # whole images may be smaller
        assert len(load_splits(data_config(root=str(tmp_path)), crop=8).test) == 4
        return
    with pytest.raises(UserError, match=message) as caught:
        load_splits(data_config(root=str(tmp_path)), crop=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "/no/such/folder"}, "data.root: /no/such/folder is not a folder"),
        ({"root": ""}, "data.root"),
        ({"source": "elsewhere"}, "data.source: 'elsewhere'"),
        ({"source": "tfds"}, "data.tfds_name"),
    ],
)
def test_invalid_configuration(changes, message):
    with pytest.raises(UserError, match=message):
        load_splits(data_config(**changes), crop=8)


def test_photographs_are_not_shared_between_splits():
    found = load_splits(data_config(source="photographs", validation_scenes=8), crop=64)
    parts = [found.weights, found.architecture, found.validation]
    photographs = [{scene.photograph for scene in part} for part in parts]
    assert sum(map(len, photographs)) == len(set.union(*photographs)) == 8
    assert not set.union(*photographs) & {scene.name for scene in found.test}
    assert all(min(scene.size) >= 192 for part in parts for scene in part)
    assert len(found.validation) >= 8 and len(found.weights) >= 8
    for scene in found.test:
        assert images.read(scene.clean).std() > 20  # not a uniform image


def test_photographs_too_small_for_the_crop():
    with pytest.raises(UserError, match="too small for patches of 400x400"):
        load_splits(data_config(source="photographs"), crop=400)


def test_dataset_by_name_equals_its_folder(tmp_path):
    write_rain100l(tmp_path)
    named = load_splits(data_config(source="rain100l", root=str(tmp_path)), crop=8)
    folder = load_splits(data_config(root=str(tmp_path)), crop=8)
    assert [s.rainy for s in named.weights] == [s.rainy for s in folder.weights]
    assert [s.clean for s in named.test] == [s.clean for s in folder.test]
    with pytest.raises(UserError, match=r"data\.root: .* holds rain800"):
        load_splits(data_config(source="rain800"), crop=8)
