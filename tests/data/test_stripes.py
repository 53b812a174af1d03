"""Fences drawn into clean images."""

import numpy as np
import tensorflow as tf

from manas_jax.data import stripes

_GREY = tf.fill((96, 96, 3), 0.5)


def _drawn(i, clean=_GREY):
    return stripes.draw(clean, tf.constant([3, i], tf.int64)).numpy()


def test_same_seed_same_fence_other_seed_other_fence():
    np.testing.assert_array_equal(_drawn(0), _drawn(0))
    assert np.abs(_drawn(0) - _drawn(1)).max() > 0.1
    inside = tf.function(lambda seed: stripes.draw(_GREY, seed))
    np.testing.assert_allclose(inside(tf.constant([3, 0], tf.int64)), _drawn(0), atol=1e-5)


def test_values_stay_in_range_and_every_fence_can_be_seen():
    noise = tf.constant(np.random.default_rng(0).random((48, 80, 3), np.float32))
    for i in range(20):
        fence = _drawn(i, noise)
        assert fence.shape == (48, 80, 3) and fence.dtype == np.float32
        assert fence.min() >= 0 and fence.max() <= 1
        changed = np.abs(fence - noise).max(-1) > 0.02
        assert changed.mean() > 0.02


def test_low_fences_and_high_ones():
    """The share of rows with bars in the middle columns."""
    shares = [(np.abs(_drawn(i)[:, 32:64] - 0.5).max((1, 2)) > 0.02).mean() for i in range(24)]
    assert min(shares) < 0.4 and max(shares) == 1


def test_bars_are_nearly_upright_and_their_periods_vary():
    """Columns of grey differ from each other far more than the pixels of a column do."""
    tilts, periods = [], []
    for i in range(24):
        fence = _drawn(i).mean(-1)
        inside = fence[:, np.abs(fence - 0.5).max(0) > 0.02]
        if not inside.size:
            continue
        down, right = np.gradient(fence[40:56])
        tilts.append(0.5 * np.arctan2(2 * (down * right).sum(), (right**2 - down**2).sum()))
        spectrum = np.abs(np.fft.rfft(fence[48] - fence[48].mean()))
        periods.append(96 / max(spectrum.argmax(), 1))
    assert np.median(np.abs(np.degrees(tilts))) < 25
    assert min(periods) < 8 and max(periods) > 12
