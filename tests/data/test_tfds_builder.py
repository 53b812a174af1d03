"""What the builder writes, and what reading that gives."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from fake_data import background, data_config, rained, save, write_rain100l
from PIL import Image
from tensorflow_datasets.core import shuffle

from manas_jax.data import finder, folders, images, pipeline, prepare, tfds_builder, tfds_reader
from manas_jax.data.duplicates import merge_identical
from manas_jax.data.evaluation import evaluation_pairs
from manas_jax.data.scene import Scene, read
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError


@pytest.fixture
def rain100l(tmp_path):
    return write_rain100l(tmp_path / "Rain100L")


def _run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


def test_prepare_and_read_back(tmp_path, rain100l, capsys):
    data = tmp_path / "data"
    assert _run("rain100l", "--root", rain100l, "--data_dir", data, "--partial") == 0
    said = capsys.readouterr().out
    assert f"Wrote {data}/derain/rain100l/1.0.0" in said and f"data.root={data}" in said
    assert "Downloading" not in said

    from_folder = load_splits(data_config(root=str(rain100l)), crop=8)
    prepared = load_splits(
        data_config(source="tfds", tfds_name="derain/rain100l", root=str(data)), crop=8
    )
    for part in ("weights", "architecture", "validation", "test"):
        ours, theirs = getattr(prepared, part), getattr(from_folder, part)
        assert [scene.name for scene in ours] == [scene.name for scene in theirs]
        for scene, other in zip(ours, theirs, strict=True):
            assert scene.size == other.size and len(scene.rainy) == len(other.rainy)
            for a, b in zip((scene.clean, *scene.rainy), (other.clean, *other.rainy), strict=True):
                assert not isinstance(a, np.ndarray)  # still on disk
                np.testing.assert_array_equal(read(a), read(b))
    versions = [len(s.rainy) for s in (*prepared.weights, *prepared.architecture)]
    assert sum(versions) + sum(len(s.rainy) for s in prepared.validation) == 6
    pairs = list(evaluation_pairs(prepared.test, data_config(evaluation_level="light")))
    assert [name for name, _, _ in pairs] == ["10", "11"]


def test_batches_of_folder_and_prepared_dataset_are_equal(tmp_path, rain100l):
    data = tmp_path / "data"
    assert _run("rain100l", "--root", rain100l, "--data_dir", data, "--partial") == 0
    config = data_config(
        versions=1,
        real=1.0,
        transfer=0.0,
        synthetic=0.0,
        level="mixed",
        appearance="additive",
        veil=0.0,
        stripes=0.0,
        cache_gib=0.0,
        cache_dir="",
    )
    from_folder, _ = folders.load(rain100l)
    prepared, _ = tfds_reader.load("derain/rain100l", str(data))
    for cached in (0.0, 1.0):
        config.cache_gib = cached
        first, second = (
            pipeline.Batches(found, config, batch_scenes=2, crop=8, seed=3).at(1)
            for found in (merge_identical(from_folder), prepared)
        )
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


def test_builder_follows_the_tfds_protocol(tmp_path, rain100l):
    assert tfds_builder.Derain.name == tfds_reader.NAME
    builder = tfds_builder.Derain(config="rain100l", data_dir=str(tmp_path))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(rain100l))
    )
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        "train": 6,
        "test": 2,
    }
    example = builder.as_data_source("train")[2]
    np.testing.assert_array_equal(example["clean"], background(2))
    np.testing.assert_array_equal(example["rainy"][0], rained(2))


def test_side_by_side_files_become_scenes(tmp_path):
    for version, density in enumerate(("Light", "Medium", "Heavy"), start=1):
        for i in range(3):
            pair = np.hstack([rained(i, version), background(i)])
            name = f"Rain_{density}/train2018new/{i}.png"
            save(tmp_path / "raw/DID-MDN-training" / name, pair)
    assert _run("rain1200", "--root", tmp_path / "raw", "--data_dir", tmp_path, "--partial") == 0
    training, test = tfds_reader.load("derain/rain1200", str(tmp_path))
    assert len(training) == 3 and test == ()
    for i, scene in enumerate(training):
        assert scene.photograph == str(i)
        np.testing.assert_array_equal(read(scene.clean), background(i))
        rainy = [read(image) for image in scene.rainy]
        np.testing.assert_array_equal(rainy, [rained(i, v) for v in (3, 1, 2)])  # by name


def test_files_are_stored_as_pixels_where_decoders_disagree(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    rainy = tmp_path / "raw/turned.jpg"
    save(rainy, rained(1), exif=exif)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    save(tmp_path / "raw/turned_by_xmp.jpg", rained(1), xmp=xmp)
    Image.fromarray(rained(2)).convert("RGBA").save(tmp_path / "raw/alpha.png")
    save(tmp_path / "raw/plain.webp", rained(3), lossless=True)
    save(tmp_path / "raw/plain.jpg", rained(4))
    save(tmp_path / "raw/gray.png", rained(5)[..., 0])
    found, _ = finder.find("real", tmp_path / "raw")
    target = tfds_builder.write("real", {"test": found["test"].scenes}, str(tmp_path / "data"))
    source = tfds.builder_from_directory(target).as_data_source("test")
    for scene, example in zip(found["test"].scenes, source, strict=True):
        expected = images.read(scene.rainy[0])
        np.testing.assert_array_equal(example["rainy"][0], expected)  # as TFDS decodes
        assert example["name"].decode() == scene.name
    _, test = tfds_reader.load("derain/real", str(tmp_path / "data"))
    for scene, other in zip(test, found["test"].scenes, strict=True):
        np.testing.assert_array_equal(read(scene.rainy[0]), images.read(other.rainy[0]))


def test_order_of_many_scenes_is_preserved(tmp_path):
    """Also where TFDS sorts on disk instead of in memory."""
    for i in range(30):
        save(tmp_path / f"raw/{i}.png", rained(i))
    found, _ = finder.find("real", tmp_path / "raw")
    before = shuffle.MAX_MEM_BUFFER_SIZE
    shuffle.MAX_MEM_BUFFER_SIZE = 1000  # bytes
    try:
        tfds_builder.write("real", {"test": found["test"].scenes}, str(tmp_path))
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = before
    _, test = tfds_reader.load("derain/real", str(tmp_path))
    assert [scene.name for scene in test] == [str(i) for i in range(30)]
    for i, scene in enumerate(test):
        np.testing.assert_array_equal(read(scene.rainy[0]), rained(i))


def test_photographs_without_ground_truth_cannot_be_trained_on(tmp_path):
    save(tmp_path / "raw/1.jpg", rained(1))
    assert _run("real", "--root", tmp_path / "raw", "--data_dir", tmp_path) == 0
    config = data_config(source="tfds", tfds_name="derain/real", root=str(tmp_path))
    with pytest.raises(UserError, match=r"has no clean image.*manas_jax\.derain"):
        load_splits(config, crop=8)


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_failed_writes_leave_nothing(tmp_path, rain100l):
    training, _ = folders.load(rain100l)
    broken = rain100l / "train/rain/3.png"
    broken.write_bytes(broken.read_bytes()[:20])  # went bad after the inspection
    bad = {"damaged": training, "gone": (*training[:3], Scene("x", training[0].clean, ("gone",)))}
    for name, part in bad.items():
        with pytest.raises(UserError, match=r"rain/3\.png: cannot be read|gone: no such image"):
            tfds_builder.write("rain100l", {"train": part}, str(tmp_path / name))
        left = [path.name for path in _files(tmp_path / name) if path.parent.name != ".config"]
        assert left == []
        with pytest.raises(UserError, match=r"manas_jax\.data\.prepare"):
            tfds_reader.load("derain/rain100l", str(tmp_path / name))


def test_damaged_shards(tmp_path, rain100l):
    assert _run("rain100l", "--root", rain100l, "--data_dir", tmp_path, "--partial") == 0
    training, _ = tfds_reader.load("derain/rain100l", str(tmp_path))
    shard = next((tmp_path / "derain").rglob("*train.array_record*"))
    shard.unlink()
    with pytest.raises(UserError, match=r"clean image of example 0 .*rain100l.*prepare"):
        read(training[0].clean)
    index = next((tmp_path / "derain").rglob("metadata.json"))
    index.write_text('{"scenes": {"train": []}}')
    with pytest.raises(UserError, match=r"the index lists 0 scenes in train.*again"):
        tfds_reader.load("derain/rain100l", str(tmp_path))
