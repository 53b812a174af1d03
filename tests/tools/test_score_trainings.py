"""Scores of the trainings of an experiment."""

import pytest

from manas_jax.config import default
from manas_jax.errors import UserError
from tools.score_trainings import score_trainings


def test_trainings_that_are_missing_or_have_not_ended_are_named(tmp_path):
    with pytest.raises(UserError, match="has no folders of runs"):
        score_trainings(tmp_path, default().data)
    for name in ("all", "without_rain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    with pytest.raises(UserError, match="safetensors: missing"):
        score_trainings(tmp_path, default().data)
