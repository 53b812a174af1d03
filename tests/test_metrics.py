"""Scores against independent float64 formulas, hand-computed values and MATLAB's figures."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax import evaluate, metrics
from manas_jax.errors import UserError


def _picture(seed, height=24, width=31):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _noisy(image, seed=1, strength=20):
    noise = np.random.default_rng(seed).normal(0, strength, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _plain_ssim(x, y):
    """Equation 13 of Wang et al. (2004), window by window, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    t = np.arange(11) - 5
    g = np.exp(-(t**2) / (2 * 1.5**2))
    window = np.outer(g, g) / np.outer(g, g).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            top = (2 * ma * mb + c1) * (2 * cov + c2)
            values.append(top / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(values)


@pytest.mark.parametrize(
    ("rgb", "y"),
    [  # what MATLAB's rgb2ycbcr gives for uint8
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),
        ((255, 0, 0), 81),
        ((0, 255, 0), 145),
        ((0, 0, 255), 41),
        ((128, 128, 128), 126),
    ],
)
def test_luma_is_matlabs(rgb, y):
    image = np.array([[rgb]], np.uint8)
    assert metrics.luma(image).tolist() == [[y]]
    assert metrics.luma(image).dtype == np.uint8


def test_luma_rounds_the_float_formula():
    image = _picture(0)
    exact = 16 + (image / 255.0) @ np.array([65.481, 128.553, 24.966])
    assert np.abs(metrics.luma(image) - exact).max() <= 0.5 + 1e-9


def test_to_uint8_clamps_and_rounds_half_up():
    image = jnp.array([-1.0, 0.0, 0.49 / 255, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1.0, 7.0, jnp.inf])
    assert metrics.to_uint8(image).tolist() == [0, 0, 0, 1, 2, 3, 255, 255, 255]


def test_to_uint8_inverts_the_scaling_of_every_grey():
    grey = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(metrics.to_uint8(grey.astype(np.float32) / 255), grey)


def test_to_uint8_refuses_nan():
    with pytest.raises(UserError, match="diverged"):
        metrics.to_uint8(np.array([0.5, np.nan]))


def test_psnr_by_hand():
    black = np.zeros((16, 16, 3), np.uint8)
    assert metrics.psnr(black + np.uint8(255), black) == pytest.approx(0)
    assert metrics.psnr(black + np.uint8(1), black) == pytest.approx(20 * math.log10(255))
    # Differences are taken in float: in uint8, 0 - 1 would be 255.
    assert metrics.psnr(black, black + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)


def test_psnr_against_numpy():
    clean = _picture(0)
    noisy = _noisy(clean)
    error = ((noisy.astype(float) - clean) ** 2).sum() / clean.size
    assert metrics.psnr(noisy, clean) == pytest.approx(10 * np.log10(65025 / error), rel=1e-12)


def test_ssim_against_the_plain_formula():
    clean = _picture(0)
    noisy = _noisy(clean)
    channels = [_plain_ssim(noisy[..., c], clean[..., c]) for c in range(3)]
    assert metrics.ssim(noisy, clean) == pytest.approx(np.mean(channels), abs=1e-9)
    y = metrics.luma(noisy), metrics.luma(clean)
    assert metrics.ssim(*y) == pytest.approx(_plain_ssim(*y), abs=1e-9)


def test_ssim_of_the_smallest_picture_is_one_window():
    clean = _picture(3, 11, 11)
    noisy = _noisy(clean)
    y = metrics.luma(noisy), metrics.luma(clean)
    assert metrics.ssim(*y) == pytest.approx(_plain_ssim(*y), abs=1e-9)


def test_score_puts_each_measure_in_its_place():
    clean = _picture(0)
    noisy = _noisy(clean)
    scores = metrics.score(noisy, clean)
    assert scores.rgb_psnr == metrics.psnr(noisy, clean)
    assert scores.y_psnr == metrics.psnr(metrics.luma(noisy), metrics.luma(clean))
    assert scores.rgb_ssim == metrics.ssim(noisy, clean)
    assert scores.y_ssim == metrics.ssim(metrics.luma(noisy), metrics.luma(clean))
    assert len(set(dataclasses.astuple(scores))) == 4


def test_identical_pictures_stay_finite_in_means_and_json():
    clean = _picture(0)
    scores = {
        "same.png": metrics.score(clean, clean),
        "other.png": metrics.Scores(20, 0.5, 30, 0.7),
    }
    assert scores["same.png"] == metrics.Scores(100.0, 1.0, 100.0, 1.0)
    assert metrics.mean(scores.values()) == metrics.Scores(60.0, 0.75, 65.0, 0.85)
    text = json.dumps(evaluate.as_json(scores), allow_nan=False)
    assert json.loads(text)["images"][0] == {
        "name": "same.png", "y_psnr": 100.0, "y_ssim": 1.0, "rgb_psnr": 100.0, "rgb_ssim": 1.0
    }  # fmt: skip


def test_pictures_that_cannot_be_scored():
    with pytest.raises(UserError, match="24x31 pixels and the clean one 24x30"):
        metrics.score(_picture(0), _picture(0, 24, 30))
    with pytest.raises(UserError, match="10x40"):
        metrics.score(_picture(0, 10, 40), _picture(1, 10, 40))
    with pytest.raises(UserError, match="no images"):
        metrics.mean([])
