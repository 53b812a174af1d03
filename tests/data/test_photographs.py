"""Photographs inside installed packages."""

import numpy as np
import pytest

from manas_jax.data import images, photographs
from manas_jax.data.sources import load_splits, split_crop


def test_tiles_cover_a_photograph_without_overlap():
    training, _ = photographs.load(crop=64)
    tiles = [scene for scene in training if scene.photograph == "rocket"]
    assert sum(np.prod(tile.size) for tile in tiles) == 427 * 640
    rows = [[t.clean for t in tiles if t.name.startswith(f"rocket-{i}-")] for i in range(2)]
    path = photographs.path_in_package("skimage", "data/rocket.jpg")
    np.testing.assert_array_equal(
        np.concatenate([np.concatenate(row, 1) for row in rows]), images.read(path)
    )


@pytest.mark.parametrize("crops", [(64, 256), (288, 64)])
def test_search_and_training_are_validated_on_the_same_tiles(make_config, crops):
    search, train = crops
    config = make_config(data__source="photographs", search__crop=search, train__crop=train)
    config.data.root = ""
    splits = [
        load_splits(config.data, split_crop(config, section)) for section in ("search", "train")
    ]
    validated = [{scene.name for scene in split.validation} for split in splits]
    assert validated[0] == validated[1]
    assert not validated[1] & {s.name for s in (*splits[0].weights, *splits[0].architecture)}
