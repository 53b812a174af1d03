"""Decoded pictures in memory, on disk and nowhere: the same patches, and what goes wrong."""

import errno
import os

import numpy as np
import pytest
import tensorflow as tf
from fake_data import CODED_SIZE, coded, data_config
from PIL import Image

from manas_jax.data.picture_cache import PictureCache
from manas_jax.errors import UserError

COUNT = 3
PATCHES = [(picture, corner) for picture in range(COUNT) for corner in ((0, 0), (5, 7))]
SIDE = 8


@pytest.fixture
def paths(tmp_path):
    found = [str(tmp_path / f"{i}.png") for i in range(COUNT)]
    for i, path in enumerate(found):
        Image.fromarray(coded(0, i)).save(path)
    return found


def _cache(paths, **settings):
    return PictureCache(paths, np.array([CODED_SIZE] * len(paths)), data_config(**settings))


def _on_disk(paths, folder):
    return _cache(paths, cache_gib=0.0, cache_dir=str(folder))


def _assert_whole(cache):
    """Every patch is that of its picture."""
    for picture, (top, left) in PATCHES:
        corner = tf.constant([top, left], tf.int64)
        patch = cache.patch(tf.constant(picture, tf.int64), corner, SIDE)
        wanted = coded(0, picture)[top : top + SIDE, left : left + SIDE]
        np.testing.assert_array_equal(patch, wanted)


def _remove(paths):
    for path in paths:
        os.unlink(path)


def test_memory_decodes_once(paths):
    cache = _cache(paths)
    _assert_whole(cache)
    _remove(paths)
    _assert_whole(cache)


def test_disk_decodes_once_and_leaves_nothing(paths, tmp_path):
    cache = _on_disk(paths, tmp_path / "cache")
    _assert_whole(cache)
    _remove(paths)
    _assert_whole(cache)
    assert not list((tmp_path / "cache").iterdir())


def test_without_a_cache_each_patch_is_decoded(paths):
    cache = _cache(paths, cache_gib=0.0)
    _assert_whole(cache)
    _remove(paths)
    with pytest.raises(UserError, match="no such picture"), cache.user_errors():
        _assert_whole(cache)


def test_cache_dir_may_start_with_the_home(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _on_disk(paths, "~/cache")
    assert (tmp_path / "cache").is_dir()


def test_full_disk_warns_once_and_decodes_each_time(paths, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    cache = _on_disk(paths, tmp_path)
    for _ in range(2):
        _assert_whole(cache)
    assert len([r for r in caplog.records if "data.cache_dir: keeps 0 of 3" in r.message]) == 1


def test_disk_that_writes_in_pieces(paths, tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: whole(file, data[:100], at))
    cache = _on_disk(paths, tmp_path)
    _assert_whole(cache)
    _remove(paths)
    _assert_whole(cache)


def test_cache_dir_that_cannot_be_written(paths, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir: .*taken cannot be written to"):
        _on_disk(paths, tmp_path / "taken")
