"""Photographs inside installed packages."""

import numpy as np

from manas_jax.data import images, photographs


def test_tiles_cover_a_photograph_without_overlap():
    training, _ = photographs.load(crop=64)
    tiles = [scene for scene in training if scene.photograph == "rocket"]
    assert sum(np.prod(tile.size) for tile in tiles) == 427 * 640
    rows = [[t.clean for t in tiles if t.name.startswith(f"rocket-{i}-")] for i in range(2)]
    path = photographs.path_in_package("skimage", "data/rocket.jpg")
    np.testing.assert_array_equal(
        np.concatenate([np.concatenate(row, 1) for row in rows]), images.read(path)
    )
