"""The loop that search and training share: steps, checkpoints, and recovery from divergence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from manas_jax.errors import Diverged
from manas_jax.metrics import Scores
from manas_jax.runtime import signals
from manas_jax.training.metric_logger import MetricLogger
from manas_jax.training.state import State


def run(
    state: State,
    *,
    restore_or_init: Callable[[], State],
    batches: Callable[[int, int], Iterator[Any]],
    step_fn: Callable[[State, Any], tuple[State, dict]],
    logger: MetricLogger,
    eval_fn: Callable[[State], Scores],
    max_rollbacks: int,
    log_fn: Callable[[int, State], None] = lambda step, state: None,
) -> State:
    """Steps from where the state is to where the batches end.

    Args:
      state: where to start.
      restore_or_init: restores the newest checkpoint, or makes a fresh state where there is none.
      batches: (start, rollbacks) -> the batches of the steps from `start` on; their order depends
        on the number of rollbacks, their number does not.
      step_fn: (state, batch) -> (state, metrics).
      logger: logs each step and saves checkpoints.
      eval_fn: validation scores of a state.
      max_rollbacks: how often a run that diverged returns to its newest checkpoint and continues
        with batches in another order; 0 ends it immediately.
      log_fn: logs what else there is to say of a state, whenever metrics are written.

    Returns:
      The state after the last step.

    Raises:
      Diverged: the loss did, once more than `max_rollbacks`.
      UserError: the disk is full, a picture cannot be read.
      Stopped: a signal came; the state of the step it came in is saved.
    """
    while True:
        start = step = int(state.step)
        try:
            for step, batch in enumerate(batches(start, logger.rollbacks), start + 1):
                state, metrics = step_fn(state, batch)
                logger(step, metrics)
                if logger.should_log(step):
                    log_fn(step, state)
                logger.checkpoint(step, state, lambda state=state: eval_fn(state))
                if (status := signals.requested()) is not None:
                    logger.stop(step, state)
                    logging.info(
                        "stopped at step %d and saved: run the command again to resume", step
                    )
                    raise signals.Stopped(status)
            return state
        except Diverged as error:
            if logger.rollbacks >= max_rollbacks:
                raise Diverged(_diverged(error, logger.rollbacks), step) from None
            state = restore_or_init()
            logging.warning(
                "the loss diverged (%s): back from step %d to %d, with batches in another order",
                error, step, state.step,
            )  # fmt: skip
            logger.roll_back(int(state.step))


def _diverged(error: Diverged, rollbacks: int) -> str:
    after = f" after {rollbacks} rollbacks" if rollbacks else ""
    return (
        f"the loss diverged{after}: {error}; earlier checkpoints are untouched; set max_rollbacks "
        "to go on from them with other batches, or lower the learning rate or set clip in a new "
        "--workdir"
    )
