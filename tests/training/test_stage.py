"""Whether a stage has ended, by its summary."""

import pytest

from manas_jax.training import stage


@pytest.mark.parametrize(
    ("content", "ended"),
    [
        ('{"steps": 6}', True),
        ('{"steps": 5}', False),  # of an earlier, shorter one
        ("{}", False),
        ("null", False),
        ("[6]", False),
        ('{"steps": 6', False),
        (None, False),
    ],
)
def test_a_damaged_summary_is_written_again(tmp_path, content, ended):
    file = tmp_path / "summary.json"
    if content is not None:
        file.write_text(content)
    assert stage._has_ended(file, 6) == ended
