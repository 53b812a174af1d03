"""Optimizers and schedules."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from manas_jax.config import default
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError
from manas_jax.runtime import sharding
from manas_jax.training import build


def _options(**changes):
    options = default().train
    options.update(changes)
    return options


def test_learning_rate_is_constant_then_decays():
    options = _options(steps=100, learning_rate=0.5, final_learning_rate=0.1, decay=0.4)
    schedule = jax.vmap(build.weight_schedule(options))(jnp.arange(101))
    np.testing.assert_allclose(schedule[:61], 0.5, rtol=1e-6)
    assert np.all(np.diff(schedule[60:]) < 0)
    np.testing.assert_allclose(schedule[80], 0.3, rtol=1e-6)
    np.testing.assert_allclose(schedule[100], 0.1, rtol=1e-6)


def test_learning_rate_without_decay_stays():
    schedule = build.weight_schedule(_options(steps=100, learning_rate=0.5, decay=0.0))
    assert schedule(99) == 0.5


def test_learning_rate_decays_from_the_start_by_default():
    options = _options(steps=100, learning_rate=0.5)
    cosine = optax.cosine_decay_schedule(0.5, 100)
    for step in (0, 1, 50, 99, 100):
        np.testing.assert_allclose(build.weight_schedule(options)(step), cosine(step), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (1, 1, 8, 4)])
def test_muon_updates_kernels_by_orthogonal_matrices(shape, float64):
    """All singular values of an update, patches to channels, are about the learning rate."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1:])}
    grads = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), params)
    options = _options(optimizer="muon", steps=1000, learning_rate=1e-3)
    optimizer = build.train_optimizer(options)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    matrix = np.asarray(updates["kernel"]).reshape(-1, shape[-1])
    scale = 1e-3 * build.MUON_RATE * max(1, matrix.shape[1] / matrix.shape[0]) ** 0.5
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert np.all((0.6 * scale < singular) & (singular < 1.3 * scale))

    adam = optax.adamw(1e-3, weight_decay=0.0, nesterov=True)
    expected, _ = adam.update(grads, adam.init(params), params)
    np.testing.assert_allclose(updates["bias"], expected["bias"])


@pytest.mark.parametrize("group", [2, 3])
def test_groups_of_batch_norm_divide_the_devices(group, make_config):
    config = make_config(network__batch_norm_group=group)
    with pytest.raises(UserError, match=f"batch_norm_group = {group}: .* give one of 1, or 0"):
        build.check_sharding(config, "train", sharding.make_mesh(1))


def test_batch_norm_group_is_a_share_of_the_devices(make_config):
    config = make_config(network__batch_norm_group=1)
    assert build.network(config, mesh=sharding.make_mesh(1)).ops.norm().groups == 1
    assert build.network(config).ops.norm().groups == 1


def test_search_takes_sgd_or_an_optimizer_of_the_training():
    params = {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)}
    grads = jax.tree.map(lambda x: 0.5 * x, params)

    def step(optimizer):
        return optimizer.update(grads, optimizer.init(params), params)[0]

    options = default().search
    options.update(clip=0.0, weight_decay=0.1, learning_rate=0.5)
    for update in jax.tree.leaves(step(build.search_weight_optimizer(options))):
        np.testing.assert_allclose(update, -0.5 * (0.5 + 0.1), rtol=1e-6)
    options.optimizer = "muon"
    chosen, trained = (
        step(make(options)) for make in (build.search_weight_optimizer, build.train_optimizer)
    )
    jax.tree.map(np.testing.assert_array_equal, chosen, trained)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_a_path_trains_its_own_weights_alone(optimizer):
    """Others keep their values and momentum, and then go on as if that step had not been."""
    params = {
        name: {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)}
        for name in ("first", "second")
    }
    options = default().search
    options.update(optimizer=optimizer, weight_decay=0.1, clip=0.0)
    transform = build.skip_unused(build.search_weight_optimizer(options))
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), params)
    _, state = transform.update(grads, transform.init(params), params)
    first = {**grads, "second": jax.tree.map(jnp.zeros_like, grads["second"])}
    updates, after = transform.update(first, state, params)
    assert all(jnp.any(x != 0) for x in jax.tree.leaves(updates["first"]))
    assert all(jnp.all(x == 0) for x in jax.tree.leaves(updates["second"]))

    def momentum(state, name):
        trees = [optax.tree.get_all_with_path(state, key) for key in ("trace", "mu", "nu")]
        found = [tree[name] for _, tree in itertools.chain(*trees)]
        assert found
        return found

    jax.tree.map(
        np.testing.assert_array_equal, momentum(after, "second"), momentum(state, "second")
    )
    assert not jax.tree.all(
        jax.tree.map(np.array_equal, momentum(after, "first"), momentum(state, "first"))
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_second_order_is_finite_where_a_gradient_is_zero(optimizer):
    """As that of a hidden unit which is never active."""
    options = default().search
    options.update(optimizer=optimizer, hypergradient="exact", steps=10)
    optimizer = build.search_weight_optimizer(options)
    params = {"kernel": jnp.ones((3, 3, 2, 2)), "scale": jnp.ones(4)}
    grads = jax.tree.map(lambda x: x.at[..., 0].set(0.0), params)
    state = optimizer.init(params)
    (found,) = jax.vjp(lambda g: optimizer.update(g, state, params)[0], grads)[1](params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_second_order_changes_no_other_update():
    options = default().search
    options.update(optimizer="adam", steps=10)
    params = {"scale": jnp.ones(4)}
    grads = {"scale": jnp.asarray([1e-3, 1e-6, -2.0, 5.0])}
    updates = []
    for hypergradient in ("first_order", "exact"):
        options.hypergradient = hypergradient
        optimizer = build.search_weight_optimizer(options)
        updates.append(optimizer.update(grads, optimizer.init(params), params)[0]["scale"])
    np.testing.assert_allclose(*updates, rtol=1e-3)


def test_a_search_needs_scenes_for_both_roles(make_config, pictures):
    config = make_config(data__source="folder", data__root=str(pictures), search__crop=16)
    config.data.architecture_share = 0.0
    splits = load_splits(config.data, 16)
    mesh = sharding.make_mesh(1)
    build.check_batches(config, splits, build.Role.SEARCH_WEIGHTS, mesh)
    with pytest.raises(UserError, match=r"data\.architecture_share = 0 leaves a search no scenes"):
        build.check_batches(config, splits, build.Role.SEARCH_ARCHITECTURE, mesh)
