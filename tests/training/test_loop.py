"""The loop that search and training share."""

import types

import pytest

from manas_jax.errors import Diverged
from manas_jax.training import loop


def test_divergence_tells_the_steps_done():
    class Logger:
        rollbacks = 0

        def __call__(self, step, metrics):
            if step == 5:
                raise Diverged("mse is nan at step 4")

        def should_log(self, step):
            return False

        def checkpoint(self, step, state, score_fn):
            pass

    state = types.SimpleNamespace(step=2)
    with pytest.raises(Diverged, match="the loss diverged: mse is nan at step 4; ") as caught:
        loop.run(
            state,
            restore_or_init=None,
            batches=lambda start, rollbacks: iter(range(10)),
            step_fn=lambda state, batch: (state, {}),
            logger=Logger(),
            eval_fn=None,
            max_rollbacks=0,
        )
    assert caught.value.steps == 5
