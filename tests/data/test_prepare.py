"""The prepare command end to end: what it says, what it writes, what reading that gives."""

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle

from manas_jax.data import catalog, duplicates, images, pipeline, prepare, scenes, tfds_builder
from manas_jax.data.scenes import Scene
from manas_jax.errors import UserError

SIZE = (24, 32)


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


def _background(number):
    blocks = np.random.default_rng(number).integers(0, 200, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(blocks).resize(SIZE[::-1], Image.Resampling.BICUBIC))


def _rained(number, version=1):
    pixels = _background(number).copy()
    pixels[:, :: 2 + version] += 55
    return pixels


def _save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def rain100l(tmp_path):
    """Six training and two test pairs; pair 5 of training has the background of pair 4."""
    root = tmp_path / "Rain100L"
    for split, numbers in {"train": range(6), "test": (10, 11)}.items():
        for i in numbers:
            _save(root / split / f"norain/{i}.png", _background(min(i, 4) if i < 10 else i))
            _save(root / split / f"rain/{i}.png", _rained(min(i, 4) if i < 10 else i, 1 + (i == 5)))
    return root


def _run(*arguments):
    return prepare.main([str(argument) for argument in arguments])


def test_prepare_and_read_back(tmp_path, rain100l, capsys):
    data = tmp_path / "data"
    assert _run("rain100l", "--root", rain100l, "--data_dir", data, "--partial") == 0
    said = capsys.readouterr().out
    assert f"Wrote {data}/derain/rain100l/1.0.0" in said and f"data.root={data}" in said
    assert "Downloading" not in said

    from_folder = scenes.load(_config(root=str(rain100l)), crop=8)
    prepared = scenes.load(
        _config(source="tfds", tfds_name="derain/rain100l", root=str(data)), crop=8
    )
    for part in ("weights", "architecture", "validation", "test"):
        ours, theirs = getattr(prepared, part), getattr(from_folder, part)
        assert [scene.name for scene in ours] == [scene.name for scene in theirs]
        for scene, other in zip(ours, theirs, strict=True):
            assert scene.size == other.size and len(scene.rainy) == len(other.rainy)
            for a, b in zip((scene.clean, *scene.rainy), (other.clean, *other.rainy), strict=True):
                assert not isinstance(a, np.ndarray)  # still on disk
                np.testing.assert_array_equal(scenes.read(a), scenes.read(b))
    versions = [len(s.rainy) for s in (*prepared.weights, *prepared.architecture)]
    assert sum(versions) + sum(len(s.rainy) for s in prepared.validation) == 6
    pairs = list(pipeline.evaluation_pairs(prepared.test, _config(evaluation_level="light")))
    assert [name for name, _, _ in pairs] == ["10", "11"]


def test_batches_are_the_same_from_the_folder_and_prepared(tmp_path, rain100l):
    data = tmp_path / "data"
    assert _run("rain100l", "--root", rain100l, "--data_dir", data, "--partial") == 0
    config = _config(
        versions=1,
        real=1.0,
        transfer=0.0,
        synthetic=0.0,
        level="mixed",
        veil=0.0,
        cache_gib=0.0,
        cache_dir="",
    )
    from_folder, _ = scenes.find_folder(rain100l)
    prepared, _ = scenes.find_tfds("derain/rain100l", str(data))
    for cached in (0.0, 1.0):
        config.cache_gib = cached
        first, second = (
            pipeline.Batches(found, config, batch_scenes=2, crop=8, seed=3).at(1)
            for found in (scenes.merge_identical(from_folder), prepared)
        )
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


def test_the_builder_works_as_tfds_builders_do(tmp_path, rain100l):
    builder = tfds_builder.Derain(config="rain100l", data_dir=str(tmp_path))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(rain100l))
    )
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        "train": 6,
        "test": 2,
    }
    example = builder.as_data_source("train")[2]
    np.testing.assert_array_equal(example["clean"], _background(2))
    np.testing.assert_array_equal(example["rainy"][0], _rained(2))


def test_the_same_from_the_benchmark_by_name(rain100l):
    named = scenes.load(_config(source="rain100l", root=str(rain100l)), crop=8)
    folder = scenes.load(_config(root=str(rain100l)), crop=8)
    assert [s.rainy for s in named.weights] == [s.rainy for s in folder.weights]
    assert [s.clean for s in named.test] == [s.clean for s in folder.test]
    with pytest.raises(UserError, match=r"data\.root: .* holds rain800"):
        scenes.load(_config(source="rain800"), crop=8)


def test_side_by_side_files_become_scenes(tmp_path):
    for version, density in enumerate(("Light", "Medium", "Heavy"), start=1):
        for i in range(3):
            pair = np.hstack([_rained(i, version), _background(i)])
            name = f"Rain_{density}/train2018new/{i}.png"
            _save(tmp_path / "raw/DID-MDN-training" / name, pair)
    assert _run("rain1200", "--root", tmp_path / "raw", "--data_dir", tmp_path, "--partial") == 0
    training, test = scenes.find_tfds("derain/rain1200", str(tmp_path))
    assert len(training) == 3 and test == ()
    for i, scene in enumerate(training):
        assert scene.photograph == str(i)
        np.testing.assert_array_equal(scenes.read(scene.clean), _background(i))
        rainy = [scenes.read(picture) for picture in scene.rainy]
        np.testing.assert_array_equal(rainy, [_rained(i, v) for v in (3, 1, 2)])  # by name


def test_formats_that_decoders_disagree_on_are_stored_as_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    rainy = tmp_path / "raw/turned.jpg"
    _save(rainy, _rained(1), exif=exif)
    Image.fromarray(_rained(2)).convert("RGBA").save(tmp_path / "raw/alpha.png")
    _save(tmp_path / "raw/plain.webp", _rained(3), lossless=True)
    _save(tmp_path / "raw/plain.jpg", _rained(4))
    _save(tmp_path / "raw/gray.png", _rained(5)[..., 0])
    found, _ = prepare.finder.find("real", tmp_path / "raw")
    target = tfds_builder.write("real", {"test": found["test"].scenes}, str(tmp_path / "data"))
    source = tfds.builder_from_directory(target).as_data_source("test")
    for scene, example in zip(found["test"].scenes, source, strict=True):
        expected = images.read(scene.rainy[0])
        np.testing.assert_array_equal(example["rainy"][0], expected)  # as TFDS decodes
        assert example["name"].decode() == scene.name
    _, test = scenes.find_tfds("derain/real", str(tmp_path / "data"))
    for scene, other in zip(test, found["test"].scenes, strict=True):
        np.testing.assert_array_equal(scenes.read(scene.rainy[0]), images.read(other.rainy[0]))


def test_photographs_without_ground_truth_cannot_be_trained_on(tmp_path):
    _save(tmp_path / "raw/1.jpg", _rained(1))
    assert _run("real", "--root", tmp_path / "raw", "--data_dir", tmp_path) == 0
    config = _config(source="tfds", tfds_name="derain/real", root=str(tmp_path))
    with pytest.raises(UserError, match=r"has no clean picture.*manas_jax\.derain"):
        scenes.load(config, crop=8)


def test_leaks_are_told_and_dropped(tmp_path, rain100l, capsys):
    _save(rain100l / "test/norain/12.png", _background(2) + np.uint8(5))
    _save(rain100l / "test/rain/12.png", _rained(2, 3))
    common = ("rain100l", "--root", rain100l, "--partial", "--data_dir")
    assert _run(*common, tmp_path / "as_is") == 0
    assert "LEAKS: 1 training scenes are also tested, as 2 = test 12" in capsys.readouterr().out
    assert _run(*common, tmp_path / "dropped", "--drop_leaks") == 0
    kept = [
        [scene.name for scene in scenes.find_tfds("derain/rain100l", str(tmp_path / place))[0]]
        for place in ("as_is", "dropped")
    ]
    assert kept == [["0", "1", "2", "3", "4"], ["0", "1", "3", "4"]]


def test_order_survives_many_scenes(tmp_path):
    """Also where TFDS sorts on disk instead of in memory."""
    for i in range(30):
        _save(tmp_path / f"raw/{i}.png", _rained(i))
    found, _ = prepare.finder.find("real", tmp_path / "raw")
    before = shuffle.MAX_MEM_BUFFER_SIZE
    shuffle.MAX_MEM_BUFFER_SIZE = 1000  # bytes
    try:
        tfds_builder.write("real", {"test": found["test"].scenes}, str(tmp_path))
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = before
    _, test = scenes.find_tfds("derain/real", str(tmp_path))
    assert [scene.name for scene in test] == [str(i) for i in range(30)]
    for i, scene in enumerate(test):
        np.testing.assert_array_equal(scenes.read(scene.rainy[0]), _rained(i))


# --- mistakes ----------------------------------------------------------------------------------


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_check_writes_nothing(tmp_path, rain100l, capsys):
    data = tmp_path / "data"
    assert _run("rain100l", "--root", rain100l, "--data_dir", data, "--partial", "--check") == 0
    assert "Rain100L" in capsys.readouterr().out and not data.exists()


def test_a_wrong_count_ends_it(tmp_path, rain100l, capsys):
    data = tmp_path / "data"
    assert _run("rain100l", "--root", rain100l, "--data_dir", data) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("error: ")
    assert "train has 6 pairs instead of 200; test has 2 pairs instead of 100" in said.err
    assert not data.exists()


def test_nothing_is_overwritten(tmp_path, rain100l, capsys):
    data = tmp_path / "data"
    common = ("rain100l", "--root", rain100l, "--data_dir", data, "--partial")
    assert _run(*common) == 0
    before = {path: path.read_bytes() for path in _files(data)}
    assert _run(*common) == 1
    assert "is there already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in _files(data)} == before


def test_nothing_half_written_is_left(tmp_path, rain100l):
    training, _ = scenes.find_folder(rain100l)
    broken = rain100l / "train/rain/3.png"
    broken.write_bytes(broken.read_bytes()[:20])  # went bad after the inspection
    bad = {"damaged": training, "gone": (*training[:3], Scene("x", training[0].clean, ("gone",)))}
    for name, part in bad.items():
        with pytest.raises(UserError, match=r"rain/3\.png: cannot be read|gone: no such picture"):
            tfds_builder.write("rain100l", {"train": part}, str(tmp_path / name))
        left = [path.name for path in _files(tmp_path / name) if path.parent.name != ".config"]
        assert left == []
        with pytest.raises(UserError, match=r"manas_jax\.data\.prepare"):
            scenes.find_tfds("derain/rain100l", str(tmp_path / name))


def test_a_place_that_cannot_be_written_to(tmp_path, rain100l, capsys):
    (tmp_path / "file").write_text("in the way")
    common = ("rain100l", "--root", rain100l, "--partial", "--data_dir")
    assert _run(*common, tmp_path / "file") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: cannot write") and said.count("\n") == 1


def test_damaged_shards(tmp_path, rain100l):
    assert _run("rain100l", "--root", rain100l, "--data_dir", tmp_path, "--partial") == 0
    training, _ = scenes.find_tfds("derain/rain100l", str(tmp_path))
    shard = next((tmp_path / "derain").rglob("*train.array_record*"))
    shard.unlink()
    with pytest.raises(UserError, match=r"clean picture of example 0 .*rain100l.*prepare"):
        scenes.read(training[0].clean)
    index = next((tmp_path / "derain").rglob("metadata.json"))
    index.write_text('{"scenes": {"train": []}}')
    with pytest.raises(UserError, match=r"its index tells of 0 scenes in train.*again"):
        scenes.find_tfds("derain/rain100l", str(tmp_path))


def test_help_lists_the_benchmarks(capsys):
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said and b.title in said for name, b in catalog.BENCHMARKS.items())


def test_without_a_root_it_tells_about_the_set(capsys):
    assert prepare.main(["rain800"]) == 0
    assert "700 pairs" in capsys.readouterr().out
    assert prepare.main(["rain8"]) == 1
    assert "no benchmark 'rain8'" in capsys.readouterr().err


# --- fingerprints ------------------------------------------------------------------------------


def _print(pixels):
    return duplicates.fingerprint(np.ascontiguousarray(pixels, np.uint8))


def test_the_hash_knows_a_picture_again():
    large = Image.fromarray(_background(1)).resize((320, 240), Image.Resampling.BICUBIC)
    original = np.asarray(large)
    changed = {
        "brighter": original + np.uint8(9),
        "noisy": original + np.random.default_rng(0).integers(0, 9, original.shape, np.uint8),
        "smaller": np.asarray(large.resize((200, 150), Image.Resampling.LANCZOS)),
    }
    for pixels in changed.values():
        (found,) = duplicates.alike([_print(original)], [_print(pixels)])
        assert found[:2] == (0, 0)
        assert _print(pixels).digest != _print(original).digest
    assert duplicates.alike([_print(original)], [_print(original[:, ::-1])]) == []


def test_strangers_are_not_alike_and_copies_are_found_over_chunks():
    prints = [_print(_background(i)) for i in range(150)]
    assert duplicates.alike(prints) == []
    prints.append(prints[3])
    assert duplicates.alike(prints) == [(3, 150, 0)]
    assert duplicates.alike(prints[:2], prints[2:]) == []
    assert duplicates.alike([], prints) == []


def test_pictures_without_structure_are_told_apart_by_their_gray():
    black, white = (_print(np.full((20, 20, 3), value)) for value in (0, 255))
    assert duplicates.alike([black], [white]) == []
    assert duplicates.alike([black], [black]) == [(0, 0, 0)]


def test_merging_keeps_scenes_of_other_photographs_apart():
    marks = [_print(_background(1)), _print(_background(1) + np.uint8(1)), _print(_background(2))]
    given = [Scene(str(i), f"{i}.png", (f"r{i}.png",), "one") for i in range(3)]
    near, prints = duplicates.merge(given, marks, near_identical=True)
    assert [scene.rainy for scene in near] == [("r0.png", "r1.png"), ("r2.png",)]
    assert prints == (marks[0], marks[2])
    assert duplicates.merge(given, marks)[0] == tuple(given)
    others = [Scene(str(i), f"{i}.png", (f"r{i}.png",), str(i)) for i in range(3)]
    assert duplicates.merge(others, marks, near_identical=True)[0] == tuple(others)
