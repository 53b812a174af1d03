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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0040081, "0.004008"),
        (9999, "9999"),
        (12345, "12.35 k"),
        (2.5e12, "2.5 T"),
        (-3e6, "-3 M"),
    ],
)
def test_number(value, text):
    assert values.number(value) == text
