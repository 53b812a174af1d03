"""Where arrays lie: one mesh with a data axis; states are replicated, batches are split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from manas_jax.errors import UserError

DATA = "data"


def make_mesh(devices: int = 0) -> Mesh:
    """A one-dimensional mesh over `devices` devices, all of them by default.

    Raises:
      UserError: there are fewer devices.
    """
    available = jax.devices()
    if devices > len(available):
        raise UserError(f"devices = {devices}: this machine has {len(available)}")
    chosen = available[: devices or len(available)]
    return jax.make_mesh((len(chosen),), (DATA,), axis_types=(AxisType.Auto,), devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays, split by scenes, of this process's share of a batch."""
    where = split(mesh)
    return {
        name: jax.make_array_from_process_local_data(where, value) for name, value in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a whole pytree on every device."""
    return jax.device_put(tree, replicated(mesh))


def check_batch(key: str, scenes: int, mesh: Mesh) -> None:
    """Checks that every device gets the same number of scenes.

    Raises:
      UserError: it does not come out even; names sizes that do.
    """
    devices = mesh.devices.size
    if scenes % devices:
        below = scenes // devices * devices
        sizes = " or ".join(str(n) for n in (below, below + devices) if n)
        raise UserError(f"{key} = {scenes} cannot be split over {devices} devices: give {sizes}")
