"""Datasets joined into one folder, with scenes held out."""

import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from manas_jax.config import default
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError
from tools import join_datasets


def _pairs(folder, count, seed):
    rng = np.random.default_rng(seed)
    for role in ("rain", "norain"):
        (folder / role).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / role / f"{i}.png")
    return folder


def _run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["join_datasets", *map(str, arguments)])
    join_datasets.main()


def test_scenes_are_held_out_dataset_by_dataset(tmp_path, monkeypatch):
    first, second = _pairs(tmp_path / "a", 5, 0), _pairs(tmp_path / "b", 4, 1)
    # Rain of another kind on the backgrounds of `a`: no way to train on what is held out.
    third = _pairs(tmp_path / "c", 5, 2)
    for i in range(5):
        (third / "norain" / f"{i}.png").write_bytes((first / "norain" / f"{i}.png").read_bytes())
    _run(monkeypatch, tmp_path / "all", f"one={first}:2", f"two={second}:1", f"three={third}:0")

    data = default().data
    data.update(root=str(tmp_path / "all"), validation_scenes=0)
    splits = load_splits(data, 64)
    training = splits.weights + splits.architecture
    assert sorted(scene.name.split("/")[0] for scene in splits.test) == ["one", "one", "two"]
    assert len(training) == 3 + 3
    assert sorted(len(scene.rainy) for scene in training) == [1, 1, 1, 2, 2, 2]

    data.update(root=str(first), validation_scenes=2)
    alone = {scene.name for scene in load_splits(data, 64).validation}
    assert {s.name.split("/")[1] for s in splits.test if s.name.startswith("one")} == alone


def test_folders_of_a_dataset_may_repeat_names(tmp_path, monkeypatch):
    for seed, part in enumerate(("day", "night")):
        _pairs(tmp_path / "parts" / "train" / part, 3, seed)
    _run(monkeypatch, tmp_path / "all", f"one={tmp_path / 'parts'}:1")
    data = default().data
    data.update(root=str(tmp_path / "all"), validation_scenes=0)
    splits = load_splits(data, 64)
    scenes = splits.weights + splits.architecture + splits.test
    assert len(scenes) == 6 and all(len(scene.rainy) == 1 for scene in scenes)
    for scene in scenes:
        clean, rainy = (pathlib.Path(file).resolve() for file in (scene.clean, *scene.rainy))
        assert rainy == clean.parents[1] / "rain" / clean.name


def test_versions_of_one_picture_are_not_those_of_another(tmp_path, monkeypatch):
    """As `street.png` of one part has versions, and `street_2.png` is another part's picture."""
    first, second = (
        _pairs(tmp_path / "parts" / "train" / part, 1, i) for i, part in enumerate("ab")
    )
    for role in ("rain", "norain"):
        (first / role / "0.png").rename(first / role / "street.png")
        (second / role / "0.png").rename(second / role / "street_2.png")
    for version in range(3):
        (first / "rain" / f"street_0{version}.png").write_bytes(
            (first / "rain" / "street.png").read_bytes()
        )
    _run(monkeypatch, tmp_path / "all", f"one={tmp_path / 'parts'}:0")
    data = default().data
    data.update(root=str(tmp_path / "all"), validation_scenes=0, architecture_share=0.0)
    scenes = {scene.name: scene for scene in load_splits(data, 64).weights}
    assert {name: len(scene.rainy) for name, scene in scenes.items()} == {
        "street": 4,
        "street_2": 1,
    }
    for scene in scenes.values():
        clean, *rainy = (pathlib.Path(file).resolve() for file in (scene.clean, *scene.rainy))
        assert {file.parents[1] for file in rainy} == {clean.parents[1]}


@pytest.mark.parametrize("dataset", ["a", "a=b", "a=b:", "=b:1", "a=:1", "a=b:x"])
def test_malformed_datasets_are_named(tmp_path, monkeypatch, dataset):
    with pytest.raises(UserError, match="give NAME=DIR:HELD_OUT"):
        _run(monkeypatch, tmp_path / "all", dataset)


def test_existing_folders_are_left_alone(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="exists: name a new folder"):
        _run(monkeypatch, tmp_path, "a=b:1")


def test_datasets_of_one_name_are_refused(tmp_path, monkeypatch):
    folder = _pairs(tmp_path / "a", 2, 0)
    with pytest.raises(UserError, match="another dataset is called one"):
        _run(monkeypatch, tmp_path / "all", f"one={folder}:1", f"one={folder}:0")


def test_nothing_is_left_after_an_error(tmp_path, monkeypatch):
    folder = _pairs(tmp_path / "a", 4, 0)
    with pytest.raises(UserError, match="missing"):
        _run(monkeypatch, tmp_path / "all", f"one={folder}:1", f"two={tmp_path / 'missing'}:0")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file/all: cannot be written"):
        _run(monkeypatch, tmp_path / "file" / "all", f"one={tmp_path}:0")
