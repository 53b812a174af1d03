"""Checkpoints on disk: round trips, the newest and the best, damage, versions."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from manas_jax import buckets
from manas_jax.errors import Diverged, UserError
from manas_jax.runtime import sharding
from manas_jax.training.state import init_train
from manas_jax.workdir.checkpoints import Checkpoints


def _state(step=0, ema=True, width=3):
    draw = np.random.default_rng(step)
    params = {"layer": {"kernel": draw.normal(size=(width, 2)).astype(np.float32)}}
    stats = {"norm": {"mean": draw.normal(size=2).astype(np.float32)}}
    fresh = init_train({"params": params, "batch_stats": stats}, optax.adamw(1e-3), ema=ema)
    fresh = fresh.replace(step=jnp.asarray(step, jnp.int32))
    return sharding.replicate(fresh, sharding.make_mesh(1))


def _assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("ema", [True, False])
def test_round_trip(tmp_path, ema):
    state = _state(4, ema)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(_state(0, ema)) is None
        assert checkpoints.latest_step is None
        checkpoints.save(4, state, 20.0)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(_state(0, ema))
    _assert_same(restored, state)
    assert restored.params["layer"]["kernel"].sharding == state.step.sharding


@pytest.mark.parametrize("name", ["run[1]", "a*b?", "back\\slash", "{a}", "%d", "two words"])
def test_no_name_of_a_folder_is_a_pattern(tmp_path, name):
    with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
        checkpoints.save(3, _state(3), 20.0)
    with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
        _assert_same(checkpoints.restore(_state()), _state(3))
        assert checkpoints.metadata["format"]
    assert (tmp_path / name / "checkpoints" / "3").is_dir()


def test_two_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in enumerate([20.0, 25.0, 21.0, 22.0, 23.0], start=1):
            checkpoints.save(step, _state(step), score)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (5, 2)
        _assert_same(checkpoints.restore(_state()), _state(5))
        _assert_same(checkpoints.restore_best(_state()), _state(2))
    stored = sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit())
    assert stored == ["2", "4", "5"]


def test_in_a_bucket(bucket):
    folder = buckets.as_path("gs://bucket/run/checkpoints")
    with Checkpoints(folder) as checkpoints:
        for step, score in enumerate([25.0, 21.0, 22.0, 23.0], start=1):
            checkpoints.save(step, _state(step), score, seconds=step)
    assert sorted(p.name for p in folder.iterdir()) == ["1", "3", "4"]
    (folder / "4" / "state" / "manifest.ocdbt").write_bytes(b"damaged")
    (folder / "3" / "commit_success.txt").unlink()  # as if it had not been saved to its end
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.metadata["seconds"] == 4
        _assert_same(checkpoints.restore(_state()), _state(1))
        _assert_same(checkpoints.restore_best(_state()), _state(1))
        checkpoints.save(2, _state(2), 20.0)
    assert [p.name for p in (folder.parent / "damaged").iterdir()] == ["4"]
    with Checkpoints(folder) as checkpoints:
        bucket(403)
        with pytest.raises(Exception, match=r"(?s)bucket|403") as error:  # no damage
            checkpoints.restore(_state())
        assert buckets.storage_error(error.value, folder)
        bucket(0)
        _assert_same(checkpoints.restore(_state()), _state(2))


def _cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _empty(file):
    file.write_bytes(b"")


def _flip(file):
    content = bytearray(file.read_bytes())
    if content:
        content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def _lose(file):
    file.unlink()


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _state(step), 20.0, seconds=step)
    return folder


@pytest.mark.parametrize("damage", [_cut, _empty, _flip, _lose])
def test_any_file_of_the_newest_damaged(tmp_path, two_checkpoints, damage):
    """Each file in turn: the newest valid checkpoint is restored, bit for bit."""
    files = [f.relative_to(two_checkpoints) for f in (two_checkpoints / "2").rglob("*")]
    files = sorted(f for f in files if (two_checkpoints / f).is_file())
    assert len(files) > 10
    restored_steps = set()
    for number, file in enumerate(files):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(two_checkpoints, folder)
        damage(folder / file)
        with Checkpoints(folder) as checkpoints:
            restored = checkpoints.restore(_state())
            step = int(restored.step)
            _assert_same(restored, _state(step))
            assert checkpoints.latest_step == step, file
            assert checkpoints.metadata["seconds"] == step
            checkpoints.save(
                2 if step == 1 else 3, _state(4), 21.0
            )  # the quarantined step may be saved again
        with Checkpoints(folder) as checkpoints:
            _assert_same(checkpoints.restore(_state()), _state(4))
        restored_steps.add(step)
    assert restored_steps == {1, 2}


def _first_array(folder):
    """The largest file of a checkpoint holds its arrays."""
    return max((folder / "state").rglob("*"), key=lambda f: f.is_file() and f.stat().st_size)


def test_damaged_checkpoint_is_quarantined(tmp_path, two_checkpoints, caplog):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    _cut(_first_array(folder / "2"))
    with Checkpoints(folder) as checkpoints:
        _assert_same(checkpoints.restore(_state()), _state(1))
    assert (tmp_path / "damaged" / "2" / "state").exists()
    assert not (folder / "2").exists()
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any(f"{folder / '2'}: cannot read this checkpoint" in line for line in warned)
    assert any("using the checkpoint of step 1 instead" in line for line in warned)


def test_restore_best_falls_back_to_the_newest(tmp_path):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step, score in enumerate([25.0, 20.0, 21.0], start=1):
            checkpoints.save(step, _state(step), score)
    _lose(_first_array(folder / "1"))
    with Checkpoints(folder) as checkpoints:
        _assert_same(checkpoints.restore_best(_state()), _state(3))
        assert (folder / "1").exists()  # not quarantined


def test_no_valid_checkpoint_is_an_error(tmp_path, two_checkpoints):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    for step in "12":
        shutil.rmtree(folder / step / "state")
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(UserError, match="cannot read this checkpoint, nor any other") as error,
    ):
        checkpoints.restore(_state())
    assert str(folder / "2") in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(f.name for f in folder.iterdir()) == ["1", "2"]


def test_checkpoint_without_a_score_is_never_the_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), 20.0)
        for step in (2, 3, 4):
            checkpoints.save(step, _state(step))
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (4, 1)
        _assert_same(checkpoints.restore_best(_state()), _state(1))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["1", "3", "4"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_state_is_not_saved(tmp_path, value):
    broken = _state(2)
    broken.params["layer"]["kernel"] = broken.params["layer"]["kernel"].at[0, 0].set(value)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), 20.0)
        with pytest.raises(Diverged, match="kernel"):
            checkpoints.save(2, broken, 20.0)
        assert checkpoints.latest_step == 1


def test_unfinished_checkpoint_is_ignored(tmp_path):
    """As a process leaves it that is killed during a save."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), 20.0)
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", unfinished)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 1
        _assert_same(checkpoints.restore(_state()), _state(1))
        checkpoints.save(2, _state(2), 20.0)  # waits for what removes it in the background
    assert not unfinished.exists()


@pytest.mark.parametrize("other", [{"width": 4}, {"ema": False}])
def test_checkpoint_of_another_structure(tmp_path, other):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), 20.0)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match="cannot read this checkpoint"),
    ):
        checkpoints.restore(_state(**other))


def _format_1(folder):
    """A checkpoint as the version before wrote it: other names in its state and beside it."""
    state = {"step": np.int32(4), "weights": {"kernel": np.ones((3, 2), np.float32)}}
    with ocp.CheckpointManager(folder) as manager:
        items = {
            "state": ocp.args.StandardSave(state),
            "facts": ocp.args.JsonSave({"digest": "0123", "rollbacks": 0}),
        }
        manager.save(4, args=ocp.args.Composite(**items))
        manager.wait_until_finished()


def _format_3(folder):
    with pytest.MonkeyPatch.context() as patch, Checkpoints(folder) as checkpoints:
        patch.setattr("manas_jax.workdir.checkpoints.FORMAT", 3)
        checkpoints.save(4, _state(4), 20.0)


@pytest.mark.parametrize("restore", ["restore", "restore_best"])
@pytest.mark.parametrize(
    ("write", "which"),
    [
        (_format_1, r"an earlier version of manas_jax \(checkpoint format 1, this one reads 2\)"),
        (_format_3, r"a later version of manas_jax \(checkpoint format 3, this one reads 2\)"),
    ],
)
def test_checkpoint_of_another_version_is_explained_in_a_line(tmp_path, write, which, restore):
    folder = tmp_path / "checkpoints"
    write(folder)
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(
            UserError, match=f"^{folder} was written by {which}: start in a new"
        ) as error,
    ):
        getattr(checkpoints, restore)(_state())
    assert "weights.safetensors and genotype.json" in str(error.value)
    assert "\n" not in str(error.value)
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoints"]  # nothing is quarantined
    assert (folder / "4" / "state").exists()


def test_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write checkpoints here"):
        Checkpoints(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
