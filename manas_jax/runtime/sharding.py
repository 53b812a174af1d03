"""Where arrays lie: a mesh of devices, on which states are replicated and batches are split.

The mesh has two axes. The scenes of a batch are split over `data`, the height of the pictures over
`height`, for pictures too large for one device. Devices of one process stand next to each other and
a picture never leaves its process: so a process makes whole pictures, and neighbouring rows are
exchanged where that is fastest.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from manas_jax.errors import UserError

DATA, HEIGHT = "data", "height"


def make_mesh(devices: int = 0, height_shards: int = 1) -> Mesh:
    """A mesh over `devices` devices, all of them by default, the same number in every process.

    Args:
      devices: how many, in all processes together; 0 for all.
      height_shards: how many of them share the height of a picture.

    Raises:
      UserError: there are fewer devices, or the numbers do not come out even.
    """
    processes = jax.process_count()
    available = len(jax.devices())
    devices = devices or available
    if devices > available:
        machines = "this machine has" if processes == 1 else f"these {processes} processes have"
        raise UserError(f"devices = {devices}: {machines} {available}")
    share = devices // processes
    if devices % processes or not share:
        raise UserError(
            f"devices = {devices} cannot be shared by {processes} processes: "
            f"give a multiple of {processes}"
        )
    if share % height_shards:
        fitting = [str(n) for n in range(1, share + 1) if share % n == 0]
        raise UserError(
            f"height_shards = {height_shards} does not divide the {share} devices of a process: "
            f"give {' or '.join(fitting)}"
        )
    chosen = [
        device
        for process in range(processes)
        for device in [d for d in jax.devices() if d.process_index == process][:share]
    ]
    return mesh_of(chosen, height_shards)


def local(mesh: Mesh) -> Mesh:
    """The devices of this process alone."""
    return mesh_of(mesh.local_devices, mesh.shape[HEIGHT])


def mesh_of(devices: Sequence[jax.Device], height_shards: int) -> Mesh:
    """A mesh of these devices, as many neighbours as `height_shards` sharing a picture."""
    return Mesh(
        np.reshape(devices, (-1, height_shards)), (DATA, HEIGHT), axis_types=(AxisType.Auto,) * 2
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, dimensions: int) -> NamedSharding:
    """For pictures (..., H, W, 3) of so many dimensions: first axis and height are split."""
    return NamedSharding(mesh, PartitionSpec(DATA, *[None] * (dimensions - 4), HEIGHT))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays, split by scenes, of this process's share of a batch."""
    return {
        name: jax.make_array_from_process_local_data(split(mesh, value.ndim), value)
        for name, value in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a whole pytree, the same in every process, on every device."""
    where = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, where)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(where, np.asarray(x)), tree
    )


def to_local_mesh(tree: Any, mesh: Mesh) -> Any:
    """What is replicated over all processes, on the devices of a mesh that this one has alone."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), replicated(mesh)), tree)


def check_batch(key: str, scenes: int, mesh: Mesh, parts: int = 1) -> None:
    """Checks that every device gets the same number of scenes, in each part of a batch.

    Raises:
      UserError: it does not come out even; names sizes that do.
    """
    shares = mesh.shape[DATA] * parts
    if scenes % shares:
        below = scenes // shares * shares
        sizes = " or ".join(str(n) for n in (below, below + shares) if n)
        over = f"{mesh.devices.size} devices"
        over += f" ({HEIGHT} {mesh.shape[HEIGHT]})" if mesh.shape[HEIGHT] > 1 else ""
        over += f" in {parts} parts" if parts > 1 else ""
        raise UserError(f"{key} = {scenes} cannot be split over {over}: give {sizes}")


def check_height(key: str, pixels: int, mesh: Mesh) -> None:
    """Checks that the devices that share a picture get the same number of rows.

    Raises:
      UserError: they do not.
    """
    shards = mesh.shape[HEIGHT]
    if pixels % shards:
        raise UserError(f"{key} = {pixels}: height_shards = {shards} needs a multiple of {shards}")


def zeros(shapes: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Zeros in the shapes and places of a batch, which is given by shapes or arrays."""
    return {
        key: jax.jit(
            functools.partial(jnp.zeros, x.shape, x.dtype),
            out_shardings=getattr(x, "sharding", None),
        )()
        for key, x in shapes.items()
    }
