"""The skeleton that search and training share."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from manas_jax.buckets import Path, as_path
from manas_jax.data import lazy_tf
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.metrics import Scores
from manas_jax.runtime import distributed, signals
from manas_jax.runtime.compilation import CompileStats
from manas_jax.training import build, loop
from manas_jax.training.metric_logger import MetricLogger, log_parameters
from manas_jax.training.state import State
from manas_jax.workdir.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Stage:
    """What distinguishes a stage.

    Attributes:
      name: 'search' or 'train', of its options in the configuration and of its folder.
      mesh: the devices that it runs on.
      restore_or_init: the newest state of the checkpoints, or a fresh one.
      batches: (start, rollbacks) -> the batches of the steps from `start` on.
      compile: (state, shapes of a batch) compiles the steps ahead of the first one.
      step_fn: (state, batch) -> (state, metrics).
      eval_fn: validation scores of a state.
      finish: (state, scores, checkpoints) -> entries for the summary; writes what others read.
      log_fn: (logger, step, state) logs whatever else the state tells.
      batches_of: number of batches, each of `scenes`, of a step; the first step is 1.
      result: file in the workdir that `finish` writes for others: without it, it has not ended.
    """

    name: str
    mesh: Mesh
    restore_or_init: Callable[[Checkpoints], State]
    batches: Callable[[int, int], Iterator[Any]]
    compile: Callable[[State, Any], CompileStats]
    step_fn: Callable[[State, Any], tuple[State, dict]]
    eval_fn: Callable[[State], Scores]
    finish: Callable[[State, Scores, Checkpoints], dict[str, Any]]
    log_fn: Callable[[MetricLogger, int, State], None] = lambda logger, step, state: None
    batches_of: Callable[[int], int] = lambda step: 1
    result: str = ""


def run(config: ConfigDict, workdir: str | os.PathLike, stage: Stage) -> bool:
    """Runs a stage from its newest checkpoint to its end; returns False if it had ended before.

    Leaves checkpoints, curves, `parameters.txt` and at the end `summary.json` in the stage's
    folder.

    Raises:
      UserError: a diverged loss, a folder that cannot be written.
      Stopped: a signal came; the state is saved.
    """
    options, name = config[stage.name], stage.name
    folder = as_path(workdir) / name
    with Checkpoints(folder / "checkpoints") as checkpoints:

        def restore_or_init():
            return stage.restore_or_init(checkpoints)

        state = restore_or_init()
        start = int(state.step)
        if start == options.steps and distributed.broadcast_from_primary(
            lambda: (
                _has_ended(folder / "summary.json", start)
                and (not stage.result or (folder.parent / stage.result).exists())
            )
        ):
            logging.info("%s: all %d steps are done", name, start)
            return False
        if start > options.steps:
            raise UserError(
                f"{folder / 'checkpoints'} is of step {start}, {name}.steps is {options.steps}: "
                f"give at least {start}, or remove {folder}"
            )
        if start:
            logging.info("%s: resumes at step %d of %d", name, start, options.steps)
        log_parameters(name, state.params, folder / "parameters.txt")
        lazy_tf.import_in_background()
        with signals.interruptible():
            shapes = build.batch_shapes(config, options, stage.mesh)
            compile_stats = stage.compile(state, shapes)
        logging.info("%s: compiled a step; %s", name, compile_stats)
        schedule = build.weight_schedule(options)
        with MetricLogger(
            folder, config, options, checkpoints, start, schedule, stage.batches_of
        ) as logger:
            state = loop.run(
                state,
                restore_or_init=restore_or_init,
                batches=stage.batches,
                step_fn=stage.step_fn,
                logger=logger,
                eval_fn=stage.eval_fn,
                max_rollbacks=config.max_rollbacks,
                log_fn=lambda step, state: stage.log_fn(logger, step, state),
            )
        # The last step has a checkpoint; without one, all steps were done before.
        scores = logger.scores or stage.eval_fn(state)
        facts = stage.finish(state, scores, checkpoints)
        summary = logger.summary(compile_stats, scores) | {"devices": stage.mesh.devices.size}
        summary |= facts
        distributed.broadcast_from_primary(lambda: write_json(folder / "summary.json", summary))
    return True


def _has_ended(summary: Path, steps: int) -> bool:
    """Whether a summary is there and not that of an earlier, shorter stage in this folder."""
    try:
        return json.loads(summary.read_text())["steps"] == steps
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False  # missing or damaged: it is written again
