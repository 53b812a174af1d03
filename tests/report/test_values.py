"""Values as text."""

import pytest

from manas_jax.report import values


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4213, "0.421 s"),
        (59.0, "59 s"),
        (125.4, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3700, "1 h 02 min"),
    ],
)
def test_duration(seconds, text):
    assert values.duration(seconds) == text
