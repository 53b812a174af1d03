"""Placement of arrays: a mesh of devices, on which states are replicated and batches are sharded.

The mesh has two axes. The scenes of a batch are sharded over `data`, the height of the images over
`height`, for images too large for one device. The devices of a process are adjacent and an image
never spans processes: so each process loads whole images, and neighbouring rows are exchanged over
the fastest links.
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


def make_mesh(
    devices: int = 0, height_shards: int = 1, among: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over `devices` devices, all of them by default, the same number in every process.

    Args:
      devices: number of devices, in all processes together; 0 for all.
      height_shards: number of devices that the height of an image is sharded over.
      among: the devices there are; None for those that JAX finds.

    Raises:
      UserError: there are fewer devices, or the numbers do not divide each other.
    """
    found = jax.devices() if among is None else among
    processes = jax.process_count() if among is None else len({d.process_index for d in among})
    available = len(found)
    devices = devices or available
    if devices > available:
        machines = "this machine has" if processes == 1 else f"these {processes} processes have"
        raise UserError(f"devices = {devices}: {machines} {available}")
    local_devices = devices // processes
    if devices % processes or not local_devices:
        raise UserError(
            f"devices = {devices} cannot be shared by {processes} processes: "
            f"give a multiple of {processes}"
        )
    if local_devices % height_shards:
        divisors = [str(n) for n in range(1, local_devices + 1) if local_devices % n == 0]
        raise UserError(
            f"height_shards = {height_shards} does not divide the {local_devices} devices of a "
            f"process: give {' or '.join(divisors)}"
        )
    chosen = [
        device
        for process in range(processes)
        for device in [d for d in found if d.process_index == process][:local_devices]
    ]
    return mesh_of(chosen, height_shards)


def local_mesh(mesh: Mesh) -> Mesh:
    """The part of a mesh that belongs to this process."""
    return mesh_of(mesh.local_devices, mesh.shape[HEIGHT])


def mesh_of(devices: Sequence[jax.Device], height_shards: int) -> Mesh:
    """A mesh of these devices; each `height_shards` adjacent ones share an image."""
    return Mesh(
        np.reshape(devices, (-1, height_shards)), (DATA, HEIGHT), axis_types=(AxisType.Auto,) * 2
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, dimensions: int) -> NamedSharding:
    """Shards images (..., H, W, 3) of this number of dimensions over the first axis and height."""
    return NamedSharding(mesh, PartitionSpec(DATA, *[None] * (dimensions - 4), HEIGHT))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, sharded by scenes, from this process's part of a batch."""
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh, value.ndim), value)
        for name, value in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies a pytree, the same in every process, to every device."""
    where = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, where)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(where, np.asarray(x)), tree
    )


def replicated_shapes(tree: Any, mesh: Mesh) -> Any:
    """Shapes and types of a pytree that every device holds whole."""
    where = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def to_local_mesh(tree: Any, mesh: Mesh) -> Any:
    """Moves a pytree to a mesh of this process's devices.

    Its arrays are those of NumPy, or replicated over all processes.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(
        lambda x: jax.device_put(
            x.addressable_data(0) if isinstance(x, jax.Array) else x, replicated(mesh)
        ),
        tree,
    )


def check_batch(key: str, scenes: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Checks that every device gets the same number of scenes, in each microbatch.

    Raises:
      UserError: the number of scenes is not divisible; names numbers that are.
    """
    shares = mesh.shape[DATA] * microbatches
    if scenes % shares:
        below = scenes // shares * shares
        sizes = " or ".join(str(n) for n in (below, below + shares) if n)
        over = f"{mesh.devices.size} devices"
        over += f" ({HEIGHT} {mesh.shape[HEIGHT]})" if mesh.shape[HEIGHT] > 1 else ""
        over += f" in {microbatches} microbatches" if microbatches > 1 else ""
        raise UserError(f"{key} = {scenes} cannot be split over {over}: give {sizes}")


def check_height(key: str, pixels: int, mesh: Mesh) -> None:
    """Checks that the devices that share an image get the same number of rows.

    Raises:
      UserError: the height is not divisible.
    """
    shards = mesh.shape[HEIGHT]
    if pixels % shards:
        raise UserError(f"{key} = {pixels}: height_shards = {shards} needs a multiple of {shards}")


def check_group(key: str, size: int, mesh: Mesh) -> None:
    """Checks that the devices fall into groups of `size`, each of whole images; 0 is all of them.

    Raises:
      UserError: they do not; names sizes that would do.
    """
    devices, shards = mesh.devices.size, mesh.shape[HEIGHT]
    if size and (devices % size or size % shards):
        sizes = range(shards, devices + 1, shards)
        possible = ", ".join(str(n) for n in sizes if devices % n == 0)
        raise UserError(
            f"{key} = {size}: cannot divide {devices} devices"
            f"{f', of which {shards} share an image' if shards > 1 else ''}; "
            f"give one of {possible}, or 0 for all"
        )


def zeros(shapes: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Zeros with the shapes, dtypes and shardings of a batch of arrays or shape structs."""
    return {
        key: jax.jit(
            functools.partial(jnp.zeros, x.shape, x.dtype),
            out_shardings=getattr(x, "sharding", None),
        )()
        for key, x in shapes.items()
    }
