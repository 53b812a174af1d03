"""Training batches: their content, and that it depends on the step only."""

import gc
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from fake_data import CODED_SIZE as SIZE
from fake_data import coded, data_config, write_coded_scenes
from PIL import Image

from manas_jax.data import pipeline, rain
from manas_jax.data.scene import Scene
from manas_jax.errors import UserError

CROP = 8


def _scenes(count=5, versions=3):
    return tuple(
        Scene(f"s{i}", coded(0, i), tuple(coded(v, i) for v in range(1, versions + 1)))
        for i in range(count)
    )


def _batches(scene_list, config=None, **changes):
    arguments = {"batch_scenes": 4, "crop": CROP, "seed": 0} | changes
    return pipeline.Batches(scene_list, config or data_config(), **arguments)


def _assert_same(first, second):
    assert first.keys() == second.keys() == {"rainy", "clean"}
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def _codes(batch):
    """(rows and columns, version, scene) of coded patches, clean ones first."""
    together = np.concatenate([batch["clean"][:, None], batch["rainy"]], axis=1)
    values = np.round(together * 255).astype(int)
    return values[..., :2], values[..., 2] // 16, values[..., 2] % 16


ALL_KINDS = {
    "real": 1.0, "transfer": 1.0, "synthetic": 1.0, "veil": 0.3, "appearance": "mixed",
    "stripes": 0.5,
}  # fmt: skip


def test_shapes_types_and_range():
    batch = _batches(_scenes(), data_config(**ALL_KINDS)).at(0)
    assert batch["rainy"].shape == (4, 3, CROP, CROP, 3)
    assert batch["clean"].shape == (4, CROP, CROP, 3)
    for values in batch.values():
        assert values.dtype == np.float32 and values.min() >= 0 and values.max() <= 1


def test_versions_share_crop_and_flip_and_are_drawn_without_replacement():
    batches = _batches(_scenes())
    seen = set()
    for batch in batches.iterate(0, 30):
        places, versions, scene = _codes(batch)
        assert (places == places[:, :1]).all() and (scene == scene[:, :1, :1, :1]).all()
        for element in range(4):
            corners = versions[element, :, 0, 0]
            assert corners[0] == 0 and sorted(corners[1:]) == [1, 2, 3]
            seen.add(tuple(corners[1:]))
    assert len(seen) == 6  # in every order


def test_all_symmetries_and_positions_occur():
    symmetries, rows, columns = set(), set(), set()
    for batch in _batches(_scenes()).iterate(0, 100):
        for patch in _codes(batch)[0][:, 0]:
            down, right = patch[1, 0] - patch[0, 0], patch[0, 1] - patch[0, 0]
            symmetries.add((*down, *right))
            rows.add(patch[..., 0].min())
            columns.add(patch[..., 1].min())
    assert len(symmetries) == 8
    assert all(sorted(map(abs, s)) == [0, 0, 1, 1] for s in symmetries)
    assert rows == set(range(SIZE[0] - CROP + 1)) and columns == set(range(SIZE[1] - CROP + 1))


def test_epochs_are_permutations():
    order = np.concatenate([_codes(b)[2][:, 0, 0, 0] for b in _batches(_scenes()).iterate(0, 20)])
    epochs = order.reshape(16, 5)
    assert (np.sort(epochs) == np.arange(5)).all()
    assert len({tuple(epoch) for epoch in epochs}) > 10


def test_single_scene():
    assert (_codes(_batches(_scenes(1)).at(3))[2] == 0).all()


@pytest.fixture(params=["memory", "disk", "nowhere"])
def cached(request, tmp_path):
    """Settings for each place where decoded images are cached."""
    return {
        "memory": {"cache_gib": 1.0},
        "disk": {"cache_gib": 0.0, "cache_dir": str(tmp_path / "cache")},
        "nowhere": {"cache_gib": 0.0},
    }[request.param]


def test_batch_depends_on_step_only(cached):
    config = data_config(**ALL_KINDS, **cached)
    batches = _batches(_scenes(), config)
    late = batches.at(7)
    for step, batch in enumerate(batches.iterate(5, 9), start=5):
        _assert_same(batch, batches.at(step))
    again = _batches(_scenes(), config)
    _assert_same(late, again.at(7))
    _assert_same(late, next(again.iterate(7)))


def test_seeds_differ():
    first, second = (_batches(_scenes(), seed=seed).at(0) for seed in (0, 1))
    assert not np.array_equal(first["clean"], second["clean"])


def test_shards_of_processes_form_the_global_batch():
    config = data_config(**ALL_KINDS)
    whole = _batches(_scenes(), config).at(3)
    shards = [_batches(_scenes(), config, process_index=i, process_count=2) for i in range(2)]
    for parts in ([s.at(3) for s in shards], [next(s.iterate(3)) for s in shards]):
        _assert_same(whole, {key: np.concatenate([part[key] for part in parts]) for key in whole})


@pytest.fixture
def files(tmp_path):
    return write_coded_scenes(tmp_path)


@pytest.mark.parametrize("cached", ["memory", "disk"], indirect=True)
def test_batches_do_not_depend_on_caching(files, cached):
    with_cache = _batches(files, data_config(**ALL_KINDS, **cached))
    without = _batches(files, data_config(**ALL_KINDS, cache_gib=0.0))
    for step in range(4):
        _assert_same(with_cache.at(step), without.at(step))


def test_patches_are_the_pixels_of_the_files(files):
    for batch in _batches(files, data_config(cache_gib=0.0)).iterate(0, 5):
        places, versions, _ = _codes(batch)
        assert (np.ptp(places[..., 0].reshape(16, -1), axis=1) == CROP - 1).all()
        assert (versions[:, 0] == 0).all() and (versions[:, 1:] > 0).all()


@pytest.mark.parametrize("way", ["at", "iterate"])
def test_truncated_file_is_named(files, cached, way):
    name = files[2].rainy[1]
    with open(name, "rb") as file:
        content = file.read()
    with open(name, "wb") as file:
        file.write(content[:-40])
    batches = _batches(files, data_config(**cached))
    with pytest.raises(UserError, match=r"2-2\.png: cannot be read"):
        for step in range(4):
            batches.at(step) if way == "at" else list(batches.iterate(step, step + 1))


STREAM = """
import sys
from fake_data import data_config
from manas_jax.data.pipeline import Batches
from manas_jax.data.scene import Scene
from manas_jax.errors import UserError
scenes = tuple(Scene(name, name, (name,)) for name in sys.argv[1:])
config = data_config(versions=1, cache_gib=0.0)
try:
    for batch in Batches(scenes, config, batch_scenes=2, crop=8, seed=0).iterate(0):
        pass
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.slow
def test_process_ends_with_one_line_where_a_streamed_file_is_damaged(files):
    """Python's exit does not wait for the threads of the iterator."""
    names = [scene.clean for scene in files] * 3
    for name in names[2:4]:
        os.truncate(name, os.path.getsize(name) - 40)
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", STREAM, *names],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=120,
        )
        lines = [line for line in done.stderr.splitlines() if "error: " in line]
        assert done.returncode == 1 and len(lines) == 1, done.stderr
        assert "cannot be read" in lines[0] and "Traceback" not in done.stderr


def test_file_that_changes_size_is_named(files):
    batches = _batches(files, data_config(cache_gib=0.0))
    Image.fromarray(coded(0, 1, (9, 9))).save(files[1].clean)
    with pytest.raises(UserError, match=r"1-0\.png: its size changed"):
        list(batches.iterate(0, 4))


def test_used_up_real_versions_are_replaced_by_other_kinds():
    """With one real version and K = 3, it is shown at most once; the others are synthetic."""
    config = data_config(real=100.0, synthetic=1.0)
    flat = tuple(
        Scene(f"s{i}", np.full((16, 16, 3), 50, np.uint8),
              (np.full((16, 16, 3), 60, np.uint8),))
        for i in range(3)
    )  # fmt: skip
    real = 0
    for batch in _batches(flat, config).iterate(0, 10):
        shown = (np.round(batch["rainy"] * 255) == 60).all(axis=(2, 3, 4)).sum(axis=1)
        assert (shown <= 1).all()
        real += shown.sum()
    assert real >= 35  # of 40 elements


def test_mixture_follows_the_weights():
    flat = tuple(
        Scene(f"s{i}", np.zeros((16, 16, 3), np.uint8),
              tuple(np.full((16, 16, 3), 200, np.uint8) for _ in range(3)))
        for i in range(3)
    )  # fmt: skip
    config = data_config(real=3.0, synthetic=1.0, level="light")
    shown = [
        (np.round(batch["rainy"] * 255) == 200).all(axis=(2, 3, 4)).mean()
        for batch in _batches(flat, config).iterate(0, 40)
    ]
    assert np.mean(shown) == pytest.approx(0.75, abs=0.08)  # 480 versions: sigma 0.02


def test_transfer_uses_streaks_of_other_scenes():
    """The rain of scene i adds 10 (i + 1); each scene gets the rain of the others only."""
    flat = tuple(
        Scene(f"s{i}", np.full((12 + i, 16, 3), 40 * (i + 1), np.uint8),
              (np.full((12 + i, 16, 3), 50 * (i + 1), np.uint8),))
        for i in range(3)
    )  # fmt: skip
    seen = {i: set() for i in range(3)}
    for batch in _batches(flat, data_config(real=0.0, transfer=1.0)).iterate(0, 10):
        for clean, rainy in zip(batch["clean"], batch["rainy"], strict=True):
            scene = round(clean.max() * 255 / 40) - 1
            assert (rainy == rainy[:, :1, :1, :1]).all()
            seen[scene] |= {round(float(r.max() - clean.max()) * 255) for r in rainy}
    assert seen == {0: {20, 30}, 1: {10, 30}, 2: {10, 20}}


def test_transfer_reaches_scenes_without_rain_of_their_own():
    clean_only = Scene("bare", np.full((16, 16, 3), 9, np.uint8))
    batches = _batches((*_scenes(3), clean_only), data_config(real=0.0, transfer=1.0))
    for batch in batches.iterate(0, 3):
        assert np.isfinite(batch["rainy"]).all()


def test_synthetic_versions_differ_and_depend_on_level_and_veil():
    bare = (Scene("bare", np.zeros((80, 80, 3), np.uint8)),)

    def mean(**changes):
        config = data_config(real=0.0, synthetic=1.0, **changes)
        batch = _batches(bare, config, crop=64).at(0)
        assert len({version.tobytes() for version in batch["rainy"].reshape(12, -1)}) == 12
        return batch["rainy"].mean()

    assert mean(level="light") < mean(level="heavy") < mean(level="heavy", veil=0.8)


def test_stripes_stand_in_the_clean_image_behind_the_same_rain():
    """Of the scenes with a fence, own rain is added to it; all else is as without stripes."""
    plain, striped = (_batches(_scenes(), data_config(stripes=share)).at(0) for share in (0.0, 0.5))
    fenced = np.array(
        [(a != b).any() for a, b in zip(plain["clean"], striped["clean"], strict=True)]
    )
    assert 0 < fenced.sum() < len(fenced)
    np.testing.assert_array_equal(plain["rainy"][~fenced], striped["rainy"][~fenced])
    rain = plain["rainy"] - plain["clean"][:, None]
    expected = np.clip(striped["clean"][:, None] + rain, 0, 1)
    np.testing.assert_allclose(striped["rainy"][fenced], expected[fenced], atol=1e-6)
    always = _batches(_scenes(), data_config(stripes=1.0)).at(0)
    assert all((a != b).any() for a, b in zip(plain["clean"], always["clean"], strict=True))


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"versions": 4}, {}, r"data\.versions: 4 .*scene s0 has 3; enable data\.transfer"),
        ({"versions": 0}, {}, r"data\.versions"),
        ({"real": -1.0}, {}, r"data\.real"),
        ({"real": 0.0}, {}, r"data\.real"),
        ({"level": "drizzle"}, {}, r"data\.level: 'drizzle'"),
        ({"appearance": "painted"}, {}, r"data\.appearance: 'painted'"),
        ({"veil": 2.0}, {}, r"data\.veil"),
        ({"stripes": 1.5}, {}, r"data\.stripes: 1\.5 must lie between 0 and 1"),
        ({}, {"process_count": 3}, "divisible by the 3 processes"),
        ({}, {"batch_scenes": 0}, "must be positive"),
        ({}, {"crop": 21}, "20x28 pixels are too small for patches of 21x21"),
    ],
)
def test_invalid_arguments(changes, arguments, message):
    with pytest.raises(UserError, match=message):
        _batches(_scenes(), data_config(**changes), **arguments)


def test_unsuitable_scenes():
    with pytest.raises(UserError, match="no training scenes"):
        _batches(())
    with pytest.raises(UserError, match=r"data\.transfer: needs at least two"):
        _batches(_scenes(1), data_config(transfer=1.0))
    with pytest.raises(UserError, match=r"scene s0 has 0"):
        _batches(_scenes(versions=0))


@pytest.mark.parametrize("cache_dir", ["", "cache"])
def test_memory_use_is_constant(cache_dir, tmp_path):
    """Peak memory grows by far less than the size of all batches."""
    large = tuple(Scene(f"s{i}", coded(0, i, (80, 80)), (coded(1, i, (80, 80)),)) for i in range(3))
    folder = cache_dir and str(tmp_path / cache_dir)
    config = data_config(transfer=1.0, cache_gib=0.0, cache_dir=folder)
    stream = _batches(large, config, batch_scenes=8, crop=64).iterate(0)
    for _ in range(30):
        next(stream)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = sum(sum(v.nbytes for v in next(stream).values()) for _ in range(100))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert total > 150e6 and grown < 30e6


def test_streaks_of_batches_match_the_rain_module():
    """On black scenes the images of a batch are the streaks alone."""
    bare = (Scene("bare", np.zeros((64, 64, 3), np.uint8)),)
    config = data_config(real=0.0, synthetic=1.0, versions=1, level="light")
    batch = _batches(bare, config, batch_scenes=16, crop=64).at(0)
    mean = batch["rainy"].mean(axis=(1, 2, 3, 4))
    expected = [
        rain.streaks(tf.constant([1, i], tf.int64), 64, 64, "light").numpy().mean()
        for i in range(16)
    ]
    assert np.median(mean) == pytest.approx(np.median(expected), rel=0.5)
