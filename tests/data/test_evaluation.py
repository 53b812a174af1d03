"""Pairs to score on: whole images, each version once, reproducible rain."""

import numpy as np
import pytest
from fake_data import CODED_SIZE, coded, data_config, write_coded_scenes

from manas_jax.data.evaluation import evaluation_pairs, pair_names
from manas_jax.data.scene import Scene
from manas_jax.errors import UserError


def test_every_version_is_whole(tmp_path):
    files = write_coded_scenes(tmp_path)
    pairs = list(evaluation_pairs(files, data_config()))
    assert [name for name, _, _ in pairs][:4] == ["0-1", "0-2", "0-3", "1-1"]
    assert pair_names(files) == [name for name, _, _ in pairs]
    for i, (_, rainy, clean) in enumerate(pairs):
        size = (CODED_SIZE[0] + i // 3, CODED_SIZE[1] - i // 3)
        np.testing.assert_array_equal(clean, coded(0, i // 3, size))
        np.testing.assert_array_equal(rainy, coded(i % 3 + 1, i // 3, size))


def test_synthetic_rain_depends_on_the_scene_name_only():
    bare = [Scene(name, np.full((40, 50, 3), 80, np.uint8)) for name in "ab"]
    first = list(evaluation_pairs(bare, data_config()))
    [again] = evaluation_pairs(bare[1:], data_config())
    assert [name for name, _, _ in first] == pair_names(bare) == ["a", "b"]
    np.testing.assert_array_equal(first[1][1], again[1])  # whatever stands before it
    assert not np.array_equal(first[0][1], first[1][1])
    assert first[0][1].dtype == np.uint8 and first[0][1].shape == (40, 50, 3)
    heavy = next(evaluation_pairs(bare, data_config(evaluation_level="heavy")))
    assert heavy[1].mean() > first[0][1].mean() > 80
    with pytest.raises(UserError, match=r"data\.evaluation_level"):
        next(evaluation_pairs(bare, data_config(evaluation_level="wet")))


def test_pairs_of_unequal_size_are_rejected():
    bad = [Scene("a", coded(0, 0), (coded(1, 0, (9, 9)),))]
    with pytest.raises(UserError, match="differ in size"):
        list(evaluation_pairs(bad, data_config()))
