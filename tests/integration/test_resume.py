"""Search and training, stopped at a step and resumed, end with bit-identical states."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT

from manas_jax import main
from manas_jax.buckets import as_path
from manas_jax.errors import UserError
from manas_jax.runtime import signals
from manas_jax.training import build, metric_logger
from manas_jax.training import run as train_run
from manas_jax.training import stage as stage_module
from manas_jax.workdir.checkpoints import Checkpoints

STEPS = 6  # of both stages in configs/tiny.py, with a checkpoint every 2


@pytest.fixture(autouse=True)
def no_report(monkeypatch, finished):
    """Runs end without a report, but that of `finished` has one."""
    monkeypatch.setattr(main.report, "write", lambda workdir: workdir)


class _Stop(BaseException):
    """As sudden as Ctrl-C."""


def _stopping_at(step, stop):
    """A MetricLogger that calls `stop` after this step, before it is saved."""

    class Stopping(metric_logger.MetricLogger):
        def __call__(self, number, metrics):
            super().__call__(number, metrics)
            if number == step:
                stop()

    return Stopping


def _final_state(workdir, stage):
    """The arrays of the last checkpoint by name, read by orbax alone."""
    folder = as_path(workdir) / stage / "checkpoints" / str(STEPS) / "state"
    tree = ocp.StandardCheckpointer().restore(folder)
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
@pytest.mark.parametrize("stage", ["search", "train"])
def test_resumes_after_a_stop(tmp_path, monkeypatch, finished, run_stages, stage, stop):
    if stage == "train":
        _copy_search(finished, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "MetricLogger", _stopping_at(stop, _raise))
        assert not _run_stage(run_stages, tmp_path, stage)
    assert not (tmp_path / stage / "summary.json").exists()
    folder = tmp_path / stage / "checkpoints"
    saved = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
    assert max(saved, default=0) == (stop - 1) // 2 * 2  # the steps since are repeated
    assert _run_stage(run_stages, tmp_path, stage)
    assert _same_bits(_final_state(tmp_path, stage), _final_state(finished, stage))
    if stage == "search":
        found = [(folder / "genotype.json").read_text() for folder in (tmp_path, finished)]
        assert found[0] == found[1]


def _copy_search(finished, workdir):
    shutil.copytree(finished / "search", workdir / "search")
    shutil.copy(finished / "genotype.json", workdir)


@pytest.mark.parametrize("stage", ["search", "train"])
def test_signal_saves_the_current_step(tmp_path, monkeypatch, finished, run_stages, stage):
    """SIGTERM between two checkpoints: status 75, no step is repeated, the same final bits."""
    if stage == "train":
        _copy_search(finished, tmp_path)
    stopping = _stopping_at(3, lambda: signal.raise_signal(signal.SIGTERM))
    with monkeypatch.context() as patch, _listening():
        patch.setattr(stage_module, "MetricLogger", stopping)
        with pytest.raises(signals.Stopped) as stopped:
            run_stages(tmp_path, stage=stage)
    assert stopped.value.status == signals.PREEMPTED == 75
    folder = tmp_path / stage / "checkpoints"
    assert sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) == [2, 3]
    assert not (tmp_path / stage / "summary.json").exists()
    assert _run_stage(run_stages, tmp_path, stage)
    summary = json.loads((tmp_path / stage / "summary.json").read_text())
    assert summary["started_from_step"] == 3
    assert _same_bits(_final_state(tmp_path, stage), _final_state(finished, stage))
    if stage == "train":  # a checkpoint without a score does not affect the choice
        best = [
            json.loads((w / "train" / "summary.json").read_text()) for w in (tmp_path, finished)
        ]
        assert best[0]["best_step"] == best[1]["best_step"]


def test_signal_with_nothing_to_save():
    with _listening():
        with pytest.raises(signals.Stopped), signals.interruptible():
            signal.raise_signal(signal.SIGTERM)
        assert signals.requested() == signals.PREEMPTED  # recorded
        with pytest.raises(signals.Stopped), signals.interruptible():
            pytest.fail("work was begun after the signal")


def test_second_ctrl_c_interrupts():
    with _listening():
        signal.raise_signal(signal.SIGINT)
        assert signals.requested() == signals.CANCELLED == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _listening():
    """Installs the handlers of the commands; restores the former ones."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "_signals", signals._Signals())
        signals.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _diverging_at(step, times, changes):
    """A MetricLogger that gets NaN at a step, `times` times, and `batches` that record seeds."""
    make_batches, count = build.batches, itertools.count(1)

    class Diverging(metric_logger.MetricLogger):
        def __call__(self, number, metrics):
            if number == step and next(count) <= times:
                metrics = {**metrics, "mse": np.float32("nan")}
            super().__call__(number, metrics)

    def noted(*args, **kwargs):
        made = make_batches(*args, **kwargs)
        changes.append(made._seed)
        return made

    return Diverging, noted


# Before the first checkpoint; one and two steps after the second; one of three that are logged.
@pytest.mark.parametrize("step, log_every", [(1, 1), (5, 1), (6, 1), (4, 3)])
def test_rollback_continues_with_other_batches(
    tmp_path, monkeypatch, finished, run_stages, step, log_every
):
    _copy_search(finished, tmp_path)
    seeds = []
    diverging, noted = _diverging_at(step, 1, seeds)
    monkeypatch.setattr(stage_module, "MetricLogger", diverging)
    monkeypatch.setattr(train_run.build, "batches", noted)
    run_stages(tmp_path, stage="train", max_rollbacks=2, log_every=log_every)
    summary = json.loads((tmp_path / "train" / "summary.json").read_text())
    assert summary["rollbacks"] == 1
    assert len(set(seeds)) == 2
    state, other = (_final_state(w, "train") for w in (tmp_path, finished))
    assert all(np.isfinite(v).all() for v in state.values())
    assert not _same_bits(state, other)
    # The number of rollbacks is saved with the state: a resumed run keeps the new order.
    with Checkpoints(tmp_path / "train" / "checkpoints") as checkpoints:
        assert checkpoints.metadata["rollbacks"] == 1


def test_stops_after_max_rollbacks(tmp_path, monkeypatch, finished, run_stages):
    _copy_search(finished, tmp_path)
    diverging, _ = _diverging_at(5, 99, [])
    monkeypatch.setattr(stage_module, "MetricLogger", diverging)
    with pytest.raises(UserError, match=r"diverged after 2 rollbacks: mse is nan at step 5"):
        run_stages(tmp_path, stage="train", max_rollbacks=2, log_every=1)
    assert not (tmp_path / "train" / "summary.json").exists()


KILLED = """
import os, signal, sys
sys.path[:0] = ["tests", "tests/integration"]
import conftest, json
from test_resume import _stopping_at
from manas_jax import main
from manas_jax.training import stage
stage.MetricLogger = _stopping_at(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
main.run(conftest.narrow_config(**json.loads(sys.argv[2]), stage="search"), sys.argv[1])
"""


@pytest.mark.parametrize(
    "cache",
    ["true", pytest.param("false", marks=pytest.mark.slow)],
    ids=["cached programs", "programs of its own"],
)
def test_resumes_after_sigkill_during_a_save(tmp_path, finished, run_stages, loop_changes, cache):
    """SIGKILL one step after a save has begun, in another process."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), json.dumps(loop_changes)],
        cwd=ROOT,
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": cache},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "genotype.json").exists()
    assert _run_stage(run_stages, tmp_path, "search")
    assert _same_bits(_final_state(tmp_path, "search"), _final_state(finished, "search"))


def test_seed_determines_all_bits(tmp_path, finished, run_stages):
    states = {}
    for name, seed in (("again", 0), ("other", 1)):
        assert _run_stage(run_stages, tmp_path / name, "search", seed=seed)
        states[name] = _final_state(tmp_path / name, "search")
    expected = _final_state(finished, "search")
    assert _same_bits(states["again"], expected)
    assert not _same_bits(states["other"], expected)
    for part in ("params", "architecture"):
        names = [k for k in expected if k.startswith(f"['{part}']")]
        assert any(np.any(states["other"][k] != expected[k]) for k in names), part
