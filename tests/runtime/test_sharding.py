"""Meshes and batches that are not divisible: one line that names sizes that are.

That sharding changes no result is shown by tests/integration/test_processes.py.
"""

import types

import numpy as np
import pytest

from manas_jax.errors import UserError
from manas_jax.runtime import sharding


def _mesh(data, height=1):
    return types.SimpleNamespace(
        shape={"data": data, "height": height}, devices=np.zeros((data, height))
    )


@pytest.mark.parametrize(
    ("scenes", "mesh", "microbatches", "message"),
    [
        (12, _mesh(8), 1, "scenes = 12 cannot be split over 8 devices: give 8 or 16"),
        (3, _mesh(8), 1, "scenes = 3 cannot be split over 8 devices: give 8$"),
        (8, _mesh(4), 3, "scenes = 8 cannot be split over 4 devices in 3 microbatches: give 12$"),
        (6, _mesh(4, 2), 1, r"scenes = 6 cannot be split over 8 devices \(height 2\): give 4 or 8"),
    ],
)
def test_batch_that_is_not_divisible(scenes, mesh, microbatches, message):
    with pytest.raises(UserError, match=message):
        sharding.check_batch("scenes", scenes, mesh, microbatches)


def test_divisible_batches():
    sharding.check_batch("scenes", 8, _mesh(4, 2), 2)
    sharding.check_height("crop", 64, _mesh(1, 8))


def test_crop_that_is_not_divisible():
    with pytest.raises(UserError, match="crop = 60: height_shards = 8 needs a multiple of 8"):
        sharding.check_height("crop", 60, _mesh(1, 8))


def test_more_devices_than_available():
    with pytest.raises(UserError, match=r"devices = 4096: this machine has \d+"):
        sharding.make_mesh(4096)


def test_to_local_mesh_moves_replicated_and_host_arrays(monkeypatch):
    mesh = sharding.make_mesh(1)
    tree = {"replicated": sharding.replicate(np.arange(3), mesh), "host": np.ones(2)}
    monkeypatch.setattr(sharding.jax, "process_count", lambda: 2)
    moved = sharding.to_local_mesh(tree, mesh)
    for name, array in tree.items():
        np.testing.assert_array_equal(moved[name], array)
        assert moved[name].sharding == sharding.replicated(mesh)


@pytest.mark.parametrize(
    ("devices", "height_shards", "processes", "message"),
    [
        (0, 3, 1, "height_shards = 3 does not divide the 4 devices of a process: give 1 or 2 or 4"),
        (3, 1, 2, "devices = 3 cannot be shared by 2 processes: give a multiple of 2"),
        (8, 1, 2, "devices = 8: these 2 processes have 4"),
        (0, 4, 2, "height_shards = 4 does not divide the 2 devices of a process: give 1 or 2"),
    ],
)
def test_meshes_that_are_not_divisible(monkeypatch, devices, height_shards, processes, message):
    fakes = [types.SimpleNamespace(process_index=i * processes // 4) for i in range(4)]
    monkeypatch.setattr(sharding.jax, "devices", lambda: fakes)
    monkeypatch.setattr(sharding.jax, "process_count", lambda: processes)
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(devices, height_shards)
