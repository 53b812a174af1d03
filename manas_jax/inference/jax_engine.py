"""The network run by JAX: compiled for a few sizes, its height split over all local devices."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from manas_jax import ops
from manas_jax.inference.fold_batch_norm import fold
from manas_jax.inference.program_cache import ProgramCache, geometric_sides
from manas_jax.inference.tiling import multiple
from manas_jax.models.network import Network
from manas_jax.ops.norm import FoldedNorm
from manas_jax.ops.region import Region
from manas_jax.runtime import compilation, malloc, sharding
from manas_jax.space import Genotype

_PROGRAMS = 8  # kept at a time for as many pictures at once
_GROWTH = 1.25  # of the sides of programs for several sizes
# Pixels that take as long as a compilation: on two cores of a CPU 3 s at 1.6 megapixels a second.
# Accelerators compile no faster, but run far faster: an estimate.
_CPU_COMPILATION, _COMPILATION = 5e6, 5e8

Program = Callable[[np.ndarray, np.ndarray], jax.Array]
"""Pictures (N, H, W, 3) in [0, 1] and the (2,) rows and columns that count -> restored."""


def free_memory(device: jax.Device) -> int:
    """Bytes of memory of a device, those that are free of a CPU."""
    memory = device.memory_stats() or {}
    return memory.get("bytes_limit") or psutil.virtual_memory().available


def folded_network(network: Network, region: Region | None = None) -> Network:
    """The derived network that takes the variables of `fold`.

    Args:
      network: a derived network.
      region: the part of the images that counts; None for all.
    """
    norm = functools.partial(FoldedNorm, region=region)
    return network.clone(ops=dataclasses.replace(network.ops, norm=norm, region=region))


class JaxEngine:
    """An `Engine` that compiles for the sizes of pictures as they come."""

    def __init__(
        self,
        genotype: Genotype,
        variables: Mapping[str, Any],
        pool_side: int | None,
        tile: int,
        devices: Sequence[jax.Device],
        dtype: str | None = None,
    ):
        """Compiles nothing yet.

        Args:
          genotype: of a derived network.
          variables: its 'params' and 'batch_stats'.
          pool_side: see `Network.pool_side`.
          tile: pixels of the largest width, and of the largest height for each device.
          devices: to compute on.
          dtype: type of the computation; None for float32.
        """
        if jax.config.jax_compilation_cache_dir == os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            compilation.use_cache()  # else the program that uses this one has chosen a folder
        self.devices, self.platform = len(devices), devices[0].platform
        kernels = ops.default(dtype and jnp.dtype(dtype), self.platform)
        self._network = Network(genotype.space, genotype, kernels, pool_side=pool_side)
        self._mesh = sharding.mesh_of(devices, height_shards=len(devices))
        folded = fold(jax.device_get(variables))
        self._folded = jax.device_put(folded, sharding.replicated(self._mesh))
        self._multiple, self._tile = multiple(genotype.space, pool_side), tile
        self._programs: dict[int, ProgramCache[Program]] = {}  # by the number of pictures at once

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) float32 in [0, 1], sides multiples of `multiple`, to the same, restored."""
        count, height, width = pictures.shape[:3]
        if count not in self._programs:
            self._programs[count] = self._program_cache(count)
        (rows, columns), program = self._programs[count]((height, width))
        beyond = ((0, 0), (0, rows - height), (0, columns - width), (0, 0))
        restored = program(np.pad(pictures, beyond), np.array([height, width], np.int32))
        return np.asarray(restored)[:, :height, :width]

    def _program_cache(self, count: int) -> ProgramCache[Program]:
        """Programs for `count` pictures at once, by their rows and columns."""
        rows = geometric_sides(self._tile * self.devices, self._multiple * self.devices, _GROWTH)
        columns = geometric_sides(self._tile, self._multiple, _GROWTH)
        price = _CPU_COMPILATION if self.platform == "cpu" else _COMPILATION
        compile = functools.partial(self._compile, count)
        largest = rows[-1] * columns[-1] // count
        return ProgramCache(compile, (rows, columns), price / count, _PROGRAMS, largest)

    def _compile(self, count: int, size: tuple[int, int]) -> Program:
        """The network for `count` pictures of up to `size`."""
        logging.info("compiling for pictures of up to %d x %d pixels", *size)

        def restore(params, images, inside):
            apply = folded_network(self._network, Region(inside, size)).apply
            return jnp.clip(apply(params, images), 0, 1)

        # Jitted anew for each size, so that what was traced goes when the program does.
        everywhere, where = sharding.replicated(self._mesh), self._sharding(size[0])
        images = jax.ShapeDtypeStruct((count, *size, 3), np.float32, sharding=where)
        inside = jax.ShapeDtypeStruct((2,), np.int32, sharding=everywhere)
        compiled = jax.jit(restore).lower(self._folded, images, inside).compile()
        malloc.trim()

        def run(images: np.ndarray, inside: np.ndarray) -> jax.Array:
            placed = jax.device_put((images, inside), (where, everywhere))
            return compiled(self._folded, *placed)

        return run

    def _sharding(self, rows: int) -> jax.sharding.Sharding:
        """Splits the height of pictures over the devices, if that comes out even."""
        if rows % (self._multiple * self.devices):
            return sharding.replicated(self._mesh)
        return sharding.batch_sharding(self._mesh, 4)
