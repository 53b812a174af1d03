"""BatchNorm over parts of a batch."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax.ops.norm import BatchNorm


def _apply(norm, variables, x):
    """Outputs weighed to a number, the gradients by parameters and input, the new statistics."""

    def loss_fn(params, x):
        y, updates = norm.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        weights = jnp.linspace(-1, 1, x[0].size).reshape(x.shape[1:])
        return jnp.mean(jnp.sum(jnp.sin(weights * y), (1, 2, 3))), updates["batch_stats"]

    (loss, stats), grads = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(variables["params"], x)
    return loss, grads, stats


def _variables(channels=3):
    return {
        "params": {"scale": jnp.linspace(0.5, 1.5, channels), "bias": jnp.arange(float(channels))},
        "batch_stats": {"mean": jnp.zeros(channels), "var": jnp.ones(channels)},
    }


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups_are_normalised_as_batches_of_their_own(groups, float64):
    """Loss, gradients and statistics are the means of those of the parts alone."""
    x = jnp.asarray(np.random.default_rng(0).normal(1.0, 2.0, (6, 4, 5, 3)))
    variables = _variables()
    loss, (params_grad, x_grad), stats = _apply(BatchNorm(groups=groups), variables, x)
    parts = [_apply(BatchNorm(), variables, part) for part in jnp.split(x, groups)]
    expected = jax.tree.map(lambda *xs: sum(xs) / groups, *[(p[0], p[1][0], p[2]) for p in parts])
    found = loss, params_grad, stats
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)
    separate = jnp.concatenate([p[1][1] for p in parts]) / groups
    np.testing.assert_allclose(x_grad, separate, rtol=1e-9, atol=1e-12)


DEVICES = """
import jax, jax.numpy as jnp
from manas_jax.ops.norm import BatchNorm
from manas_jax.runtime import sharding
mesh = sharding.make_mesh()
x = jax.ShapeDtypeStruct((8, 4, 4, 3), jnp.float32, sharding=sharding.batch_sharding(mesh, 4))
for groups in (1, 2, 4):
    norm = BatchNorm(affine=False, groups=groups)
    stats = {"batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    program = jax.jit(lambda x: norm.apply(stats, x, True, mutable=["batch_stats"])[0])
    print(groups, program.lower(x).compile().as_text().count("all-reduce("))
"""


def test_a_group_on_one_device_waits_for_no_other():
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    made = subprocess.run(
        [sys.executable, "-c", DEVICES], capture_output=True, text=True, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    counts = dict(line.split() for line in made.stdout.splitlines())
    assert int(counts["1"]) > 0 and int(counts["2"]) > 0 and int(counts["4"]) == 0
