"""Scores of trainings that have left out a dataset."""

import pytest

from manas_jax.config import default
from manas_jax.errors import UserError
from tools import leave_one_out


def test_a_training_that_has_not_ended_is_named(tmp_path):
    for name in ("all", "without_rain"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="safetensors: missing"):
        leave_one_out.score_trainings(tmp_path, default().data)
