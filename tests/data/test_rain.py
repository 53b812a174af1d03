"""Synthetic rain and streak transfer."""

import numpy as np
import pytest
import tensorflow as tf

from manas_jax.data import rain


def _seed(i):
    return tf.constant([3, i], tf.int64)


def _streaks(i, level, side=96):
    return rain.streaks(_seed(i), side, side, level).numpy()


def test_same_seed_same_rain_other_seed_other_rain():
    np.testing.assert_array_equal(_streaks(0, "mixed"), _streaks(0, "mixed"))
    first, second = _streaks(0, "medium"), _streaks(1, "medium")
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.3
    inside = tf.function(lambda seed: rain.streaks(seed, 96, 96, "medium"))
    np.testing.assert_allclose(inside(_seed(0)), first, atol=1e-5)


def test_levels_are_ordered_by_strength():
    strength = [np.mean([_streaks(i, level) for i in range(12)]) for level in rain.LEVELS]
    assert list(rain.LEVELS) == ["light", "medium", "heavy"]
    assert 0.005 < strength[0] < 0.6 * strength[1] < 0.36 * strength[2] < 0.08
    spread = [_streaks(i, "mixed").mean() for i in range(24)]
    assert min(spread) < strength[0] and max(spread) > strength[2]


def test_streak_has_the_requested_shape():
    """One drop: peak at its place, length, width and direction as measured on the image."""
    drops = np.zeros((1, 128, 128), np.float32)
    drops[0, 64, 64] = 0.8
    [streak] = rain._blur(
        tf.constant(drops), tf.constant([30.0]), tf.constant([40.0]), tf.constant([2.0])
    ).numpy()
    assert np.unravel_index(streak.argmax(), streak.shape) == (64, 64)
    assert streak.max() == pytest.approx(0.8, rel=0.02)
    y, x = np.mgrid[:128, :128] - 64.0
    along = x * np.sin(np.pi / 6) + y * np.cos(np.pi / 6)
    across = x * np.cos(np.pi / 6) - y * np.sin(np.pi / 6)
    mass = np.where(abs(across) < 6, streak, 0) / streak.sum()
    assert mass.sum() > 0.99  # next to nothing lies beside the streak
    assert (mass * across**2).sum() == pytest.approx((2.0 / 2.355) ** 2, rel=0.1)
    # A bar of 40 blurred with sigma 4 along itself.
    assert (mass * along**2).sum() == pytest.approx(40**2 / 12 + 4**2, rel=0.05)


def test_streaks_fall_within_the_range_of_directions():
    """The structure tensor of light rain points within the level's range of directions."""
    for i in range(6):
        layer = _streaks(i, "light", side=160)
        down, right = np.gradient(layer)
        angle = 0.5 * np.arctan2(2 * (down * right).sum(), (right**2 - down**2).sum())
        assert abs(np.degrees(angle)) < 35  # gradients stand across the streaks


def test_streaks_never_darken_and_cross_the_border():
    layers = np.stack([_streaks(i, "heavy") for i in range(16)])
    assert layers.min() >= 0
    border = np.concatenate([layers[:, :4].ravel(), layers[:, -4:].ravel()])
    assert border.mean() > 0.6 * layers.mean()


def test_synthesis_adds_the_streaks_and_clips():
    clean = tf.fill((48, 64, 3), 0.9)
    rainy = rain.synthesize(clean, _seed(0), "heavy").numpy()
    assert rainy.shape == (48, 64, 3) and rainy.dtype == np.float32
    assert rainy.min() >= 0.9 and rainy.max() == 1
    dark = rain.synthesize(tf.zeros((48, 64, 3)), _seed(0), "heavy").numpy()
    np.testing.assert_allclose(rainy, np.minimum(0.9 + dark, 1), atol=1e-6)
    np.testing.assert_array_equal(dark[..., 0], dark[..., 2])  # rain is gray


def test_veil_lifts_black_and_lowers_contrast():
    clean = tf.constant(np.random.default_rng(0).random((48, 48, 3), np.float32))
    plain = rain.synthesize(clean, _seed(0), "light").numpy()
    veiled = rain.synthesize(clean, _seed(0), "light", veil=0.6).numpy()
    kept = veiled.std() / plain.std()
    assert 0.4 <= kept <= 0.7  # 1 - v, v in [0.3, 0.6]
    airlight = (veiled - kept * plain) / (1 - kept)
    assert airlight.std() < 1e-2 and 0.7 <= airlight.mean() <= 0.95
    assert veiled.min() >= 0 and veiled.max() <= 1


def test_photographic_rain_mixes_the_picture_with_light():
    """It brightens the dark half and, unlike additive rain, the bright one hardly or not at all."""
    halves = np.full((96, 128, 3), 0.9, np.float32)
    halves[:, :64] = 0.1
    change = np.zeros((96, 128, 3))
    for i in range(8):
        rainy = rain.photographic(tf.constant(halves), _seed(i), "heavy").numpy()
        assert rainy.shape == halves.shape and rainy.dtype == np.float32
        assert rainy.min() >= 0 and rainy.max() <= 1
        change += (rainy - halves) / 8
    dark, bright = change[:, :60].mean(), change[:, 68:].mean()
    assert 0.05 < dark < 0.5 and -0.2 < bright < 0.2 * dark


def test_photographic_rain_is_drawn_by_its_seed_and_level():
    clean = tf.constant(np.random.default_rng(0).random((96, 96, 3), np.float32))
    first, again, other = (rain.photographic(clean, _seed(i), "medium").numpy() for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).mean() > 0.01
    strength = [
        np.mean([abs(rain.photographic(clean, _seed(i), level) - clean) for i in range(12)])
        for level in rain.LEVELS
    ]
    assert strength[0] < strength[1] < strength[2]


def test_mixed_appearance_draws_both():
    clean = tf.fill((64, 64, 3), 0.3)

    def rainy(seed, appearance):
        return rain.synthesize(clean, _seed(seed), "medium", appearance=appearance).numpy()

    drawn = set()
    for i in range(6):
        mixed = rainy(i, "mixed")
        drawn |= {name for name in rain.APPEARANCES if np.array_equal(mixed, rainy(i, name))}
    assert drawn == {"additive", "photographic"}


def test_transfer_matches_its_formula():
    clean, rainy, other = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
    expected = np.clip(clean + rainy - other, 0, 1)
    np.testing.assert_allclose(rain.transfer(clean, rainy, other), expected, atol=1e-6)
