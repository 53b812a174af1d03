"""Folded networks make what the networks that they are made of make."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax.inference import fold_batch_norm
from manas_jax.models.network import Network, init_variables
from manas_jax.space import COLUMNS, Genotype, SearchSpace
from manas_jax.workdir.weights import flatten

SPACE = SearchSpace((4, 16), (1, 2), (1, 2), stem_blocks=2)


def _genotype():
    """Both columns, and on the nine edges the nine candidates."""
    columns, names = itertools.cycle(COLUMNS), iter(SPACE.candidates)
    return Genotype(
        SPACE,
        [[next(columns) for _ in range(n)] for n in SPACE.columns],
        [[[next(names) for _ in range(SPACE.edges)] for _ in range(n)] for n in SPACE.branches],
    )


@functools.cache
def _made(network):
    """Variables without special values, which keep most of what passes through above zero."""
    draw = np.random.default_rng(0)

    def shake(path, x):
        spread = {"var": (0.3, 2), "mean": (-0.5, 0.5), "bias": (0, 1)}
        drawn = draw.uniform(*spread[path[-1].key], x.shape) if path[-1].key in spread else x
        return (drawn + draw.normal(0, 0.02, x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(shake, init_variables(network, 0))


def _images(height=16, width=24):
    draw = np.random.default_rng(1)
    return jnp.asarray(draw.uniform(size=(2, height, width, 3)), jnp.float32)


@pytest.mark.parametrize("cpu", [False, True])
@pytest.mark.parametrize("pool_cell", [None, 8])
def test_folded_is_the_network(pool_cell, cpu):
    network = Network(SPACE, _genotype(), pool_cell=pool_cell)
    variables, images = _made(network), _images()
    wanted = jax.jit(network.apply)(variables, images)
    options = fold_batch_norm.CPU_OPTIONS if cpu else None
    run = jax.jit(
        functools.partial(fold_batch_norm.apply, network, cpu=cpu), compiler_options=options
    )
    got = run(fold_batch_norm.fold(variables), images)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(got, wanted, atol=1e-4 * float(wanted.std()), rtol=1e-4)


def test_nothing_is_left_of_batch_norm_but_biases():
    network = Network(SPACE, _genotype())
    variables = _made(network)
    folded = fold_batch_norm.fold(variables)
    assert folded.keys() == {"params"}
    left = {name.rsplit("/", 1)[1] for name in flatten(folded) if "/norm" in name}
    assert left == {"bias"}
    norms = {name.rsplit("/", 1)[0] for name in flatten(variables["batch_stats"])}
    assert {f"params/{name}/bias" for name in norms} <= flatten(folded).keys()
    jax.tree.map(
        np.testing.assert_array_equal, fold_batch_norm.fold(folded), folded
    )  # nothing to fold


def test_folding_leaves_the_variables_alone():
    network = Network(SPACE, _genotype())
    variables = _made(network)
    before = jax.tree.map(np.copy, variables)
    fold_batch_norm.fold(variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_computed_in_bfloat16():
    network = Network(SPACE, _genotype(), dtype=jnp.bfloat16)
    variables, images = _made(network), _images()
    wanted = jax.jit(network.clone(dtype=None).apply)(variables, images)
    for cpu in (False, True):
        got = jax.jit(functools.partial(fold_batch_norm.apply, network, cpu=cpu))(
            fold_batch_norm.fold(variables), images
        )
        assert got.dtype == images.dtype
        assert np.abs(got - wanted).mean() < 0.1 * wanted.std()


def test_the_form_for_cpu_is_another():
    """Its kernels are wide and its sums kept; elsewhere, and in exports, neither would serve."""
    network = Network(SPACE, _genotype())
    folded, images = fold_batch_norm.fold(_made(network)), _images()
    plain, cpu = (
        jax.jit(functools.partial(fold_batch_norm.apply, network, cpu=cpu))
        .lower(folded, images)
        .as_text()
        for cpu in (False, True)
    )
    assert "rsqrt" not in plain
    assert "optimization_barrier" in cpu and "optimization_barrier" not in plain
    assert "7x2x32x16xf32" in cpu and "7x2x32x16xf32" not in plain  # CBAM's, of 7x7x2x1


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about the compiler for CPU")
def test_barriers_reach_the_compiled_program():
    def twice(x):
        y = jax.lax.optimization_barrier(x + 1)
        return y * 2, y * 3

    compiled = (
        jax.jit(twice, compiler_options=fold_batch_norm.CPU_OPTIONS).lower(jnp.ones(1000)).compile()
    )
    assert "opt-barrier" in compiled.as_text()
