"""Signal and noise of the architecture's gradient."""

import numpy as np
import pytest

from tools import study_gradients


def test_signal_to_noise_ratio_of_gradients():
    """Of a known mean and scatter; without a mean, scatter does not count as one."""
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(20_000, 2, 3))
    mean = np.full((2, 3), 0.5)
    found = study_gradients.gradient_snr(mean + noise)
    assert found["mean"] == pytest.approx(0.5 * 6**0.5, rel=0.03)
    assert found["deviation"] == pytest.approx(6**0.5, rel=0.03)
    assert found["ratio"] == pytest.approx(0.5, rel=0.03)
    few = [study_gradients.gradient_snr(part)["mean"] ** 2 for part in np.split(noise, 5000)]
    assert np.mean(few) < 1 and min(few) == 0  # the mean of four has a norm of 1.5 squared
    assert study_gradients.gradient_snr(np.ones((4, 2)))["ratio"] == 0


@pytest.mark.slow
def test_gradients_of_a_search(finished, loop_config):
    found = study_gradients.measure(loop_config(), finished, batches=2)
    for logits in ("found", "even"):
        assert found[logits].keys() == found["decay"].keys() == {"columns", "attention"}
        assert all(kind["deviation"] > 0 for kind in found[logits].values())
