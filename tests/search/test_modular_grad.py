"""Gradients block by block against those of the whole loss, in float64.

That they can be differentiated again is shown by the exact hypergradient in test_bilevel.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax.config import LossWeights
from manas_jax.models.network import Network, init_architecture
from manas_jax.models.variables import init_variables
from manas_jax.ops.cpu_train import CPU_TRAIN
from manas_jax.runtime import compilation, sharding
from manas_jax.runtime.compilation import ParallelCompiler
from manas_jax.search.modular_grad import scene_grad
from manas_jax.space import SearchSpace
from manas_jax.training import losses

SPACE = SearchSpace(
    channels=(4, 8),
    branches=(1, 2),
    columns=(1, 1),
    stem_blocks=1,
    attention_groups=1,
    candidates=("none", "skip_connect", "sep_conv_3x3", "CBAM"),
)
QUICK = {"xla_backend_optimization_level": 0}


def _problem(network):
    """Arguments of the gradient, the gradient block by block, and that of the whole loss."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(jnp.float64, init_variables(network, seed=0))
    batch = {
        "rainy": jnp.asarray(rng.random((2, 2, 16, 16, 3))),
        "clean": jnp.asarray(rng.random((2, 16, 16, 3))),
    }
    architecture = jax.tree.map(jnp.float64, init_architecture(network.space, 0, scale=1.0))
    args = variables["params"], architecture, variables["batch_stats"], jnp.int32(1), batch
    args = sharding.replicate(args, sharding.make_mesh(1))  # as a search has them
    loss_fn = losses.scene_loss_fn(network, LossWeights(), 0)
    whole = jax.jit(jax.grad(loss_fn, argnums=(0, 1), has_aux=True), compiler_options=QUICK)
    return args, scene_grad(network, LossWeights(), 0), whole


@pytest.fixture(scope="module")
def problem():
    with jax.enable_x64(True):
        yield _problem(Network(SPACE, ops=CPU_TRAIN))


def _assert_close(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_blocks_give_the_gradient_of_the_whole(problem, count_compilations):
    """Compiled ahead from shapes, after which no call compiles anything."""
    args, modular, whole = problem
    *others, batch = args
    shapes = {
        k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in batch.items()
    }
    with ParallelCompiler(batch["clean"].sharding) as compiler:
        modular(*others, shapes, run=compiler)
    with count_compilations() as compilations:
        got = modular(*args)
    assert not compilations
    _assert_close(got, whole(*args))


def test_equal_blocks_share_programs(problem, monkeypatch):
    monkeypatch.setattr(compilation, "_compile", lambda lowered: (0.0, 0))
    network = Network(SPACE, ops=CPU_TRAIN)
    args, modular, _ = problem
    with jax.enable_x64(True), ParallelCompiler(args[3].sharding) as compiler:
        modular(*args, run=compiler)
        compiled = len(compiler)
    # Forward and backward of each block, but the two attention modules of the finest scale are
    # equal; and probabilities, their gradient, preprocessing and the head.
    assert compiled == 2 * (len(network.blocks()) - 1) + 4


def test_scanned_columns_are_a_block():
    space = SearchSpace((4, 8), (2,), (2,), 1, attention_groups=1, candidates=("none", "SE"))
    with jax.enable_x64(True):
        args, modular, whole = _problem(Network(space, scan=True))
        _assert_close(modular(*args), whole(*args))
