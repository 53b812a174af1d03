"""Tiles: where they lie and that their shares are a partition of unity."""

import numpy as np
import pytest

from manas_jax.inference.tiling import Axis


@pytest.mark.parametrize("length", [32, 96, 128, 160, 192, 416, 1024])
@pytest.mark.parametrize(
    ("tile", "overlap", "alignment", "step"),
    [(128, 32, 32, None), (128, 32, 32, 32), (96, 32, 16, 32), (80, 16, 8, 8)],
)
def test_tiles_cover_the_axis_and_count_one_in_sum(length, tile, overlap, alignment, step):
    axis = Axis.cut(length, tile, overlap, alignment, step)
    total = np.zeros(length)
    for start, share in zip(axis.starts, axis.shares(), strict=True):
        assert start % alignment == 0
        total[start : start + axis.tile] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert axis.starts[-1] + axis.tile == length
    assert (np.diff(axis.starts) <= axis.tile - overlap).all()


def test_a_rim_inside_the_picture_counts_nothing():
    first, *_, last = Axis.cut(512, 128, 32, 32).shares()
    assert not first[-8:].any() and not last[:8].any()
    assert first[0] == 1 and last[-1] == 1


def test_tiles_are_no_longer_than_so_many_need():
    longer, shorter = (Axis.cut(2176, 1024, 192, 32, step) for step in (None, 32))
    assert len(longer.starts) == len(shorter.starts) == 3
    assert (longer.tile, shorter.tile) == (1024, 864)
    assert Axis.cut(2176, 1024, 192, 32, 64).tile == 896
    assert Axis.cut(2 * 1024 - 192, 1024, 192, 32, 32).tile == 1024


def test_a_short_axis_is_one_tile():
    axis = Axis.cut(64, 128, 32, 32)
    assert (axis.starts, axis.tile) == ((0,), 64)
    assert (axis.shares() == 1).all()


@pytest.mark.parametrize("wrong", [(100, 128, 32), (128, 100, 32), (128, 64, 32), (128, 96, 30)])
def test_what_does_not_align_is_refused(wrong):
    with pytest.raises(ValueError, match="do not suit"):
        Axis.cut(*wrong, 32)
