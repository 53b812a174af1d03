"""The supernet with scanned columns is the same function with its columns' variables stacked."""

import jax
import numpy as np
import pytest

from manas_jax.models import network, variables
from manas_jax.space import SearchSpace, random_genotype

SPACE = SearchSpace(
    channels=(4, 8), branches=(1, 2), columns=(2, 3), stem_blocks=1, candidates=("none", "SE")
)


def _pairs(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    return zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)


@pytest.mark.parametrize("remat", [False, True])
def test_scan_equals_unrolled(remat):
    unrolled = network.Network(SPACE)
    scanned = network.Network(SPACE, scan=True, remat=remat)
    architecture = {k: 1e3 * v for k, v in network.init_architecture(SPACE, 0).items()}
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)

    def run(net):
        fresh = variables.init_variables(net, 0)
        return jax.jit(
            lambda v: net.apply(v, images, architecture, train=True, mutable=["batch_stats"])
        )(fresh)

    (expected, moved), (outputs, stacked) = run(unrolled), run(scanned)
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    for mine, wanted in _pairs(variables.unstack_columns(stacked, SPACE), moved):
        np.testing.assert_allclose(mine, wanted, atol=1e-5)


def test_stacking_is_undone_and_inherited():
    plain = variables.init_variables(network.Network(SPACE), 0)
    stacked = variables.init_variables(network.Network(SPACE, scan=True), 0)
    shapes = variables.variable_shapes(network.Network(SPACE, scan=True))
    assert all(mine.shape == wanted.shape for mine, wanted in _pairs(stacked, shapes))
    unstacked = variables.unstack_columns(stacked, SPACE)
    assert all(np.array_equal(mine, wanted) for mine, wanted in _pairs(unstacked, plain))

    derived = network.Network(SPACE, random_genotype(SPACE, 0))
    inherited = variables.inherit(unstacked, variables.variable_shapes(derived))
    kernel = inherited["params"]["cell1_transition"]["branch1_step0"]["conv"]["kernel"]
    assert np.array_equal(
        kernel, plain["params"]["cell1_transition"]["branch1_step0"]["conv"]["kernel"]
    )
