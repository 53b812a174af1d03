"""Tile grids: positions, and blend weights that are a partition of unity."""

import math

import numpy as np
import pytest

from manas_jax.inference.tiling import TileGrid


@pytest.mark.parametrize("length", [32, 96, 128, 160, 192, 416, 1024])
@pytest.mark.parametrize(
    ("tile", "overlap", "alignment", "step"),
    [(128, 32, 32, None), (128, 32, 32, 32), (96, 32, 16, 32), (80, 16, 8, 8)],
)
def test_tiles_cover_the_axis_and_weights_sum_to_one(length, tile, overlap, alignment, step):
    grid = TileGrid.make(length, tile, overlap, alignment, step)
    total = np.zeros(length)
    for start, weights in zip(grid.starts, grid.blend_weights(), strict=True):
        assert start % alignment == 0
        total[start : start + grid.tile] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert grid.starts[-1] + grid.tile == length
    assert (np.diff(grid.starts) <= grid.tile - overlap).all()


def test_weights_are_zero_at_edges_inside_the_image_only():
    first, *_, last = TileGrid.make(512, 128, 32, 32).blend_weights()
    assert not first[-8:].any() and not last[:8].any()
    assert first[0] == 1 and last[-1] == 1


def test_step_shortens_tiles():
    full, shortened = (TileGrid.make(2176, 1024, 192, 32, step) for step in (None, 32))
    assert len(full.starts) == len(shortened.starts) == 3
    assert (full.tile, shortened.tile) == (1024, 864)
    assert TileGrid.make(2176, 1024, 192, 32, 64).tile == 896
    assert TileGrid.make(2 * 1024 - 192, 1024, 192, 32, 32).tile == 1024


def test_short_axis_is_one_tile():
    grid = TileGrid.make(64, 128, 32, 32)
    assert (grid.starts, grid.tile) == ((0,), 64)
    assert (grid.blend_weights() == 1).all()


@pytest.mark.parametrize("wrong", [(100, 128, 32), (128, 100, 32), (128, 64, 32), (128, 96, 30)])
def test_unaligned_lengths_are_refused(wrong):
    with pytest.raises(ValueError, match="must be multiples"):
        TileGrid.make(*wrong, 32)


@pytest.mark.parametrize(
    ("size", "share"), [((1088, 1920), 1.15), ((2176, 3840), 1.25), ((4000, 6016), 1.3)]
)
def test_largest_tiles_hold_little_more_than_the_picture(size, share):
    grids = [TileGrid.make(side, 1536, 192, 32, 64) for side in size]
    assert math.prod(grid.tile * len(grid.starts) for grid in grids) < share * math.prod(size)
