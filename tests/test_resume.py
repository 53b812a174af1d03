"""A search and a training, stopped at a step and started again, end with the same bits."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from manas_jax import recorder, search, train

STEPS = 6  # of both stages in configs/tiny.py, with a checkpoint every 2


class _Stop(BaseException):
    """As sudden as Ctrl-C."""


def _stopping_at(step, stop):
    """A recorder that calls `stop` when this step is done, before it is saved."""

    class Stopping(recorder.Recorder):
        def __call__(self, number, terms):
            super().__call__(number, terms)
            if number == step:
                stop()

    return Stopping


def _final_state(workdir, stage):
    """The arrays of the last checkpoint by name, read without our own code."""
    folder = pathlib.Path(workdir) / stage / "checkpoints" / str(STEPS) / "state"
    tree = ocp.StandardCheckpointer().restore(folder.absolute())
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def _same_bits(a, b):
    assert a.keys() == b.keys()
    return all(np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes() for k in a)


def _raise():
    raise _Stop


def _run_stage(run_stages, workdir, stage, **changes):
    try:
        run_stages(workdir, stage=stage, **changes)
    except _Stop:
        return False
    return True


@pytest.mark.parametrize(
    "stop", [1, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4, 5, 6))]
)
@pytest.mark.parametrize(("stage", "module"), [("search", search), ("train", train)])
def test_stopped_at_a_step(tmp_path, monkeypatch, finished, run_stages, stage, module, stop):
    if stage == "train":
        _copy_search(finished, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "Recorder", _stopping_at(stop, _raise))
        assert not _run_stage(run_stages, tmp_path, stage)
    assert not (tmp_path / stage / "summary.json").exists()
    folder = tmp_path / stage / "checkpoints"
    saved = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
    assert max(saved, default=0) == (stop - 1) // 2 * 2  # what was done since is done again
    assert _run_stage(run_stages, tmp_path, stage)
    assert _same_bits(_final_state(tmp_path, stage), _final_state(finished, stage))
    if stage == "search":
        found = [(folder / "genotype.json").read_text() for folder in (tmp_path, finished)]
        assert found[0] == found[1]


def _copy_search(finished, workdir):
    shutil.copytree(finished / "search", workdir / "search")
    shutil.copy(finished / "genotype.json", workdir)


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
import conftest, json
from test_resume import _stopping_at
from manas_jax import main, search
search.Recorder = _stopping_at(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
main.run(conftest.narrow_config(**json.loads(sys.argv[2]), stage="search"), sys.argv[1])
"""


def test_killed_while_it_saves(tmp_path, finished, run_stages, loop_changes):
    """SIGKILL one step after a save has begun, in a process that compiled for itself."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), json.dumps(loop_changes)],
        cwd=pathlib.Path(__file__).parent.parent,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "genotype.json").exists()
    assert _run_stage(run_stages, tmp_path, "search")
    assert _same_bits(_final_state(tmp_path, "search"), _final_state(finished, "search"))


def test_same_seed_same_bits_other_seed_others(tmp_path, finished, run_stages):
    states = {}
    for name, seed in (("again", 0), ("other", 1)):
        assert _run_stage(run_stages, tmp_path / name, "search", seed=seed)
        states[name] = _final_state(tmp_path / name, "search")
    expected = _final_state(finished, "search")
    assert _same_bits(states["again"], expected)
    assert not _same_bits(states["other"], expected)
    for part in ("weights", "architecture"):
        names = [k for k in expected if k.startswith(f"['{part}']")]
        assert any(np.any(states["other"][k] != expected[k]) for k in names), part
