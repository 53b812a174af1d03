"""The gradient of one path against that of the whole supernet, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BUDGET_SPACE, scene_batch

from manas_jax import cost
from manas_jax.config import LossWeights
from manas_jax.models.network import Network, genotype_logits
from manas_jax.models.variables import inherit, init_variables, variable_shapes
from manas_jax.ops.cpu_train import CPU_TRAIN
from manas_jax.runtime import sharding
from manas_jax.search import single_path
from manas_jax.search.modular_grad import scene_grad
from manas_jax.space import Genotype

GENOTYPE = Genotype(
    BUDGET_SPACE,
    (("parallel",), ("fusion", "parallel", "identity")),
    ((("SE",),), (("skip_connect",), ("SE",))),
    (((0.25,),), ((), (0.5, 1.0), ())),
)


def _get(tree, keys):
    for key in keys:
        tree = tree[key.key]
    return tree


def test_path_gives_the_gradient_of_the_masked_supernet(float64):
    """Gradients of all parameters; statistics of the path move alike, others not at all."""
    network = Network(BUDGET_SPACE, ops=CPU_TRAIN)
    variables = jax.tree.map(jnp.float64, init_variables(network, 0))
    params, stats = variables["params"], variables["batch_stats"]
    batch = jax.tree.map(jnp.asarray, scene_batch(side=16, dtype=np.float64))
    logits = jax.tree.map(jnp.float64, genotype_logits(GENOTYPE))
    grad = scene_grad(network, LossWeights(), 0)
    args = params, logits, stats, jnp.int32(1), batch
    (wanted, _), (wanted_stats, wanted_metrics) = grad(*args)
    path = single_path.blocks(network, GENOTYPE)
    (got, architecture_grad), (got_stats, metrics) = grad(*args, path=path)

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)

    assert architecture_grad is None
    jax.tree.map(close, got, wanted)
    jax.tree.map(close, metrics, wanted_metrics)
    zero = sum(not np.any(leaf) for leaf in jax.tree.leaves(got))
    assert 0 < zero < len(jax.tree.leaves(got))

    shapes = variable_shapes(Network(BUDGET_SPACE, GENOTYPE))["batch_stats"]
    jax.tree.map(close, inherit(got_stats, shapes), inherit(wanted_stats, shapes))
    of_path = {}
    jax.tree_util.tree_map_with_path(
        lambda keys, s: of_path.update({keys: tuple(map(slice, s.shape))}), shapes
    )
    unmoved = 0
    for keys, before in jax.tree_util.tree_leaves_with_path(stats):
        outside = np.ones(before.shape, bool)
        attention = "attention" in keys[0].key  # mixes all candidates
        outside[... if attention else of_path.get(keys, slice(0))] = False
        assert np.array_equal(_get(got_stats, keys)[outside], before[outside])
        unmoved += outside.sum()
    assert unmoved > 0


def test_paths_share_programs(count_compilations):
    """After all choices were seen once, no other path compiles anything, nor does its update."""
    network = Network(BUDGET_SPACE)
    variables = sharding.replicate(init_variables(network, 0), sharding.make_mesh(1))
    grad = scene_grad(network, LossWeights(), 0)
    update = jax.jit(lambda params, grads: jax.tree.map(jnp.subtract, params, grads))

    def run(columns, widths):
        genotype = Genotype(BUDGET_SPACE, columns, GENOTYPE.attention, widths)
        args = variables["params"], genotype_logits(genotype), variables["batch_stats"]
        path = single_path.blocks(network, genotype)
        (grads, _), _ = grad(*args, jnp.int32(1), scene_batch(side=16), path=path)
        return update(variables["params"], grads)

    for width in BUDGET_SPACE.widths:
        run((("parallel",), ("parallel",) * 3), (((width,),), ((width, width),) * 3))
    run((("fusion",), ("fusion",) * 3), (((),), ((),) * 3))
    with count_compilations() as compilations:
        run(GENOTYPE.columns, GENOTYPE.widths)
    assert not compilations


@pytest.mark.parametrize("size", [(16, 16), (33, 20)])
def test_path_costs_its_network_and_the_other_candidates(size):
    others = sum(
        (
            cost.edge(BUDGET_SPACE, branch, name, *size)
            for cell, branch in BUDGET_SPACE.modules
            for name in BUDGET_SPACE.candidates
            if name not in GENOTYPE.attention[cell][branch]
        ),
        cost.derived(GENOTYPE, *size),
    )
    assert cost.path(GENOTYPE, *size) == others
