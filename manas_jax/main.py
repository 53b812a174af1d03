"""Runs the stages of the method: search, train, evaluate, or all of them in order.

python -m manas_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

On several machines every process gets the same command and finds the others, either by itself
(--distributed) or by --coordinator, --processes and --process; see launch/README.md. The exit
status is described in `manas_jax.app`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping

from absl import flags, logging
from ml_collections import ConfigDict

from manas_jax import app
from manas_jax.buckets import Path, as_path
from manas_jax.config import STAGES, validate
from manas_jax.data.splits import Splits
from manas_jax.evaluate import evaluate
from manas_jax.inference import pretrained
from manas_jax.report import page as report
from manas_jax.runtime import distributed
from manas_jax.search import methods
from manas_jax.training import checks
from manas_jax.training.run import train
from manas_jax.workdir import lock, provenance
from manas_jax.workdir.claim import check_config, claim_inputs, claim_workdir
from manas_jax.workdir.weights import WEIGHTS_FILE

flags.adopt_module_key_flags(app)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several processes, found by JAX: Cloud TPU, GKE, Slurm, Open MPI."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Several processes: host:port that the first one listens on."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Several processes: their number.")
_PROCESS = flags.DEFINE_integer("process", None, "Several processes: index of this one, from 0.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat",
    distributed.HEARTBEAT,
    "Several processes: seconds of silence after which one counts as dead and the others exit.",
    lower_bound=1,
)

_RUN: dict[str, Callable] = {"search": methods.search, "train": train, "evaluate": evaluate}
_FINISHED = {  # files that a stage leaves, the last one of them too
    "search": ("search/summary.json",),
    "train": ("train/summary.json", WEIGHTS_FILE),
    "evaluate": ("evaluate/scores.json",),
}


def run(config: ConfigDict, workdir: str | os.PathLike) -> Path:
    """Runs the configured stage, or with 'all' those that the workdir has not finished yet.

    Returns:
      The report, `report.html` in the workdir.

    Raises:
      UserError: what the user can correct; the message says how.
      Stopped: a signal came; the state is saved.
    """
    validate(config)
    if config.train.weights:
        config = config.copy_and_resolve_references()
        config.train.weights = str(pretrained.find(config.train.weights))
    workdir = as_path(workdir)
    with app.run_context(config, workdir), contextlib.ExitStack() as held:
        distributed.broadcast_from_primary(lambda: held.enter_context(lock.hold(workdir)))
        stages = distributed.broadcast_from_primary(lambda: _unfinished(config, workdir))
        if "search" in stages:
            methods.check(config)
        splits = checks.check_stages(config, workdir, stages)
        distributed.broadcast_from_primary(lambda: _claim(config, workdir, splits))
        for stage in stages:
            _RUN[stage](config, workdir, splits[stage])
        report_file = distributed.broadcast_from_primary(lambda: str(report.write(workdir)))
    return as_path(report_file)


def _unfinished(config: ConfigDict, workdir: Path) -> list[str]:
    """The stages to run."""
    check_config(config, workdir)
    if config.stage != "all":
        return [config.stage]
    finished = [all((workdir / file).exists() for file in _FINISHED[stage]) for stage in STAGES]
    first = (*finished, False).index(False)  # what follows it may be of an earlier state of it
    for stage in STAGES[:first]:
        logging.info("%s: already finished, skipped", stage)
    return list(STAGES[first:])


def _claim(config: ConfigDict, workdir: Path, splits: Mapping[str, Splits]) -> None:
    """Writes what a start in a workdir leaves there."""
    if splits:
        claim_inputs(config, workdir, splits)
    claim_workdir(config, workdir)
    provenance.append(workdir / "provenance.json", config.stage)


def main(config: ConfigDict, workdir: str) -> None:
    """Joins the other processes, if any, and runs the stages."""
    distributed.start(
        _COORDINATOR.value,
        _PROCESSES.value,
        _PROCESS.value,
        found=_DISTRIBUTED.value,
        heartbeat=_HEARTBEAT.value,
    )
    report_file = run(config, workdir)
    logging.info("report: %s", report_file)


if __name__ == "__main__":
    app.start(main)
