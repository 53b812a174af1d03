import numpy as np
import pytest

from manas_jax.downstream import bootstrap


def test_weights_are_resamples_of_all_pictures():
    weights = bootstrap.picture_weights(7, seed=1, resamples=50)
    assert (weights[0] == 1).all() and weights.shape == (51, 7)
    assert (weights.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(weights, bootstrap.picture_weights(7, seed=1, resamples=50))


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap.estimate(bootstrap.picture_weights(400, 0) @ values / 400)
    assert found["value"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 2 / 20, rel=0.1)


def test_gains_are_paired():
    weights = bootstrap.picture_weights(20, 0)
    values = weights @ np.random.default_rng(0).normal(size=20) / 20
    rows = {"rainy": {"score": values}, "other": {"score": values + 0.25, "images": [1]}}
    rows["rainy"]["images"] = [1]
    found = bootstrap.with_gains(rows, "rainy")["other"]
    assert found["images"] == [1]
    assert found["score"]["gain"] == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})
    assert found["score"]["high"] - found["score"]["low"] > 0.1


def test_undefined_values():
    assert bootstrap.estimate(np.array([np.nan, 1.0]))["value"] is None
    assert bootstrap.estimate(np.array([1.0, np.nan, 2.0]))["low"] == 2
    np.testing.assert_array_equal(bootstrap.mean_of_known([[1, np.nan], [3, np.nan]]), [2, np.nan])
    assert bootstrap.text({"value": None, "low": None, "high": None}) == "-"
