"""Folded networks make what the networks that they are made of make."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import moved_variables

from manas_jax.inference.fold_batch_norm import fold
from manas_jax.inference.jax_engine import folded_network
from manas_jax.models.network import Network
from manas_jax.ops.region import Region
from manas_jax.space import COLUMNS, Genotype, SearchSpace
from manas_jax.workdir.weights import flatten

SPACE = SearchSpace((4, 16), (1, 2), (1, 2), stem_blocks=2, widths=(0.25, 1))


def _genotype():
    """Both columns, and on the nine edges the nine candidates."""
    columns, names = itertools.cycle(COLUMNS), iter(SPACE.candidates)
    return Genotype(
        SPACE,
        [[next(columns) for _ in range(n)] for n in SPACE.columns],
        [[[next(names) for _ in range(SPACE.edges)] for _ in range(n)] for n in SPACE.branches],
        (((0.25,),), ((), (1.0, 0.25))),
    )


_made = functools.cache(moved_variables)


def _images(height=16, width=24):
    draw = np.random.default_rng(1)
    return jnp.asarray(draw.uniform(size=(2, height, width, 3)), jnp.float32)


@pytest.mark.parametrize("pool_side", [None, 8])
def test_folded_network_equals_the_network(pool_side):
    """Also in the corner of a larger image of which nothing else counts."""
    network = Network(SPACE, _genotype(), pool_side=pool_side)
    variables, images = _made(network), _images()
    wanted = jax.jit(network.apply)(variables, images)
    got = jax.jit(folded_network(network).apply)(fold(variables), images)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(got, wanted, atol=1e-4 * float(wanted.std()), rtol=1e-4)
    padded = jnp.pad(images, ((0, 0), (0, 8), (0, 16), (0, 0)))

    def within(params, images, size):
        region = Region(size, images.shape[1:3])
        return folded_network(network, region).apply(params, images)

    got = jax.jit(within)(fold(variables), padded, np.array([16, 24]))[:, :16, :24]
    np.testing.assert_allclose(got, wanted, atol=1e-4 * float(wanted.std()), rtol=1e-4)


def test_folded_network_cannot_be_trained():
    network = Network(SPACE, _genotype())
    with pytest.raises(ValueError, match="folded"):
        folded_network(network).apply(fold(_made(network)), _images(), train=True)


def test_nothing_is_left_of_batch_norm_but_biases():
    network = Network(SPACE, _genotype())
    variables = _made(network)
    folded = fold(variables)
    assert folded.keys() == {"params"}
    left = {name.rsplit("/", 1)[1] for name in flatten(folded) if "/norm" in name}
    assert left == {"bias"}
    norms = {name.rsplit("/", 1)[0] for name in flatten(variables["batch_stats"])}
    assert {f"params/{name}/bias" for name in norms} <= flatten(folded).keys()
    jax.tree.map(np.testing.assert_array_equal, fold(folded), folded)  # nothing to fold


def test_folding_leaves_the_variables_alone():
    network = Network(SPACE, _genotype())
    variables = _made(network)
    before = jax.tree.map(np.copy, variables)
    fold(variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_folded_network_in_bfloat16():
    network = Network(SPACE, _genotype())
    variables, images = _made(network), _images()
    wanted = jax.jit(network.apply)(variables, images)
    low = network.clone(ops=dataclasses.replace(network.ops, dtype=jnp.bfloat16))
    got = jax.jit(folded_network(low).apply)(fold(variables), images)
    assert got.dtype == images.dtype
    assert np.abs(got - wanted).mean() < 0.1 * wanted.std()
