"""What a loop writes down while it runs: averages, progress with the time left, checkpoints."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from etils import epy
from ml_collections import ConfigDict

from manas_jax.data import lazy_tf
from manas_jax.errors import Diverged
from manas_jax.metrics import Scores
from manas_jax.runtime import distributed
from manas_jax.runtime.compilation import Compilation
from manas_jax.workdir.checkpoints import Checkpoints

# They import TensorFlow, which takes seconds and must leave accelerators alone.
with epy.lazy_imports(success_callback=lambda _: lazy_tf.tf.config):
    from clu import metric_writers, periodic_actions


class MetricLogger:
    """Collects each step's terms on the device and writes their averages every so often.

    Goes to TensorBoard and to the log, with images a second and the time left. Also knows when a
    checkpoint is due, and what there is to say of a stage in the end.

    Attributes:
      rollbacks: how often the run went back to a checkpoint because it had diverged.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: ConfigDict,
        options: ConfigDict,
        checkpoints: Checkpoints,
        start: int,
        schedule: Callable[[int], float],
    ):
        """Opens the event file.

        Args:
          folder: where it goes.
          config: the configuration.
          options: the part of it that is the stage's own.
          checkpoints: where states are saved.
          start: steps that are done already.
          schedule: learning rate of a step.
        """
        self._writer = metric_writers.create_default_writer(
            os.fspath(folder), just_logging=jax.process_index() > 0
        )
        self._report = periodic_actions.ReportProgress(
            num_train_steps=options.steps, every_steps=config.log_every, every_secs=None
        )
        self._total, self._every = options.steps, config.log_every
        self._checkpoint_every, self._checkpoints = options.checkpoint_every, checkpoints
        self._images = options.scenes * config.data.versions
        self._schedule = schedule
        before = checkpoints.metadata
        self._start, self._begin = start, time.monotonic() - before.get("seconds", 0.0)
        self.rollbacks = before.get("rollbacks", 0)
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._since = time.monotonic()
        self._images_done, self._seconds = 0, 0.0
        self._report(start)

    def __call__(self, step: int, terms: Mapping[str, jax.Array]) -> None:
        """Notes the terms of the step that was just done; the first one counts as step 1.

        Raises:
          Diverged: a loss is not finite (found when an entry is due).
        """
        self._pending.append((step, terms))
        if self.should_log(step):
            self.flush()
        self._report(step)

    def flush(self) -> None:
        """Writes the averages since the last entry.

        Raises:
          Diverged: a loss is not finite; names the step.
        """
        if not self._pending:
            return
        steps, terms = zip(*jax.device_get(self._pending), strict=True)
        self._pending = []
        for step, values in zip(steps, terms, strict=True):
            for name, value in values.items():
                if not np.all(np.isfinite(value)):
                    raise Diverged(f"{name} is {value} at step {step}")
        seconds = time.monotonic() - self._since
        images = self._images * len(steps)
        self._images_done, self._seconds = self._images_done + images, self._seconds + seconds
        means = {
            f"loss/{name}": np.mean([t[name] for t in terms if name in t])
            for name in sorted(set().union(*terms))
        }
        rates = {
            "images_per_second": images / seconds,
            "learning_rate": self._schedule(steps[-1]),
        }
        self.scalars(steps[-1], {**means, **rates})
        self._since = time.monotonic()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of a step."""
        self._writer.write_scalars(step, {k: float(v) for k, v in values.items()})

    def should_log(self, step: int) -> bool:
        """Whether averages are written after this step."""
        return step % self._every == 0 or step == self._total

    def checkpoint(self, step: int, state: Any, score: Callable[[], Scores]) -> None:
        """Scores and saves the state if a checkpoint is due after this step.

        Args:
          step: steps done.
          state: what to save.
          score: makes the validation scores; their time counts in no rate.

        Raises:
          Diverged: a loss or the state is not finite; nothing is saved then.
          UserError: the disk is full.
        """
        self._checkpoints.check()
        if step % self._checkpoint_every and step != self._total:
            return
        self.flush()
        scores = score()
        self.scalars(step, {"validation/psnr": scores.y_psnr, "validation/ssim": scores.y_ssim})
        self._checkpoints.save(step, state, scores.y_psnr, **self._facts())
        self._since = time.monotonic()

    def stop(self, step: int, state: Any) -> None:
        """Saves the state of this step, unless it is saved already, without taking time to score.

        Raises:
          Diverged, UserError: as `checkpoint`.
        """
        self.flush()
        if self._checkpoints.latest_step != step:
            self._checkpoints.save(step, state, **self._facts())

    def roll_back(self, step: int) -> None:
        """Goes on from this step, with nothing of what was noted since."""
        self._pending, self._since = [], time.monotonic()
        self.rollbacks += 1
        self.scalars(step, {"rollbacks": self.rollbacks})

    def _facts(self) -> dict[str, float]:
        return {"seconds": time.monotonic() - self._begin, "rollbacks": self.rollbacks}

    def summary(self, compilation: Compilation, scores: Scores) -> dict[str, Any]:
        """What a stage took and what it came to, ready for JSON."""
        return {
            "steps": self._total,
            "started_from_step": self._start,
            **self._facts(),
            "images_per_second": self._images_done / self._seconds if self._seconds else None,
            "compile_seconds": compilation.seconds,
            "flops_per_step": compilation.flops,
            "validation": {"psnr": scores.y_psnr, "ssim": scores.y_ssim},
        }

    def tensors(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes arrays of a step."""
        self._writer.write_summaries(step, {k: np.asarray(v) for k, v in values.items()})

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self._writer.flush()
            self._writer.close()
        except Exception as error:
            if kind is None:
                raise
            logging.debug("while closing: %s", error)  # what came first says more


def log_parameters(stage: str, weights: Any, file: pathlib.Path) -> None:
    """Logs the number of parameters and writes the table of all of them into a file."""

    def write():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(parameter_overview.get_parameter_overview(weights) + "\n")

    distributed.broadcast_from_primary(write)
    count = parameter_overview.count_parameters(weights)
    logging.info("%s: %s parameters, listed in %s", stage, f"{count:,}", file)
