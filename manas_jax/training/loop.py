"""The loop that search and training share: steps, checkpoints, and what may come between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from manas_jax.errors import Diverged, UserError
from manas_jax.metrics import Scores
from manas_jax.runtime import signals
from manas_jax.training.metric_logger import MetricLogger

State = Any  # SearchState or TrainState


def run(
    state: State,
    *,
    newest: Callable[[], State],
    batches: Callable[[int, int], Iterator[Any]],
    advance: Callable[[State, Any], tuple[State, dict]],
    recorder: MetricLogger,
    score: Callable[[State], Scores],
    max_rollbacks: int,
    entry: Callable[[int, State], None] = lambda step, state: None,
) -> State:
    """Steps from where the state is to where the batches end.

    Args:
      state: where to start.
      newest: restores the newest checkpoint, or makes a fresh state where there is none.
      batches: (start, rollbacks) -> the batches of the steps from `start` on; their order depends
        on the number of rollbacks, their number does not.
      advance: (state, batch) -> (state, terms), one step.
      recorder: notes each step and saves checkpoints.
      score: validation scores of a state.
      max_rollbacks: how often a run that diverged goes back to its newest checkpoint and on with
        batches in another order; 0 ends it at once.
      entry: notes what else there is to say of a state, whenever averages are written.

    Returns:
      The state after the last step.

    Raises:
      UserError: the loss diverged, the disk is full, a picture cannot be read.
      Stopped: a signal came; the state is saved at the step that it came in.
    """
    while True:
        start = step = int(state.step)
        try:
            for step, batch in enumerate(batches(start, recorder.rollbacks), start + 1):
                state, terms = advance(state, batch)
                recorder(step, terms)
                if recorder.should_log(step):
                    entry(step, state)
                recorder.checkpoint(step, state, lambda state=state: score(state))
                if (status := signals.requested()) is not None:
                    recorder.stop(step, state)
                    logging.info("stopped at step %d and saved: start again to go on", step)
                    raise signals.Stopped(status)
            return state
        except Diverged as error:
            if recorder.rollbacks >= max_rollbacks:
                raise UserError(_diverged(error, recorder.rollbacks)) from None
            state = newest()
            logging.warning(
                "the loss diverged (%s): back from step %d to %d, on with batches in another order",
                error, step, state.step,
            )  # fmt: skip
            recorder.roll_back(int(state.step))


def _diverged(error: Diverged, rollbacks: int) -> str:
    after = f" after {rollbacks} rollbacks" if rollbacks else ""
    return (
        f"the loss diverged{after}: {error}; the checkpoints before it are kept; lower the "
        "learning rate, set clip or, to go on with other batches, max_rollbacks, and start anew"
    )
