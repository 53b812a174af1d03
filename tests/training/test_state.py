"""Fresh states."""

import jax
import numpy as np
import optax
import pytest

from manas_jax.config import default
from manas_jax.training import build
from manas_jax.training.state import init_train

VARIABLES = {
    "params": {
        "kernel": np.random.default_rng(0).random((2, 3), np.float32),
        "bias": np.zeros(3, np.float32),
        "scalar": np.ones((), np.float32),
    },
    "batch_stats": {"mean": np.zeros(3, np.float32)},
}
OPTIMIZERS = {
    "paper": lambda: build.train_optimizer(default().train),
    "ones": lambda: optax.adagrad(0.1),
    "parameters": lambda: optax.contrib.schedule_free_sgd(0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_train_state(make):
    optimizer = make()
    state = init_train(VARIABLES, optimizer, ema=True)
    wanted = optimizer.init(VARIABLES["params"])
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, wanted)
    jax.tree.map(np.testing.assert_array_equal, state.variables, VARIABLES)
    assert state.ema["params"]["kernel"] is not state.params["kernel"]  # steps donate both
    assert init_train(VARIABLES, optimizer, ema=False).ema is None
