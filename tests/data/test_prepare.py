"""The prepare command: its checks, its summary, its errors."""

import dataclasses
import signal
import sys

import numpy as np
import pytest
from fake_data import (
    HEIGHT,
    LAYOUTS,
    WIDTH,
    background,
    rained,
    save,
    write_halves,
    write_layout,
    write_pairs,
    write_rain100l,
)

from manas_jax.data import catalog, prepare, tfds_reader
from manas_jax.errors import UserError


def _small(monkeypatch, name, count=3):
    """Changes a dataset to have `count` pairs per split."""
    entry = catalog.DATASETS[name]
    splits = {k: dataclasses.replace(v, pairs=(count,)) for k, v in entry.splits.items()}
    monkeypatch.setitem(catalog.DATASETS, name, dataclasses.replace(entry, splits=splits))


PAIRED = [layout for layout, (_, s) in LAYOUTS.items() if all(v == 1 for *_, v in s.values())]


@pytest.mark.parametrize("layout", PAIRED)
def test_complete_datasets_pass(tmp_path, monkeypatch, layout):
    name, splits = LAYOUTS[layout]
    _small(monkeypatch, name)
    write_layout(tmp_path, splits)
    inspection = prepare.inspect(name, tmp_path)
    assert inspection.wrong_counts == () and inspection.leaks == () and inspection.unused == ()
    assert all(part.clean_rougher < 0.5 and not part.similar for part in inspection.splits.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inspect_rejects_wrong_counts(tmp_path, layout):
    name, splits = LAYOUTS[layout]
    write_layout(tmp_path, splits)
    with pytest.raises(UserError) as caught:
        prepare.inspect(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message and "--partial" in message
    for split, (*_, versions) in splits.items():
        assert f"{split} has {3 * versions} pairs instead of" in message
    assert len(prepare.inspect(name, tmp_path, partial=True).wrong_counts) == len(splits)


@pytest.mark.parametrize(
    ("layout", "role"),
    [(layout, role) for layout in PAIRED if "side by side" not in layout for role in (0, 1)],
)
def test_missing_counterpart(tmp_path, layout, role):
    name, splits = LAYOUTS[layout]
    write_layout(tmp_path, splits)
    split, s = ("train", 0) if "train" in splits else ("test", 0)
    lost = tmp_path / splits[split][role].format(i=100 * s + 2, v=1)
    lost.unlink()
    expected = "rainy without its clean" if role == 0 else "clean without a rainy"
    with pytest.raises(UserError, match=expected) as caught:
        prepare.inspect(name, tmp_path, partial=True)
    assert "\n" not in str(caught.value)
    remaining = tmp_path / splits[split][1 - role].format(i=100 * s + 2, v=1)
    assert str(remaining.relative_to(tmp_path)) in str(caught.value)


@pytest.mark.parametrize("layout", [p for p in PAIRED if "train" in LAYOUTS[p][1]])
def test_leak_between_train_and_test_is_found(tmp_path, layout):
    name, splits = LAYOUTS[layout]
    write_layout(tmp_path, splits)
    test = next(split for split in splits if split != "train")
    clean, rainy, _ = splits[test]
    # Background 2 is a training image; here it is brighter, so that no byte or pixel is equal.
    pixels = background(2) + np.uint8(9)
    if rainy in ("left", "right"):
        save(tmp_path / clean.format(i=150), np.hstack([pixels, rained(2, 2)]))
    else:
        save(tmp_path / clean.format(i=150), pixels)
        save(tmp_path / rainy.format(i=150), rained(2, 2))
    inspection = prepare.inspect(name, tmp_path, partial=True)
    assert len(inspection.leaks) == 1
    leak = inspection.leaks[0]
    assert (leak.split, "2" in leak.scene, "150" in leak.test_scene) == (test, True, True)
    assert f"{leak.scene} = {test} {leak.test_scene}" in prepare.summary(inspection)
    kept = inspection.scenes(drop_leaks=True)
    assert leak.scene not in [scene.name for scene in kept["train"]] and len(kept["train"]) == 2
    assert len(inspection.scenes(drop_leaks=False)["train"]) == 3


def test_duplicates_within_a_split_are_reported(tmp_path):
    write_layout(tmp_path, LAYOUTS["rain100l, folders"][1])
    save(tmp_path / "train/norain/9.png", background(1))  # identical: merged
    save(tmp_path / "train/rain/9.png", rained(1, 2))
    save(tmp_path / "train/norain/10.png", background(2) + np.uint8(3))  # similar
    save(tmp_path / "train/rain/10.png", rained(2, 2))
    inspection = prepare.inspect("rain100l", tmp_path, partial=True)
    part = inspection.splits["train"]
    assert part.pairs == 5 and [len(s.rainy) for s in part.scenes] == [2, 1, 1, 1]
    assert [pair[:2] for pair in part.similar] == [("2", "10")]
    text = prepare.summary(inspection)
    assert "duplicates: 1 clean images of train" in text
    assert "1 scenes of train have several rainy versions, such as 1 (2)" in text
    assert "similar within train: 1 pairs of scenes, such as 2 and 10" in text


def test_unequal_sizes(tmp_path):
    write_layout(tmp_path, LAYOUTS["rain100l, folders"][1])
    save(tmp_path / "train/rain/2.png", rained(2, 1)[:-1])
    with pytest.raises(UserError, match=r"rain/2\.png: 23x32 .*norain/2\.png has 24x32"):
        prepare.inspect("rain100l", tmp_path, partial=True)


def test_halves_of_odd_width(tmp_path):
    write_layout(tmp_path, LAYOUTS["rain800, side by side"][1])
    save(tmp_path / "training/2.jpg", np.zeros((24, 63, 3), np.uint8))
    with pytest.raises(UserError, match=r"training/2\.jpg: 63 pixels wide"):
        prepare.inspect("rain800", tmp_path, partial=True)


def test_swapped_halves_are_reported(tmp_path):
    write_halves(tmp_path, "training/{i}.jpg", range(4), "right")  # the order of Rain1200
    inspection = prepare.inspect("rain800", tmp_path, partial=True)
    assert inspection.splits["train"].clean_rougher == 1
    assert "swapped?" in prepare.summary(inspection)


def test_unused_images_are_reported(tmp_path):
    write_layout(tmp_path, LAYOUTS["rain100l, as PReNet has it"][1])
    for kind in ("rainstreak", "rainregion"):
        save(tmp_path / f"train/RainTrainL/{kind}-1.png", rained(1, 1))
    inspection = prepare.inspect("rain100l", tmp_path, partial=True)
    assert len(inspection.unused) == 2 and inspection.splits["train"].pairs == 3
    assert "unused: 2 images" in prepare.summary(inspection)


def test_duplicate_file_of_test2800(tmp_path):
    layout = LAYOUTS["rain13k"][1]
    write_layout(tmp_path, layout)
    save(tmp_path / "test/Test2800/input/926_10(1).jpg", rained(1, 1))
    with pytest.raises(UserError, match=r"926_10\(1\)\.jpg: rainy without its clean"):
        prepare.inspect("rain13k", tmp_path, partial=True)


def test_rain100l_and_rain100h_share_backgrounds(tmp_path):
    for version, kind in enumerate(("Rain100L", "Rain100H"), start=1):
        for part, numbers in {"train": range(1, 4), "test": range(10, 12)}.items():
            parent = f"{kind}/{part}"
            # The two datasets number their images differently.
            write_pairs(
                tmp_path,
                parent + "/norain/norain-{i}.png",
                parent + "/rain/rain-{i}.png",
                [number + 100 * version for number in numbers],
                versions=(version,),
                shown=lambda i, version=version: i - 100 * version,
            )
    inspection = prepare.inspect("rain100lh", tmp_path, partial=True)
    assert [len(scene.rainy) for scene in inspection.splits["train"].scenes] == [2, 2, 2]
    assert [len(scene.rainy) for scene in inspection.splits["test"].scenes] == [2, 2]
    for scene in inspection.splits["train"].scenes:
        assert {path.split("/")[-4] for path in scene.rainy} == {"Rain100L", "Rain100H"}
    assert inspection.leaks == ()


def test_rain13k_is_grouped_by_identical_clean_images(tmp_path):
    layout = LAYOUTS["rain13k"][1]
    write_layout(tmp_path, layout)
    clean, rainy, _ = layout["train"]
    write_pairs(tmp_path, clean, rainy, (7, 8), versions=(2,), shown=lambda _: 1)
    part = prepare.inspect("rain13k", tmp_path, partial=True).splits["train"]
    assert part.pairs == 5 and [len(scene.rainy) for scene in part.scenes] == [3, 1, 1]


def test_photographs_without_ground_truth(tmp_path):
    for i in range(3):
        save(tmp_path / "street" / f"{i}.jpg", rained(i, 1))
    inspection = prepare.inspect("real", tmp_path)
    part = inspection.splits["test"]
    assert [scene.name for scene in part.scenes] == ["street/0", "street/1", "street/2"]
    assert all(scene.clean is None and scene.size == (HEIGHT, WIDTH) for scene in part.scenes)


@pytest.fixture
def rain100l(tmp_path):
    return write_rain100l(tmp_path / "Rain100L")


def _run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


def test_leaks_are_reported_and_dropped(tmp_path, rain100l, capsys):
    save(rain100l / "test/norain/12.png", background(2) + np.uint8(5))
    save(rain100l / "test/rain/12.png", rained(2, 3))
    common = ("rain100l", "--root", rain100l, "--partial", "--data_dir")
    assert _run(*common, tmp_path / "as_is") == 0
    assert (
        "LEAKS: 1 training scenes are also tested, such as 2 = test 12" in capsys.readouterr().out
    )
    assert _run(*common, tmp_path / "dropped", "--drop_leaks") == 0
    kept = [
        [scene.name for scene in tfds_reader.load("derain/rain100l", str(tmp_path / place))[0]]
        for place in ("as_is", "dropped")
    ]
    assert kept == [["0", "1", "2", "3", "4"], ["0", "1", "3", "4"]]


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_check_writes_nothing(tmp_path, rain100l, capsys):
    data = tmp_path / "data"
    common = ("rain100l", "--root", rain100l, "--partial", "--check")
    before = _files(tmp_path)
    assert _run(*common) == 0
    assert "Rain100L" in capsys.readouterr().out and _files(tmp_path) == before
    for given in (("--data_dir", data), ("--drop_leaks",)):
        assert _run(*common, *given) == 1
        line = capsys.readouterr().err
        assert line.startswith(f"error: {given[0]}: nothing is written with --check")
    assert not data.exists()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing(tmp_path, rain100l, capsys, monkeypatch, number, status):
    from manas_jax.data import tfds_builder

    monkeypatch.setattr(tfds_builder, "_encodable", lambda _: signal.raise_signal(number))
    data = tmp_path / "data"
    with pytest.raises(SystemExit) as stopped:
        sys.exit(_run("rain100l", "--root", rain100l, "--data_dir", data, "--partial"))
    assert stopped.value.code == status
    assert "Traceback" not in capsys.readouterr().err
    assert not any("1.0.0" in path.name for path in data.rglob("*"))  # nor an incomplete version


def test_wrong_count_is_an_error(tmp_path, rain100l, capsys):
    data = tmp_path / "data"
    assert _run("rain100l", "--root", rain100l, "--data_dir", data) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("error: ")
    assert "train has 6 pairs instead of 200; test has 2 pairs instead of 100" in said.err
    assert not data.exists()


def test_existing_dataset_is_not_overwritten(tmp_path, rain100l, capsys, monkeypatch):
    data = tmp_path / "data"
    common = ("rain100l", "--root", rain100l, "--data_dir", data, "--partial")
    assert _run(*common) == 0
    before = {path: path.read_bytes() for path in _files(data)}
    monkeypatch.setattr(prepare, "inspect", None)  # which decodes all pictures
    assert _run(*common) == 1
    assert "already exists" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in _files(data)} == before


def test_data_dir_that_cannot_be_written(tmp_path, rain100l, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "inspect", None)
    (tmp_path / "file").write_text("in the way")
    common = ("rain100l", "--root", rain100l, "--partial", "--data_dir")
    assert _run(*common, tmp_path / "file") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: cannot write") and said.count("\n") == 1


def test_help_lists_the_datasets(capsys):
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said and dataset.title in said for name, dataset in catalog.DATASETS.items())


def test_without_root_the_dataset_is_described(capsys):
    assert prepare.main(["rain800"]) == 0
    assert "700 pairs" in capsys.readouterr().out
    assert prepare.main(["rain800", "--check"]) == 1
    assert "--root is missing" in capsys.readouterr().err
    assert prepare.main(["rain8"]) == 1
    assert "unknown dataset 'rain8'" in capsys.readouterr().err
