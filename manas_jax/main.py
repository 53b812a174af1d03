"""Runs the stages of the method: search, train, evaluate, or all in turn.

python -m manas_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

On several machines every process gets the same command and finds the others, either by itself
(--distributed) or by --coordinator, --processes and --process; see launch/README.md. The exit
status is 0 when done, 1 after a mistake, 75 when SIGTERM came or another process was lost: started
again, the run goes on.
"""

from __future__ import annotations

import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from manas_jax.config import STAGES, validate
from manas_jax.errors import UserError
from manas_jax.evaluate import evaluate
from manas_jax.report import page as report
from manas_jax.runtime import compilation, distributed, log, malloc, signals
from manas_jax.search.run import search
from manas_jax.training.run import train
from manas_jax.workdir import provenance
from manas_jax.workdir.checkpoints import disk_trouble
from manas_jax.workdir.claim import claim_workdir

_CONFIG = config_flags.DEFINE_config_file("config", None, "File of an experiment, see configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the run leaves.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several processes, found by JAX: Cloud TPU, GKE, Slurm, Open MPI."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Several processes: host:port that the first one listens on."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Several processes: how many.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat",
    distributed.HEARTBEAT,
    "Several processes: seconds of silence after which one counts as dead and the others end.",
    lower_bound=1,
)
_PROCESS = flags.DEFINE_integer("process", None, "Several processes: which one this is, from 0.")

_RUN: dict[str, Callable] = {"search": search, "train": train, "evaluate": evaluate}
_FINISHED = {
    "search": "search/summary.json",
    "train": "train/summary.json",
    "evaluate": "evaluate/scores.json",
}


def run(config: ConfigDict, workdir: str | os.PathLike) -> pathlib.Path:
    """Runs the configured stage, or with 'all' those that the workdir has not finished yet.

    Returns:
      The report, `report.html` in the workdir.

    Raises:
      UserError: what the user can mend; the message says how.
      Stopped: a signal came; what was done is saved.
    """
    validate(config)
    workdir = pathlib.Path(workdir)

    def begin():
        claim_workdir(config, workdir)
        provenance.note(workdir / "provenance.json", config.stage)
        if config.stage != "all":
            return [config.stage]
        return [stage for stage in STAGES if not (workdir / _FINISHED[stage]).exists()]

    stages = distributed.broadcast_from_primary(begin)
    for stage in STAGES if config.stage == "all" else ():
        if stage not in stages:
            logging.info("%s: done before, skipped", stage)
    try:
        with jax.default_matmul_precision(config.network.precision):
            for stage in stages:
                _RUN[stage](config, workdir)
        return pathlib.Path(distributed.broadcast_from_primary(lambda: str(report.write(workdir))))
    except (UserError, signals.Stopped):
        raise
    except Exception as error:  # each library has another for a full disk
        if (trouble := disk_trouble(error, workdir)) is None:
            raise
        raise UserError(
            f"{trouble}: free some space and start again; the checkpoints in {workdir} are whole"
        ) from error


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with a line in place of a traceback where a config key or file is wrong."""
    try:
        rest = app.parse_flags_with_usage(argv)
        _ = _CONFIG.value and _CONFIG.value.stage  # a missing file is noticed only when used
    except (AttributeError, KeyError) as error:
        cause = error.args[0] if error.args else error
        hint = " ".join(str(cause.args[0] if isinstance(cause, KeyError) else cause).split())
        sys.exit(f"error: unknown config key {hint}; see manas_jax/config.py for all of them")
    except OSError:
        sys.exit(f"error: --config={flags.FLAGS['config'].config_filename}: no such file")
    return rest


def main(argv: Sequence[str]) -> None:
    """Flags in, report out."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        distributed.start(
            _COORDINATOR.value,
            _PROCESSES.value,
            _PROCESS.value,
            found=_DISTRIBUTED.value,
            heartbeat=_HEARTBEAT.value,
        )
        path = run(_CONFIG.value, _WORKDIR.value)
    except signals.Stopped as stopped:
        distributed.exit_process(stopped.status)
    except KeyboardInterrupt:
        distributed.exit_process(signals.CANCELLED)
    except UserError as error:
        distributed.exit_process(f"error: {error}")
    except Exception as error:
        if not distributed.is_peer_failure(error):
            if jax.process_count() == 1:
                raise
            traceback.print_exc()
            distributed.exit_process(1)
        logging.error("another process is gone: start all of them again to go on (%s)", error)
        distributed.exit_process(signals.PREEMPTED)
    logging.info("report: %s", path)


def start(command: Callable[[Sequence[str]], None]) -> None:
    """Runs a command that has --config and --workdir, and ends the process."""
    flags.mark_flags_as_required(["config", "workdir"])
    log.setup_logging()
    compilation.use_cache()
    malloc.tune()
    jax.config.config_with_absl()
    signals.listen()
    app.run(command, flags_parser=parse_flags)


if __name__ == "__main__":
    start(main)
