"""Removing rain from pictures of any size: pretrained weights, tiles, self-ensemble.

from manas_jax import Derainer
clean = Derainer.from_pretrained("rain100l")("rainy.jpg")
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from PIL import Image

from manas_jax import ops
from manas_jax.buckets import local_path
from manas_jax.errors import UserError
from manas_jax.inference import hub, image_files, pretrained
from manas_jax.inference.fold_batch_norm import fold, folded_network
from manas_jax.inference.program_cache import ProgramCache, geometric_sides
from manas_jax.inference.tiling import TileGrid
from manas_jax.models.network import Network
from manas_jax.ops.region import Region
from manas_jax.runtime import malloc, sharding
from manas_jax.space import STEM_EXPANSION
from manas_jax.workdir.weights import load_derived

POOL_CELL = 32
"""Pixels of `Network.pool_cell`, for windows of three such squares: best on validation pictures."""

TILES = (1024, 768, 512)
"""Pixels of the side of a tile, the largest that fits into memory: few, so that little compiles."""

_OVERLAP = 192  # pixels; beyond half of it surroundings change no pixel by more than a grey level
_STEP = 64  # pixels, of which tiles are shortened by multiples: few sizes, so that little compiles
_PROGRAMS = 8  # kept at a time for as many pictures at once
_GROWTH = 1.25  # of the sides of programs for several sizes
# Pixels that take as long as a compilation: on two cores of a CPU 3 s at 1.6 megapixels a second.
# Accelerators compile no faster, but run far faster: an estimate.
_CPU_COMPILATION, _COMPILATION = 5e6, 5e8
_SYMMETRIES = tuple((turns, flip) for flip in (False, True) for turns in range(4))

Pixels = TypeVar("Pixels", np.ndarray, Image.Image)

Program = Callable[[np.ndarray, np.ndarray], jax.Array]
"""Pictures (N, H, W, 3) in [0, 1] and the (2,) rows and columns that count -> restored."""


def multiple(network: Network) -> int:
    """What sides of pictures are mirrored up to, at the lower and the right edge."""
    return math.lcm(network.space.multiple, network.pool_cell or 1)


def fitting_tile(network: Network, device: jax.Device) -> int:
    """The largest of `TILES` for which half of a device's free memory is enough, or the smallest.

    The stem's expanded features are the widest of all; about four such arrays live at a time.
    """
    memory = device.memory_stats() or {}
    free = memory.get("bytes_limit") or psutil.virtual_memory().available
    space = network.space
    bytes_a_pixel = 4 * 4 * STEM_EXPANSION * space.channels[0] / space.patch**2
    fitting = (tile for tile in TILES if tile**2 * bytes_a_pixel <= free / 2)
    return next(fitting, TILES[-1])


class Derainer:
    """A trained network, ready for pictures.

    Attributes:
      network: the derived network; its channel gates look at windows, see `Network.pool_cell`.
      variables: its 'params' and 'batch_stats'.
      provenance: where the weights come from.
      tile: side in pixels of the tiles that larger pictures are cut into. Where there are several
        devices, a tile is as many times as high, and its height is split over them.
    """

    def __init__(
        self,
        network: Network,
        variables: Mapping[str, Any],
        provenance: Mapping[str, str] | None = None,
        tile: int | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Makes the network ready; compiles nothing yet.

        Args:
          network: a derived network.
          variables: its 'params' and 'batch_stats'.
          provenance: where they come from.
          tile: side in pixels of tiles, rounded up as the network needs; None for `fitting_tile`.
          devices: to compute on; None for all of this process.

        Raises:
          UserError: `tile` is too small.
        """
        self.network = network
        devices = list(devices or jax.local_devices())
        self._mesh = sharding.mesh_of(devices, height_shards=len(devices))
        self.variables = dict(variables)
        folded = fold(jax.device_get(self.variables))
        self._folded = jax.device_put(folded, sharding.replicated(self._mesh))
        self.provenance = dict(provenance or {})
        self._cell = multiple(network)
        tile = fitting_tile(network, devices[0]) if tile is None else tile
        self._overlap = -(-_OVERLAP // self._cell) * self._cell
        if tile <= 2 * self._overlap:
            raise UserError(f"tile = {tile}: give more than {2 * self._overlap} pixels")
        self.tile = -(-tile // self._cell) * self._cell
        self._cpu = devices[0].platform == "cpu"
        self._programs: dict[int, ProgramCache[Program]] = {}  # by the number of pictures at once

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        *,
        tile: int | None = None,
        pool_cell: int | None = POOL_CELL,
        devices: Sequence[jax.Device] | None = None,
        dtype: str | None = None,
    ) -> Derainer:
        """Opens weights that come with the package, or a weights file.

        Args:
          name: one of `list_pretrained()`, a file that `manas_jax.workdir.weights` wrote, a folder
            of `save_pretrained`, or `hf://OWNER/NAME` on the Hugging Face Hub.
          tile: side in pixels of the tiles that larger pictures are cut into; None for what fits
            into memory.
          pool_cell: see `Network.pool_cell`; None for the network just as it was trained, whose
            gates look at all of a picture or tile.
          devices: to compute on; None for all of this process.
          dtype: type of the computation, such as 'bfloat16'; None for float32.

        Raises:
          UserError: no such weights, a damaged file, or a supernet's weights.
        """
        variables, genotype, provenance = load_derived(pretrained.find(name))
        if pool_cell is not None:
            pool_cell = math.lcm(pool_cell, genotype.space.multiple)
        kernels = ops.default(train=False, dtype=dtype and jnp.dtype(dtype))
        network = Network(genotype.space, genotype, pool_cell=pool_cell, ops=kernels)
        return cls(network, variables, provenance, tile, devices)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes weights, genotype and model card into a folder, for `from_pretrained`.

        Raises:
          UserError: a file cannot be written.
        """
        hub.save(folder, self.variables, self.network.genotype, self.provenance)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Uploads weights, genotype and model card to the Hugging Face Hub.

        Args:
          repository: `OWNER/NAME`; created if there is none.
          private: whether a new repository is private.

        Returns:
          The web address of the commit.

        Raises:
          UserError: the extra `hub` or the right to write is missing, or there is no connection.
        """
        genotype = self.network.genotype
        return hub.push(repository, self.variables, genotype, self.provenance, private)

    @overload
    def __call__(self, picture: Pixels, *, self_ensemble: bool = False) -> Pixels: ...

    @overload
    def __call__(
        self, picture: str | os.PathLike, *, self_ensemble: bool = False
    ) -> Image.Image: ...

    def __call__(self, picture, *, self_ensemble=False):
        """Removes rain.

        Args:
          picture: (H, W, 3), or several of one size (N, H, W, 3), RGB; uint8, uint16, or floats in
            [0, 1]. Or a Pillow image, whose mode is kept (its alpha as it is). Or an image file: a
            path or a `file://` URL.
          self_ensemble: whether to average over the eight flips and turns of the picture: a little
            better, eight times slower.

        Returns:
          The same kind, size and type; of a file a Pillow image, see `image_files.to_pillow`.

        Raises:
          ValueError: another shape or type.
          UserError: the weights make NaN of it, or the file cannot be read.
        """
        if isinstance(picture, (str, os.PathLike)):
            file = image_files.read(local_path(picture))
            return image_files.to_pillow(file, self(file.frames[0], self_ensemble=self_ensemble))
        if isinstance(picture, Image.Image):
            return self._image(picture, self_ensemble)
        picture = np.asarray(picture)
        if picture.ndim not in (3, 4) or picture.shape[-1] != 3 or 0 in picture.shape:
            raise ValueError(f"give (H, W, 3) or (N, H, W, 3), not {picture.shape}")
        if picture.dtype not in (np.uint8, np.uint16) and picture.dtype.kind != "f":
            raise ValueError(f"give uint8, uint16 or floats in [0, 1], not {picture.dtype}")
        restored = np.empty_like(picture)
        stack, made = (x[None] if x.ndim == 3 else x for x in (picture, restored))
        height, width = stack.shape[1:3]
        # A CPU is no faster with several; elsewhere as many as are no larger than one tile may be.
        at_once = 1 if self._cpu else max(1, self.tile**2 // (height * width))
        for first in range(0, len(stack), at_once):
            group = slice(first, first + at_once)
            for rows, strip in self._strips(stack[group], self_ensemble):
                made[group, rows] = strip
        return restored

    def _image(self, image: Image.Image, self_ensemble: bool) -> Image.Image:
        restored = Image.fromarray(
            self(np.array(image.convert("RGB")), self_ensemble=self_ensemble)
        )
        if image.mode in ("RGBA", "LA"):
            restored.putalpha(image.getchannel("A"))
        return restored.convert(image.mode)

    def _strips(self, stack: np.ndarray, self_ensemble: bool) -> Iterator[tuple[slice, np.ndarray]]:
        """Finished rows of the pictures (N, H, W, 3), from top to bottom, in the pictures' type.

        Only a row of tiles is held in floats, so that large pictures fit into memory.
        """
        height, width = stack.shape[1:3]
        rows, columns = (-(-n // self._cell) * self._cell for n in (height, width))
        step = math.lcm(_STEP, self._unit)
        down = TileGrid.make(rows, self._tile_height(rows), self._overlap, self._cell, step)
        across = TileGrid.make(columns, self.tile, self._overlap, self._cell, step)
        run = self._ensemble if self_ensemble else self._run
        scale = 1 if stack.dtype.kind == "f" else np.iinfo(stack.dtype).max
        pending = np.zeros((len(stack), 0, width, 3), np.float32)
        for i, (top, share_down) in enumerate(zip(down.starts, down.blend_weights(), strict=True)):
            strip = np.zeros((len(stack), down.tile, across.length, 3), np.float32)
            for left, share in zip(across.starts, across.blend_weights(), strict=True):
                tile = _mirrored(stack, top, left, down.tile, across.tile)
                tile = run(np.divide(tile, np.float32(scale), dtype=np.float32))
                strip[:, :, left : left + across.tile] += share[:, None] * tile
            strip = share_down[:, None, None] * strip[:, :, :width]
            strip[:, : pending.shape[1]] += pending
            last = i + 1 == len(down.starts)
            done = min(height, top + down.tile if last else down.starts[i + 1])
            pending = strip[:, done - top :]
            yield slice(top, done), _quantized(strip[:, : done - top], stack.dtype)

    def _run(self, pictures: np.ndarray) -> np.ndarray:
        """(N, h, w, 3) float32, sides multiples of the cell, to the same."""
        count, height, width = pictures.shape[:3]
        if count not in self._programs:
            self._programs[count] = self._program_cache(count)
        (rows, columns), program = self._programs[count]((height, width))
        beyond = ((0, 0), (0, rows - height), (0, columns - width), (0, 0))
        restored = program(np.pad(pictures, beyond), np.array([height, width], np.int32))
        return np.asarray(restored)[:, :height, :width]

    def _program_cache(self, count: int) -> ProgramCache[Program]:
        """Programs for `count` pictures at once, by their rows and columns."""
        rows = geometric_sides(self.tile * self._mesh.devices.size, self._unit, _GROWTH)
        columns = geometric_sides(self.tile, self._cell, _GROWTH)
        price = _CPU_COMPILATION if self._cpu else _COMPILATION
        compile = functools.partial(self._compile, count)
        largest = rows[-1] * columns[-1] // count
        return ProgramCache(compile, (rows, columns), price / count, _PROGRAMS, largest)

    def _compile(self, count: int, size: tuple[int, int]) -> Program:
        """The network for `count` pictures of up to `size`."""
        logging.info("compiling for pictures of up to %d x %d pixels", *size)
        kernels = ops.default(train=False, dtype=self.network.ops.dtype)
        network = self.network.clone(ops=kernels)

        def restore(params, images, inside):
            apply = folded_network(network, Region(inside, size)).apply
            return jnp.clip(apply(params, images), 0, 1)

        # Jitted anew for each size, so that what was traced goes when the program does.
        options = dict(kernels.compiler_options)
        if "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", ""):
            options.pop("xla_backend_optimization_level", None)  # the user's own prevails
        jitted = jax.jit(restore, compiler_options=options or None)
        everywhere, where = sharding.replicated(self._mesh), self._sharding(size[0])
        images = jax.ShapeDtypeStruct((count, *size, 3), np.float32, sharding=where)
        inside = jax.ShapeDtypeStruct((2,), np.int32, sharding=everywhere)
        compiled = jitted.lower(self._folded, images, inside).compile()
        malloc.trim()

        def run(images: np.ndarray, inside: np.ndarray) -> jax.Array:
            placed = jax.device_put((images, inside), (where, everywhere))
            return compiled(self._folded, *placed)

        return run

    def _sharding(self, rows: int) -> jax.sharding.Sharding:
        """Splits the height of pictures over the devices, if that comes out even."""
        if rows % self._unit:
            return sharding.replicated(self._mesh)
        return sharding.batch_sharding(self._mesh, 4)

    @property
    def _unit(self) -> int:
        """Rows that can be split over the devices are a multiple of this."""
        return self._cell * self._mesh.devices.size

    def _tile_height(self, rows: int) -> int:
        """As high as all devices together can hold, and such that it can be split over them."""
        if rows <= self.tile:
            return self.tile
        height = min(self.tile * self._mesh.devices.size, rows // self._unit * self._unit)
        return height if height > 2 * self._overlap else self.tile

    def _ensemble(self, pictures: np.ndarray) -> np.ndarray:
        """The mean over the eight symmetries of the square."""

        def turned(turns: int, flip: bool) -> np.ndarray:
            seen = np.rot90(pictures[:, :, ::-1] if flip else pictures, turns, (1, 2))
            made = np.rot90(self._run(np.ascontiguousarray(seen)), -turns, (1, 2))
            return made[:, :, ::-1] if flip else made

        return sum(turned(*symmetry) for symmetry in _SYMMETRIES) / len(_SYMMETRIES)


def _mirrored(stack: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """A part of pictures (N, H, W, 3) that may end beyond them, where they are mirrored.

    For a part that starts where they start, or reaches beyond them by less than it overlaps them.
    """
    part = stack[:, top : top + height, left : left + width]
    beyond = ((0, 0), (0, height - part.shape[1]), (0, width - part.shape[2]), (0, 0))
    return np.pad(part, beyond, mode="symmetric") if part.shape[1:3] != (height, width) else part


def _quantized(restored: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats in [0, 1] in another type; integers rounded, halves upwards."""
    if np.isnan(restored).any():
        raise UserError("the network makes NaN of this picture: its weights have diverged")
    if dtype.kind == "f":
        return restored.astype(dtype)
    levels = np.clip(restored, 0, 1)
    levels *= np.iinfo(dtype).max
    levels += 0.5
    return levels.astype(dtype)  # cuts the fraction off
