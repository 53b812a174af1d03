"""Decoded images in memory, on disk or not cached: equal patches, and error messages."""

import errno
import os

import numpy as np
import pytest
import tensorflow as tf
from fake_data import CODED_SIZE, coded, data_config
from PIL import Image

from manas_jax.data import image_cache
from manas_jax.data.image_cache import ImageCache
from manas_jax.errors import UserError

COUNT = 3
PATCHES = [(image, corner) for image in range(COUNT) for corner in ((0, 0), (5, 7))]
SIDE = 8


@pytest.fixture
def paths(tmp_path):
    found = [str(tmp_path / f"{i}.png") for i in range(COUNT)]
    for i, path in enumerate(found):
        Image.fromarray(coded(0, i)).save(path)
    return found


def _cache(paths, **settings):
    return ImageCache(paths, np.array([CODED_SIZE] * len(paths)), data_config(**settings))


def _on_disk(paths, folder):
    return _cache(paths, cache_gib=0.0, cache_dir=str(folder))


def _assert_patches(cache):
    """Every patch equals that of its image."""
    for image, (top, left) in PATCHES:
        corner = tf.constant([top, left], tf.int64)
        patch = cache.patch(tf.constant(image, tf.int64), corner, SIDE)
        wanted = coded(0, image)[top : top + SIDE, left : left + SIDE]
        np.testing.assert_array_equal(patch, wanted)


def _remove(paths):
    for path in paths:
        os.unlink(path)


def test_memory_decodes_once(paths):
    cache = _cache(paths)
    _assert_patches(cache)
    _remove(paths)
    _assert_patches(cache)


def test_disk_decodes_once_and_leaves_nothing(paths, tmp_path):
    cache = _on_disk(paths, tmp_path / "cache")
    _assert_patches(cache)
    _remove(paths)
    _assert_patches(cache)
    assert not list((tmp_path / "cache").iterdir())


def test_no_cache_decodes_each_patch(paths):
    cache = _cache(paths, cache_gib=0.0)
    _assert_patches(cache)
    _remove(paths)
    cache.patch(tf.constant(0, tf.int64), tf.constant([0, 0], tf.int64), SIDE)
    with pytest.raises(UserError, match="no such image"):
        cache.check()


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "bad disk"), MemoryError(), ValueError("x\ny")]
)
def test_whatever_a_reader_raises_is_a_line_about_the_image(paths, monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(image_cache, "read", fail)
    cache = _cache(paths, cache_gib=0.0)
    cache.check()
    cache.patch(tf.constant(1, tf.int64), tf.constant([0, 0], tf.int64), SIDE)
    with pytest.raises(UserError, match=r"1\.png: cannot be read \((bad disk|MemoryError|x y)\)"):
        cache.check()


def test_cache_dir_expands_the_home_folder(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _on_disk(paths, "~/cache")
    assert (tmp_path / "cache").is_dir()


def test_full_disk_warns_once_and_decodes_each_time(paths, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    cache = _on_disk(paths, tmp_path)
    for _ in range(2):
        _assert_patches(cache)
    assert len([r for r in caplog.records if "data.cache_dir: holds 0 of 3" in r.message]) == 1


def test_partial_writes_are_continued(paths, tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: whole(file, data[:100], at))
    cache = _on_disk(paths, tmp_path)
    _assert_patches(cache)
    _remove(paths)
    _assert_patches(cache)


def test_cache_dir_that_cannot_be_written(paths, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir: .*taken cannot be written"):
        _on_disk(paths, tmp_path / "taken")
