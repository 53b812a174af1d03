"""What is logged while a stage runs."""

import itertools
import types

import pytest

from manas_jax.metrics import Scores
from manas_jax.report.reader import read_events
from manas_jax.runtime.compilation import CompileStats
from manas_jax.training import metric_logger


def test_images_per_second_count_the_batches_of_each_step(tmp_path, monkeypatch, make_config):
    """Two steps of one batch, then two of two; a second passes whenever the time is asked for."""
    config = make_config(log_every=2, train__steps=4, train__scenes=3, data__versions=2)
    clock = types.SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(metric_logger, "time", clock)
    checkpoints = types.SimpleNamespace(metadata={})
    with metric_logger.MetricLogger(
        tmp_path, config, config.train, checkpoints, 0, lambda step: 0.1, lambda step: 1 + step // 3
    ) as logger:
        for step in range(1, 5):
            logger(step, {"mse": 0.5})
        summary = logger.summary(CompileStats(0.0, 0.0, 0), Scores(1.0, 1.0, 1.0, 1.0))
    steps, rates = read_events(tmp_path)["images_per_second"]
    assert steps.tolist() == [2, 4] and rates[1] == 2 * rates[0]
    assert rates.tolist() == pytest.approx([12.0, 24.0])
    assert summary["images_per_second"] == pytest.approx(18.0)
