"""Splits: disjoint, complete, seeded, by photograph."""

import pytest

from manas_jax.data.scene import Scene
from manas_jax.data.splits import split
from manas_jax.errors import UserError


def _some_scenes(count, per_photograph=1):
    return [Scene(f"s{i}", f"{i}.png", photograph=f"p{i // per_photograph}") for i in range(count)]


def _names(part):
    return [scene.name for scene in part]


def _split(training, **changes):
    defaults = {"validation_scenes": 4, "architecture_share": 0.5, "seed": 0}
    return split(training, **(defaults | changes))


def test_split_is_disjoint_complete_and_seeded():
    training = _some_scenes(24)
    test = tuple(_some_scenes(2))
    found = _split(training, test=test)
    parts = [_names(p) for p in (found.weights, found.architecture, found.validation)]
    assert [len(part) for part in parts] == [10, 10, 4]
    assert sorted(name for part in parts for name in part) == sorted(_names(training))
    assert found.test == test
    assert found == _split(training, test=test)
    assert _names(found.validation) != _names(_split(training, seed=1).validation)


def test_split_goes_by_photograph():
    found = _split(_some_scenes(40, per_photograph=3))
    parts = [
        {scene.photograph for scene in part}
        for part in (found.weights, found.architecture, found.validation)
    ]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert 4 <= len(found.validation) <= 6
    assert len(found.weights + found.architecture + found.validation) == 40


def test_limit_does_not_change_validation():
    full, limited = _split(_some_scenes(24)), _split(_some_scenes(24), limit=5)
    assert _names(limited.validation) == _names(full.validation)
    assert len(limited.weights) + len(limited.architecture) == 5
    by_three = _split(_some_scenes(24, per_photograph=3), limit=5)
    assert len(by_three.weights) + len(by_three.architecture) == 5


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_split_may_leave_one_side_empty(share):
    found = _split(_some_scenes(10), architecture_share=share)
    assert (len(found.weights), len(found.architecture)) == ((6, 0) if share == 0 else (0, 6))


@pytest.mark.parametrize(
    "changes",
    [
        {"validation_scenes": 10},
        {"validation_scenes": 9},
        {"validation_scenes": 30},
        {"architecture_share": 1.5},
        {"limit": 1},
        {"validation_scenes": -1},
    ],
)
def test_split_rejects(changes):
    with pytest.raises(UserError, match=r"data\.validation_scenes"):
        _split(_some_scenes(10), **changes)
