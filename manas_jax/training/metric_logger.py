"""What a loop logs while it runs: metrics, progress with the time left, checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epy
from ml_collections import ConfigDict

from manas_jax.buckets import Mirrored, Path
from manas_jax.data import lazy_tf
from manas_jax.errors import Diverged
from manas_jax.metrics import Scores
from manas_jax.runtime import distributed
from manas_jax.runtime.compilation import CompileStats
from manas_jax.workdir.checkpoints import Checkpoints

with epy.lazy_imports():  # of the extra `train`, whose absence a command reports when it starts
    from clu import parameter_overview

# They import TensorFlow, which takes seconds and must leave accelerators alone.
with epy.lazy_imports(success_callback=lambda _: lazy_tf.tf.config):
    from clu import metric_writers, periodic_actions


class MetricLogger:
    """Collects each step's metrics on the device and writes their means at intervals.

    To TensorBoard and to the log, with images per second and the time left. It also decides when to
    save a checkpoint, and sums up a stage at its end.

    Attributes:
      rollbacks: how often the run returned to a checkpoint because it had diverged.
      scores: of the newest state that `checkpoint` scored; None before the first.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: ConfigDict,
        options: ConfigDict,
        checkpoints: Checkpoints,
        start: int,
        schedule: Callable[[int], float],
        batches: Callable[[int], int] = lambda step: 1,
    ):
        """Opens the event file.

        Args:
          folder: of the event file.
          config: the configuration.
          options: the stage's own options in it.
          checkpoints: where states are saved.
          start: number of steps done before.
          schedule: learning rate of a step.
          batches: number of batches of a step, whose rainy patches are its images.
        """
        self._folder = Mirrored(folder)
        self._writer = metric_writers.create_default_writer(
            os.fspath(self._folder.local), just_logging=jax.process_index() > 0
        )
        self._total, self._every = options.steps, config.log_every
        self._checkpoint_every, self._checkpoints = options.checkpoint_every, checkpoints
        self._images = options.scenes * config.data.versions
        self._schedule, self._batches = schedule, batches
        before = checkpoints.metadata
        self._start, self._begin = start, time.monotonic() - before.get("seconds", 0.0)
        self.rollbacks = before.get("rollbacks", 0)
        self.scores: Scores | None = None
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._since = time.monotonic()
        self._images_done, self._seconds = 0, 0.0
        self._report = self._report_from(start)

    def __call__(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Collects the metrics of the step just done; the first one counts as step 1.

        Raises:
          Diverged: a loss is not finite (noticed when metrics are written).
        """
        self._pending.append((step, metrics))
        if self.should_log(step):
            self.flush()
        self._report(step)

    def flush(self) -> None:
        """Writes the means since the last entry.

        Raises:
          Diverged: a loss is not finite; names the step.
        """
        if not self._pending:
            return
        steps, metrics = zip(*jax.device_get(self._pending), strict=True)
        self._pending = []
        for step, values in zip(steps, metrics, strict=True):
            for name, value in values.items():
                if not np.all(np.isfinite(value)):
                    raise Diverged(f"{name} is {value} at step {step}")
        seconds = time.monotonic() - self._since
        images = self._images * sum(map(self._batches, steps))
        self._images_done, self._seconds = self._images_done + images, self._seconds + seconds
        means = {
            f"loss/{name}": np.mean([m[name] for m in metrics if name in m])
            for name in sorted(set().union(*metrics))
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
        """Whether metrics are written after this step."""
        return step % self._every == 0 or step == self._total

    def checkpoint(self, step: int, state: Any, score_fn: Callable[[], Scores]) -> None:
        """Scores and saves the state if a checkpoint is due after this step.

        Args:
          step: steps done.
          state: what to save.
          score_fn: computes the validation scores; no rate includes its time.

        Raises:
          Diverged: a loss or the state is not finite; nothing is saved then.
          UserError: the disk is full.
        """
        self._checkpoints.check()
        if step % self._checkpoint_every and step != self._total:
            return
        self.flush()
        self.scores = scores = score_fn()
        self.scalars(step, {"validation/psnr": scores.y_psnr, "validation/ssim": scores.y_ssim})
        self._checkpoints.save(step, state, scores.y_psnr, **self._progress())
        self._writer.flush()
        self._folder.upload()
        self._since = time.monotonic()

    def stop(self, step: int, state: Any) -> None:
        """Saves the state of this step, unless it is saved already, without taking time to score.

        Raises:
          Diverged, UserError: as `checkpoint`.
        """
        self.flush()
        if self._checkpoints.latest_step != step:
            self._checkpoints.save(step, state, **self._progress())

    def roll_back(self, step: int) -> None:
        """Continues from this step and drops what was collected since."""
        self._pending, self._since = [], time.monotonic()
        self._report = self._report_from(step)
        self.rollbacks += 1
        self.scalars(step, {"rollbacks": self.rollbacks})

    def _report_from(self, step: int) -> periodic_actions.ReportProgress:
        """Reports progress from this step on; it accepts none but the next one after each call."""
        report = periodic_actions.ReportProgress(
            num_train_steps=self._total, every_steps=self._every, every_secs=None
        )
        report(step)
        return report

    def _progress(self) -> dict[str, float]:
        return {"seconds": time.monotonic() - self._begin, "rollbacks": self.rollbacks}

    def summary(self, compile_stats: CompileStats, scores: Scores) -> dict[str, Any]:
        """Cost and result of the stage, ready for JSON."""
        return {
            "steps": self._total,
            "started_from_step": self._start,
            **self._progress(),
            "images_per_second": self._images_done / self._seconds if self._seconds else None,
            "compile_seconds": compile_stats.seconds,
            "flops_per_step": compile_stats.flops,
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
            self._folder.upload()
        except Exception as error:
            if kind is None:
                raise
            logging.debug("while closing: %s", error)  # the first error says more
        finally:
            self._folder.close()


def log_parameters(stage: str, params: Any, file: Path) -> None:
    """Logs the number of parameters and writes the table of all of them into a file."""

    def write():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(parameter_overview.get_parameter_overview(params) + "\n")

    distributed.broadcast_from_primary(write)
    count = parameter_overview.count_parameters(params)
    logging.info("%s: %s parameters, listed in %s", stage, f"{count:,}", file)
