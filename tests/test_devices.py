"""One step on eight devices is one step on one: a batch's split changes no result.

JAX fixes its number of devices when it starts, so the comparison runs in a process of its own (this
file as a script). It prints for every case and part of the state the largest difference, relative
to the scale of that part. In float64: the finite difference amplifies float32's rounding, Adam's
first step turns the sign of a rounding error into a whole move. First order is in float32.
"""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

DEVICES = 8
CASES = ("search_first_order_float32", "search_finite_difference", "train")


@pytest.fixture(scope="module")
def differences():
    flags = os.environ.get("XLA_FLAGS", "")
    finished = subprocess.run(
        [sys.executable, __file__],
        env={
            **os.environ,
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={DEVICES}",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_step_on_eight_devices_equals_one(differences, case):
    assert differences[case]["devices"] == [1, DEVICES]
    parts = differences[case]["parts"]
    assert {"weights", "batch_stats"} <= parts.keys()
    assert max(parts.values()) < (1e-5 if "float32" in case else 1e-9), parts


def test_batch_that_does_not_come_out_even(differences):
    assert "scenes = 12 cannot be split over 8 devices: give 8 or 16" in differences["uneven"]
    assert "scenes = 3 cannot be split over 8 devices: give 8" in differences["few"]


def test_more_devices_than_there_are():
    from manas_jax import sharding
    from manas_jax.errors import UserError

    with pytest.raises(UserError, match=r"devices = 4096: this machine has \d+"):
        sharding.make_mesh(4096)


def _script():
    from conftest import narrow_config, scene_batch

    from manas_jax import build, objectives, search, sharding, state, train
    from manas_jax.errors import UserError
    from manas_jax.models.network import init_variables
    from manas_jax.space import random_genotype

    config = narrow_config(
        devices=0,
        search__scenes=DEVICES,
        train__ema=0.9,
        search__architecture_learning_rate=0.1,
        search__learning_rate=0.1,
        space__residual=False,
        space__patch=1,
        space__columns=(0,),
        space__candidates=("SE", "dil_conv_3x3_spatial"),
    )
    supernet = build.network(config)
    weights = build.loss_weights(config)
    batches = [scene_batch(scenes=DEVICES, seed=seed) for seed in (0, 1)]

    def search_step(hypergradient, mesh, dtype):
        optimizers = (
            build.search_weight_optimizer(config.search),
            build.architecture_optimizer(config.search),
        )
        step = search.make_step(
            supernet,
            *optimizers,
            hypergradient=hypergradient,
            weights=weights,
            complexity_model=objectives.ComplexityModel(supernet.space, 16, 16),
        )
        fresh = state.init_search(supernet, *optimizers, seed=0)
        return step(*_placed(mesh, dtype, fresh, *batches))[0]

    def train_step(mesh, dtype):
        network = build.network(config, random_genotype(supernet.space, 0))
        optimizer = build.train_optimizer(config.train)
        step = train.make_step(network, optimizer, weights=weights, ema=config.train.ema)
        fresh = state.init_train(init_variables(network, 0), optimizer, average=True)
        return step(*_placed(mesh, dtype, fresh, batches[0]))[0]

    def _placed(mesh, dtype, fresh, *batches):
        def cast(x):
            return np.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else x.dtype)

        fresh, batches = jax.tree.map(cast, (fresh, batches))
        return sharding.replicate(fresh, mesh), *(sharding.put_batch(b, mesh) for b in batches)

    def compare(run):
        meshes = [sharding.make_mesh(n) for n in (1, DEVICES)]
        one, many = (run(mesh) for mesh in meshes)
        assert all(len(x.sharding.device_set) == DEVICES for x in jax.tree.leaves(many))
        parts = {
            name: _difference(*(jax.tree.leaves(getattr(s, name)) for s in (one, many)))
            for name in vars(one)
        }
        return {"devices": [m.devices.size for m in meshes], "parts": parts}

    result = {
        "search_first_order_float32": compare(
            lambda mesh: search_step("first_order", mesh, np.float32)
        )
    }
    for key, scenes in (("uneven", 12), ("few", 3)):
        try:
            sharding.check_batch("scenes", scenes, sharding.make_mesh())
        except UserError as error:
            result[key] = str(error)
    with jax.enable_x64(True):
        result["search_finite_difference"] = compare(
            lambda mesh: search_step("finite_difference", mesh, np.float64)
        )
        result["train"] = compare(lambda mesh: train_step(mesh, np.float64))
    print(json.dumps(result))


def _difference(one, many):
    """Largest difference over the largest number; counters have to be equal."""
    pairs = [tuple(map(np.asarray, pair)) for pair in zip(one, many, strict=True)]
    floats = [pair for pair in pairs if pair[0].size and np.issubdtype(pair[0].dtype, np.floating)]
    assert all(np.array_equal(*pair) for pair in pairs if np.issubdtype(pair[0].dtype, np.integer))
    largest = max((np.max(np.abs(a)) for a, _ in floats), default=1.0)
    return float(max((np.max(np.abs(a - b)) for a, b in floats), default=0.0) / largest)


if __name__ == "__main__":
    _script()
