"""Gradients part by part against those of the whole objective, in float64.

That they can be derived again is shown by the exact hypergradient in test_bilevel.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax.config import LossWeights
from manas_jax.models.network import Network, init_architecture, init_variables
from manas_jax.runtime import compilation
from manas_jax.search import modular_grad
from manas_jax.space import SearchSpace
from manas_jax.training import losses

SPACE = SearchSpace(
    channels=(4, 8),
    branches=(1, 2),
    columns=(1, 1),
    stem_blocks=1,
    candidates=("none", "skip_connect", "sep_conv_3x3", "CBAM"),
)
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def problem():
    with jax.enable_x64(True):
        network, draw = Network(SPACE), np.random.default_rng(0)
        variables = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), init_variables(network, seed=0)
        )
        architecture = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), init_architecture(SPACE, 0, scale=1.0)
        )
        batch = {
            "rainy": jnp.asarray(draw.random((2, 2, 16, 16, 3))),
            "clean": jnp.asarray(draw.random((2, 16, 16, 3))),
        }
        surroundings = variables["batch_stats"], jnp.int32(1), batch
        parts = modular_grad.scene_gradients(network, LossWeights(), 0).evaluate
        objective = losses.scene_objective(network, LossWeights(), 0)
        whole = jax.grad(objective, argnums=(0, 1), has_aux=True)
        yield variables["params"], architecture, surroundings, parts, whole


def _assert_close(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_parts_give_the_gradient_of_the_whole(problem):
    parameters, architecture, surroundings, parts, whole = problem
    wanted = jax.jit(whole, compiler_options=QUICK)(parameters, architecture, *surroundings)
    _assert_close(parts(parameters, architecture, *surroundings), wanted)


def test_like_parts_share_a_program(problem, monkeypatch):
    begun = []
    monkeypatch.setattr(
        modular_grad.Programs,
        "begin",
        lambda self, key, function, static, *args: begun.append((function, static)),
    )
    monkeypatch.setattr(
        modular_grad.Programs,
        "__call__",
        lambda self, key, function, static, *args: jax.eval_shape(
            lambda *args: function(static, *args), *args
        ),
    )
    parameters, architecture, surroundings, *_ = problem
    parts = modular_grad.scene_gradients(Network(SPACE), LossWeights(), 0).evaluate
    parts(parameters, architecture, *surroundings)
    assert len(begun) == len(Network(SPACE).parts())
    # The attention modules of the finest scale are alike; the columns have one and two branches.
    assert len(set(begun)) == len(begun) - 1


def test_what_is_compiled_ahead_is_all_there_is(problem):
    """From shapes, without running anything; and no number is copied to be rounded to its type."""
    parameters, architecture, (stats, step, batch), _, whole = problem
    ours = modular_grad.scene_gradients(Network(SPACE), LossWeights(), 0)
    shapes = {
        key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for key, x in batch.items()
    }
    begun = []

    def begin(pool, ahead, args):
        begun.append(ahead.function.lower(*args).as_text())
        return original(pool, ahead, args)

    original = compilation._begin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "_begin", begin)
        ours.compile(parameters, architecture, stats, step, shapes)
        programs = len(begun)
        got = ours.evaluate(parameters, architecture, stats, step, batch)
    assert len(begun) == programs > len(Network(SPACE).parts())
    assert not any("reduce_precision" in text for text in begun)
    wanted = jax.jit(whole, compiler_options=QUICK)(parameters, architecture, stats, step, batch)
    _assert_close(got, wanted)


def test_columns_that_are_scanned_are_a_part():
    space = SearchSpace((4, 8), (2,), (2,), stem_blocks=1, candidates=("none", "SE"))
    network, draw = Network(space, scan=True), np.random.default_rng(0)
    with jax.enable_x64(True):
        variables = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), init_variables(network, seed=0)
        )
        batch = {
            "rainy": jnp.asarray(draw.random((1, 2, 8, 8, 3))),
            "clean": jnp.asarray(draw.random((1, 8, 8, 3))),
        }
        architecture = jax.tree.map(jnp.float64, init_architecture(space, 0, scale=1.0))
        args = (variables["params"], architecture, variables["batch_stats"], jnp.int32(1), batch)
        parts = modular_grad.scene_gradients(network, LossWeights(), 0).evaluate
        objective = losses.scene_objective(network, LossWeights(), 0)
        whole = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True), compiler_options=QUICK)
        _assert_close(parts(*args), whole(*args))
