"""Checkpoints on real folders: bits, the newest and the best, damage."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from manas_jax import sharding
from manas_jax.checkpoint import Checkpoints, write_json
from manas_jax.errors import UserError
from manas_jax.state import init_train


def _state(step=0, average=True, width=3):
    draw = np.random.default_rng(step)
    params = {"layer": {"kernel": draw.normal(size=(width, 2)).astype(np.float32)}}
    stats = {"norm": {"mean": draw.normal(size=2).astype(np.float32)}}
    fresh = init_train({"params": params, "batch_stats": stats}, optax.adamw(1e-3), average=average)
    fresh = fresh.replace(step=jnp.asarray(step, jnp.int32))
    return sharding.replicate(fresh, sharding.make_mesh(1))


def _assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("average", [True, False])
def test_what_comes_back_is_what_went_in(tmp_path, average):
    state = _state(4, average)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(_state(0, average)) is None
        assert checkpoints.latest_step is None
        checkpoints.save(4, state, 20.0)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(_state(0, average))
    _assert_same(restored, state)
    assert restored.weights["layer"]["kernel"].sharding == state.step.sharding


def test_two_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in enumerate([20.0, 25.0, 21.0, 22.0, 23.0], start=1):
            checkpoints.save(step, _state(step), score)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (5, 2)
        _assert_same(checkpoints.restore(_state()), _state(5))
        _assert_same(checkpoints.restore_best(_state()), _state(2))
    kept = sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit())
    assert kept == ["2", "4", "5"]


def _empty_files(folder):
    for file in (folder / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def _cut_data(folder):
    (data,) = [d for d in folder.rglob("d") if d.is_dir() and "ocdbt" not in d.parent.name][:1]
    for file in data.iterdir():
        file.write_bytes(file.read_bytes()[:10])


def _lose_state(folder):
    shutil.rmtree(folder / "state")


@pytest.mark.parametrize("damage", [_empty_files, _cut_data, _lose_state])
def test_damage_is_named_and_the_one_before_survives(tmp_path, damage):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _state(step), 20.0)
    damage(tmp_path / "2")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match="cannot read this checkpoint") as error,
    ):
        checkpoints.restore(_state())
    assert str(tmp_path / "2") in str(error.value)
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / "2")  # as the message says
    with Checkpoints(tmp_path) as checkpoints:
        _assert_same(checkpoints.restore(_state()), _state(1))


def test_damaged_scores(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), 20.0)
    (tmp_path / "1" / "metrics" / "metrics").write_bytes(b"")
    with pytest.raises(UserError, match="a checkpoint here is damaged") as error:
        Checkpoints(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_unfinished_checkpoint_is_no_checkpoint(tmp_path):
    """What a killed process leaves behind while it saves."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), 20.0)
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", unfinished)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 1
        _assert_same(checkpoints.restore(_state()), _state(1))
    assert not unfinished.exists()


@pytest.mark.parametrize("other", [{"width": 4}, {"average": False}])
def test_checkpoint_of_another_structure(tmp_path, other):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), 20.0)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match="cannot read this checkpoint"),
    ):
        checkpoints.restore(_state(**other))


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot keep checkpoints here"):
        Checkpoints(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_write_json(tmp_path):
    fields = {"a": np.float32(1.5), "b": jnp.arange(2), "c": [1, None, "x"]}
    write_json(tmp_path / "x.json", fields)
    read = json.loads((tmp_path / "x.json").read_text())
    assert read == {"a": 1.5, "b": [0, 1], "c": [1, None, "x"]}
    with pytest.raises(TypeError, match="object has no place"):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == read
    assert [f.name for f in tmp_path.iterdir()] == ["x.json"]
