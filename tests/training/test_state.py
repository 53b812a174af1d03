"""Fresh optimizer states."""

import jax
import numpy as np
import optax
import pytest

from manas_jax.config import default
from manas_jax.training import build
from manas_jax.training.state import init_optimizer


def _paper(make, stage):
    config = default()
    config[stage].clip = 1.0
    return make(config[stage])


OPTIMIZERS = {
    "weights": lambda: _paper(build.search_weight_optimizer, "search"),
    "architecture": lambda: _paper(build.architecture_optimizer, "search"),
    "training": lambda: _paper(build.train_optimizer, "train"),
    "ones": lambda: optax.adagrad(0.1),
    "factors": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "computed": lambda: optax.GradientTransformation(
        lambda p: jax.tree.map(lambda x: x * 2, p), lambda g, s, p=None: (g, s)
    ),
    "the parameters": lambda: optax.GradientTransformation(lambda p: p, None),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("x64", [False, True])
def test_state_is_the_optimizers_own(make, x64):
    with jax.enable_x64(x64):
        draw = np.random.default_rng(0)
        parameters = {
            "kernel": draw.random((2, 3)).astype(float if x64 else np.float32),
            "bias": np.zeros(3, np.float32),
            "scalar": np.ones((), np.float32),
        }
        optimizer = make()
        ours, wanted = init_optimizer(optimizer, parameters), optimizer.init(parameters)
        assert jax.tree.structure(ours) == jax.tree.structure(wanted)
        for a, b in zip(*map(jax.tree.leaves, (ours, wanted)), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            np.testing.assert_array_equal(a, b)


def test_constants_stay_on_the_host():
    parameters = {"a": np.ones((5, 7, 11), np.float32), "b": np.ones(13, np.float32)}
    state = init_optimizer(optax.sgd(0.1, momentum=0.9), parameters)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
