"""Gradient accumulation: parts of a batch, their mean, and what is carried from part to part."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax.search.step import SceneGrads
from manas_jax.training.accumulation import accumulate, microbatch_shapes


def _batch(scenes=6):
    return {
        "rainy": np.arange(scenes * 2.0).reshape(scenes, 2),
        "clean": np.arange(float(scenes)),
    }


def _on(part, before):
    """A gradient linear in the scenes, and a count that is carried."""
    count = 0 if before is None else before["count"]
    return {"gradient": part["rainy"].mean(0) + part["clean"].mean(), "count": count + 1}


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_mean_of_the_parts_is_that_of_the_batch(parts):
    made = accumulate(_on, _batch(), parts, carry="count")
    np.testing.assert_allclose(made["gradient"], _on(_batch(), None)["gradient"], rtol=1e-6)
    assert made["count"] == parts


def test_every_scene_is_in_one_part():
    seen = []
    accumulate(lambda part, _: seen.append(np.asarray(part["clean"])) or part, _batch(), 3)
    assert sorted(np.concatenate(seen)) == list(range(6))
    assert [len(part) for part in seen] == [2, 2, 2]


def test_carried_field_of_a_tuple():
    def on(part, before):
        stats = part["clean"].sum() + (before.batch_stats if before else 0)
        return SceneGrads(part["clean"].mean(), part["clean"].sum(), stats, {"loss": 1.0})

    made = accumulate(on, _batch(), 2, carry="batch_stats")
    assert (made.params, made.architecture, made.batch_stats) == (2.5, 7.5, 15.0)
    assert made.metrics == {"loss": 1.0}


def test_carry_may_be_handed_on_unchanged():
    """A path through a supernet leaves the statistics of the other blocks as they are."""
    stats = jnp.ones(3)

    def on(part, before):
        return {"gradient": jnp.asarray(part["clean"].mean()), "stats": stats}

    made = accumulate(on, _batch(), 3, carry="stats")
    assert made["gradient"] == 2.5
    np.testing.assert_array_equal(stats, made["stats"])


def test_shapes_of_a_part():
    shapes = microbatch_shapes(jax.device_put(_batch()), 3)
    assert {k: v.shape for k, v in shapes.items()} == {"rainy": (2, 2), "clean": (2,)}


STEPS = """
import json, runpy, sys
import jax, numpy as np
sys.path.insert(0, "tests")
from conftest import narrow_config, scene_batch
from manas_jax.runtime import sharding
from manas_jax.search.step import SearchStep
from manas_jax.models.unet import UNet
from manas_jax.training import build, feature_loss, losses, state
from manas_jax.training.step import TrainStep
from manas_jax.models.variables import init_variables
from manas_jax.space import random_genotype

config = narrow_config(search__scenes=8, search__crop=8, objectives__feature=1.0)
network = build.network(config)
optimizers = (build.search_weight_optimizer(config.search),
              build.architecture_optimizer(config.search))
weights = build.loss_weights(config)
derived = build.network(config, random_genotype(network.space, 0))
adam = build.train_optimizer(config.train)
unet = UNet(2, (8, 16))
params = unet.init(jax.random.key(0), np.zeros((1, 8, 8, 3)))["params"]
feature_fn = feature_loss.feature_fn(unet, jax.device_get(params))
made = {}
for devices in (1, 4):
    mesh = sharding.make_mesh(devices)
    batch = sharding.shard_batch(scene_batch(scenes=8), mesh)
    for hypergradient in ("exact",):
        step = SearchStep(
            network, *optimizers, hypergradient=hypergradient, devices=devices,
            loss_weights=weights, microbatches=2,
            complexity_model=losses.ComplexityModel(network.space, 16, 16))
        fresh = sharding.replicate(state.init_search(network, *optimizers, seed=0), mesh)
        step.compile(fresh, build.batch_shapes(config, config.search, mesh))
        made[hypergradient, devices] = step(fresh, batch, batch)[1]
    step = TrainStep(derived, adam, loss_weights=weights, microbatches=2, feature_fn=feature_fn)
    fresh = sharding.replicate(
        state.init_train(init_variables(derived, 0), adam, ema=False), mesh)
    step.compile(fresh, build.batch_shapes(config, config.search, mesh))
    made["train", devices] = step(fresh, batch)[1]
print(json.dumps({f"{name} {devices}": {k: float(v) for k, v in terms.items()}
                  for (name, devices), terms in made.items()}))
"""


@pytest.mark.slow
def test_steps_in_parts_on_several_devices():
    """Compiled ahead, they take the parts as they come, and give what one device gives."""
    flags = os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, "-c", STEPS],
        env={
            **os.environ,
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=4",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    for name in ("exact", "train"):
        one, four = made[f"{name} 1"], made[f"{name} 4"]
        assert one.keys() == four.keys()
        np.testing.assert_allclose(list(one.values()), list(four.values()), rtol=1e-4)
