"""Random damage to every kind of file that a run reads: it is read, or refused in one line."""

import contextlib
import json
import shutil
import time

import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax.data.scene import Scene
from manas_jax.data.splits import Splits
from manas_jax.errors import UserError
from manas_jax.inference import import_torch
from manas_jax.space import Genotype
from manas_jax.workdir import provenance
from manas_jax.workdir.checkpoints import Checkpoints
from manas_jax.workdir.claim import check_config, claim_inputs, claim_workdir
from manas_jax.workdir.weights import load_weights

LIMIT = 20.0  # seconds for one file, on a busy machine
TOKENS = [b"9" * 5000, b"-1", b"1e999", b"NaN", b"null", b"[" * 20_000, b'"', b"\xff\xfe", b"\0"]


def mutate(content, seed):
    """One to three of: a flipped bit, a range cut, repeated or overwritten, a token, the end."""
    draw = np.random.default_rng(seed)
    content = bytearray(content)
    for _ in range(draw.integers(1, 4)):
        start = int(draw.integers(len(content) + 1))
        end = min(len(content), start + int(draw.integers(1, 40)))
        kind = draw.integers(6)
        if kind == 0 and start < len(content):
            content[start] ^= 1 << int(draw.integers(8))
        elif kind == 1:
            del content[start:end]
        elif kind == 2:
            content[start:start] = content[start:end]
        elif kind == 3:
            content[start:end] = draw.bytes(end - start)
        elif kind == 4:
            content[start:end] = TOKENS[draw.integers(len(TOKENS))]
        else:
            del content[start:]
    return bytes(content)


@pytest.fixture
def kinds(tmp_path, make_config, weights, small):
    """For each kind of file a valid one, and what reads it."""
    config = make_config(data__source="folder", data__root="data")
    scene = Scene("1", np.zeros((12, 12, 3), np.uint8))
    splits = {"search": Splits((scene,), (), (scene,), ())}
    workdir = claim_workdir(config, tmp_path / "run")
    claim_inputs(config, workdir, splits)
    provenance.append(workdir / "provenance.json", "search")
    small[0].save(tmp_path / "genotype.json")
    np.savez(tmp_path / "net.npz", x=np.ones((3, 4), np.float32), attention=np.arange(6))
    shutil.copy(weights, tmp_path / "weights.safetensors")
    return {
        "weights": (tmp_path / "weights.safetensors", load_weights),
        "genotype": (tmp_path / "genotype.json", Genotype.load),
        "config": (workdir / "config.json", lambda _: check_config(config, workdir)),
        "inputs": (workdir / "inputs.json", lambda _: claim_inputs(config, workdir, splits)),
        "provenance": (workdir / "provenance.json", lambda f: provenance.append(f, "train")),
        "npz": (tmp_path / "net.npz", import_torch.read_checkpoint),
    }


KINDS = ("weights", "genotype", "config", "inputs", "provenance", "npz")


def _assert_read_or_refused(file, read):
    start = time.monotonic()
    with contextlib.suppress(UserError):
        try:
            read(file)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500
            assert file.name in str(error) or file.parent.name in str(error)
            raise
    assert time.monotonic() - start < LIMIT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "seeds", [range(12), pytest.param(range(12, 300), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_damaged_files_are_read_or_refused(kinds, kind, seeds):
    file, read = kinds[kind]
    content = file.read_bytes()
    for seed in seeds:
        file.write_bytes(mutate(content, seed))
        _assert_read_or_refused(file, read)


@pytest.mark.parametrize("kind", ["config", "inputs"])
def test_a_refused_file_is_left_as_it_is(kinds, kind):
    file, read = kinds[kind]
    file.write_text("{")
    with pytest.raises(UserError):
        read(file)
    assert file.read_text() == "{"


@pytest.mark.parametrize(
    "seeds", [range(2), pytest.param(range(2, 60), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_damaged_checkpoints_are_skipped_or_refused(tmp_path, seeds):
    """Bit for bit what was saved, or an older one, or one line."""
    state = {"a": jnp.arange(12.0).reshape(3, 4), "step": jnp.asarray(1)}
    whole = tmp_path / "whole" / "checkpoints"
    with Checkpoints(whole) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state | {"step": jnp.asarray(step)}, 20.0)
    files = [file for file in sorted((whole / "2").rglob("*")) if file.is_file()]
    for seed in seeds:
        folder = tmp_path / str(seed) / "checkpoints"
        shutil.copytree(whole, folder)
        file = folder / files[seed % len(files)].relative_to(whole)
        file.write_bytes(mutate(file.read_bytes(), seed))
        with contextlib.suppress(UserError), Checkpoints(folder) as checkpoints:
            restored = checkpoints.restore(state)
            assert int(restored["step"]) in (1, 2)
            np.testing.assert_array_equal(restored["a"], state["a"])


def test_mutations_are_a_function_of_the_seed():
    content = json.dumps({"a": list(range(99))}).encode()
    assert [mutate(content, seed) for seed in range(9)] == [mutate(content, s) for s in range(9)]
    assert sum(mutate(content, seed) != content for seed in range(99)) > 90
