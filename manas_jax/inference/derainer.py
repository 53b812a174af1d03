"""Removing rain from pictures of any size: pretrained weights, tiles, self-ensemble.

from manas_jax import Derainer
clean = Derainer.from_pretrained("rain100l")("rainy.jpg")
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import numpy as np
import psutil
from PIL import Image

from manas_jax.buckets import local_path
from manas_jax.errors import UserError, reading
from manas_jax.inference import hub, image_files, pretrained
from manas_jax.inference.image_files.pixels import Page, luma, rgb, with_rgb
from manas_jax.inference.tiling import TileGrid, multiple
from manas_jax.registry import registered
from manas_jax.runtime.devices import find, has_accelerator
from manas_jax.space import CANDIDATES, STEM_EXPANSION, Genotype, SearchSpace
from manas_jax.workdir.weights import flatten, load_derived, mismatch

if TYPE_CHECKING:
    import jax

POOL_SIDE = 32
"""Pixels of `Network.pool_side`, for windows of three such squares: best on validation pictures."""

TILES = (1536, 1024, 768, 512)
"""Pixels of the side of a tile, the largest that fits into memory: few, so that little compiles."""

ENGINES = ("onnx", "jax")
"""What computes: ONNX Runtime on the CPU, or JAX on any device."""

_OVERLAP = 192  # pixels; beyond half of it surroundings change no pixel by more than a grey level
_BEYOND = 0.25  # what floats may be beyond [0, 1], as after resizing with a sharp filter
_STEP = 64  # pixels, of which tiles are shortened by multiples: few sizes, so that little compiles
_SYMMETRIES = tuple((turns, flip) for flip in (False, True) for turns in range(4))

Pixels = TypeVar("Pixels", np.ndarray, Image.Image)


class Engine(Protocol):
    """Runs the network.

    Attributes:
      devices: number of devices that the height of pictures is split over.
      platform: 'cpu', 'gpu' or 'tpu'.
    """

    devices: int
    platform: str

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) float32 in [0, 1], sides multiples of `multiple`, to the same, restored."""


def default_engine(genotype: Genotype) -> str:
    """'jax' where JAX has an accelerator or a candidate has no form in ONNX, else 'onnx'."""
    own = set(genotype.picks["attention"]) - set(CANDIDATES)
    has_form = all(registered(name).onnx for name in own)
    return "onnx" if has_form and not has_accelerator() else "jax"


def fitting_tile(space: SearchSpace, free: int) -> int:
    """The largest of `TILES` for which half of `free` bytes of memory is enough, or the smallest.

    The stem's expanded features are the widest of all; about four such arrays live at a time.
    """
    bytes_a_pixel = 4 * 4 * STEM_EXPANSION * space.channels[0] / space.patch**2
    fitting = (tile for tile in TILES if tile**2 * bytes_a_pixel <= free / 2)
    return next(fitting, TILES[-1])


class Derainer:
    """A trained network, ready for pictures.

    Attributes:
      genotype: of the network.
      variables: its 'params' and 'batch_stats'.
      provenance: where the weights come from.
      source: the file of the variables, or what else errors call them.
      pool_side: see `manas_jax.models.network.Network.pool_side`.
      engine: 'onnx' or 'jax'.
      tile: side in pixels of the tiles that larger pictures are cut into. Where there are several
        devices, a tile is as many times as high, and its height is split over them.
    """

    def __init__(
        self,
        genotype: Genotype,
        variables: Mapping[str, Any],
        provenance: Mapping[str, str] | None = None,
        *,
        tile: int | None = None,
        pool_side: int | None = POOL_SIDE,
        engine: str | None = None,
        devices: Sequence[jax.Device] | None = None,
        dtype: str | None = None,
        source: str | os.PathLike = "variables",
    ):
        """Makes the network ready; compiles nothing yet.

        Args:
          genotype: of a derived network.
          variables: its 'params' and 'batch_stats'.
          provenance: where they come from.
          tile: side in pixels of tiles, rounded up as the network needs; None for `fitting_tile`.
          pool_side: see `Network.pool_side`; None for the network just as it was trained, whose
            gates look at all of a picture or tile.
          engine: one of `ENGINES`; None for 'jax' if `devices` or `dtype` are given, else for
            `default_engine`.
          devices: of JAX, to compute on; None for all of this process.
          dtype: type of the computation by JAX, such as 'bfloat16'; None for float32.
          source: what errors call the variables, such as their file.

        Raises:
          UserError: `tile` is too small, there is no such engine or it cannot do this, or the
            variables are not those of the network.
        """
        self.genotype, self.variables = genotype, variables
        self.provenance = dict(provenance or {})
        self.source = source
        self.pool_side = pool_side and math.lcm(pool_side, genotype.space.multiple)
        dtype = None if dtype == "float32" else dtype
        self.engine = engine or ("jax" if devices or dtype else default_engine(genotype))
        self._multiple = multiple(genotype.space, self.pool_side)
        self._overlap = -(-_OVERLAP // self._multiple) * self._multiple
        if tile is not None and tile <= 2 * self._overlap:
            raise UserError(f"tile = {tile}: give more than {2 * self._overlap} pixels")
        if self.engine not in ENGINES:
            raise UserError(f"engine = {engine}: give one of {', '.join(ENGINES)}")
        if self.engine == "onnx" and (devices or dtype):
            raise UserError("engine = onnx: computes in float32 on the CPU; omit devices and dtype")
        network = genotype, variables, self.pool_side
        # Neither loads the libraries of the other.
        if self.engine == "onnx":
            from manas_jax.inference import onnx_engine, onnx_graph

            self.tile = self._tile(tile, psutil.virtual_memory().available)
            with reading(source, "weights file"):
                model = onnx_graph.build(*network)
            self._run: Engine = onnx_engine.OnnxEngine(model)
        else:
            from manas_jax.inference import jax_engine

            if problem := mismatch(flatten(variables), genotype):
                raise UserError(f"{source}: {problem}")
            devices = list(devices or find())
            self.tile = self._tile(tile, jax_engine.free_memory(devices[0]))
            self._run = jax_engine.JaxEngine(*network, self.tile, devices, dtype)

    def _tile(self, tile: int | None, free: int) -> int:
        tile = tile or fitting_tile(self.genotype.space, free)
        return -(-tile // self._multiple) * self._multiple

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        *,
        tile: int | None = None,
        pool_side: int | None = POOL_SIDE,
        engine: str | None = None,
        devices: Sequence[jax.Device] | None = None,
        dtype: str | None = None,
    ) -> Derainer:
        """Opens weights that come with the package, or a weights file.

        Args:
          name: one of `list_pretrained()`, a file that `manas_jax.workdir.weights` wrote, a folder
            of `save_pretrained`, or `hf://OWNER/NAME` on the Hugging Face Hub.
          tile: side in pixels of the tiles that larger pictures are cut into; None for what fits
            into memory.
          pool_side: see `Network.pool_side`; None for the network just as it was trained, whose
            gates look at all of a picture or tile.
          engine: 'onnx' for ONNX Runtime on the CPU, which compiles nothing, or 'jax' for the
            devices of JAX; None for `default_engine`.
          devices: of JAX, to compute on; None for all of this process.
          dtype: type of the computation by JAX, such as 'bfloat16'; None for float32.

        Raises:
          UserError: no such weights, a damaged file, a supernet's weights, or no such engine.
        """
        file = pretrained.find(name)
        with reading(file, "weights file"):
            variables, genotype, provenance = load_derived(file, compare=False)
        options = {"tile": tile, "pool_side": pool_side, "devices": devices, "dtype": dtype}
        return cls(genotype, variables, provenance, engine=engine, source=file, **options)

    @property
    def platform(self) -> str:
        """Kind of the devices that compute: 'cpu', 'gpu' or 'tpu'."""
        return self._run.platform

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes weights, genotype and model card into a folder, for `from_pretrained`.

        Raises:
          UserError: a file cannot be written.
        """
        hub.save(folder, self.variables, self.genotype, self.provenance)

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
        return hub.push(repository, self.variables, self.genotype, self.provenance, private)

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
            [0, 1]. Or a Pillow image, whose mode is kept (its alpha as it is), but a palette
            becomes RGB, black and white shades of grey, and a transparent colour alpha. Or an
            image file: a path or a `file://` URL.
          self_ensemble: whether to average over the eight flips and turns of the picture: a little
            better, eight times slower.

        Returns:
          The same kind, size and type; of a file a Pillow image, see `image_files.to_pillow`.

        Raises:
          ValueError: another shape or type, floats far beyond [0, 1] or NaN, or a Pillow image of
            floats or of more than 16 bits.
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
        is_whole = picture.dtype.newbyteorder("=") in (np.uint8, np.uint16)
        if not is_whole and picture.dtype.kind != "f":
            raise ValueError(f"give uint8, uint16 or floats in [0, 1], not {picture.dtype}")
        if picture.dtype.kind == "f":
            low, high = picture.min(), picture.max()
            if not -_BEYOND <= low <= high <= 1 + _BEYOND:  # nor NaN
                raise ValueError(f"give floats in [0, 1], not from {low:.3g} to {high:.3g}")
        restored = np.empty_like(picture)
        stack, made = (x[None] if x.ndim == 3 else x for x in (picture, restored))
        height, width = stack.shape[1:3]
        # A CPU is no faster with several; elsewhere as many as are no larger than one tile may be.
        at_once = 1 if self.platform == "cpu" else max(1, self.tile**2 // (height * width))
        for first in range(0, len(stack), at_once):
            group = slice(first, first + at_once)
            for rows, strip in self._strips(stack[group], self_ensemble):
                made[group, rows] = strip
        return restored

    def _image(self, image: Image.Image, self_ensemble: bool) -> Image.Image:
        if image.mode == "F":
            raise ValueError("give a Pillow image of integers, or floats in [0, 1] as an array")
        if image.mode.startswith("I"):  # Pillow clips it to 8 bits
            grey = np.asarray(image)
            if image.mode == "I" and not 0 <= grey.min() <= grey.max() <= 65535:
                raise ValueError("give an image of mode I with values from 0 to 65535")
            colours = np.repeat(grey.astype(np.uint16)[..., None], 3, -1)
            restored = luma(self(colours, self_ensemble=self_ensemble))
            return _described(Image.fromarray(restored.astype(grey.dtype)), image)
        if image.mode == "CMYK":
            page = Page("CMYK", np.asarray(image))
            page = with_rgb(page, self(rgb(page), self_ensemble=self_ensemble))
            return _described(Image.fromarray(page.samples, "CMYK"), image)
        mode = {"1": "L", "P": "RGB", "PA": "RGB"}.get(image.mode, image.mode)
        if mode in ("L", "RGB"):
            image = image.convert(mode + "A" * image.has_transparency_data)
        restored = Image.fromarray(
            self(np.array(image.convert("RGB")), self_ensemble=self_ensemble)
        )
        if image.mode in ("RGBA", "LA"):
            restored.putalpha(image.getchannel("A"))
        return _described(restored.convert(image.mode), image)

    def _strips(self, stack: np.ndarray, self_ensemble: bool) -> Iterator[tuple[slice, np.ndarray]]:
        """Finished rows of the pictures (N, H, W, 3), from top to bottom, in the pictures' type.

        Only a row of tiles is held in floats, so that large pictures fit into memory.
        """
        height, width = stack.shape[1:3]
        rows, columns = (-(-n // self._multiple) * self._multiple for n in (height, width))
        step = math.lcm(_STEP, self._unit)
        down = TileGrid.make(rows, self._tile_height(rows), self._overlap, self._multiple, step)
        across = TileGrid.make(columns, self.tile, self._overlap, self._multiple, step)
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

    @property
    def _unit(self) -> int:
        """Rows that can be split over the devices are a multiple of this."""
        return self._multiple * self._run.devices

    def _tile_height(self, rows: int) -> int:
        """As high as all devices together can hold, and such that it can be split over them."""
        if rows <= self.tile:
            return self.tile
        height = min(self.tile * self._run.devices, rows // self._unit * self._unit)
        return height if height > 2 * self._overlap else self.tile

    def _ensemble(self, pictures: np.ndarray) -> np.ndarray:
        """The mean over the eight symmetries of the square."""

        def turned(turns: int, flip: bool) -> np.ndarray:
            seen = np.rot90(pictures[:, :, ::-1] if flip else pictures, turns, (1, 2))
            made = np.rot90(self._run(np.ascontiguousarray(seen)), -turns, (1, 2))
            return made[:, :, ::-1] if flip else made

        return sum(turned(*symmetry) for symmetry in _SYMMETRIES) / len(_SYMMETRIES)


def _described(restored: Image.Image, image: Image.Image) -> Image.Image:
    """The restored image with the EXIF, ICC profile and so on of the original one."""
    restored.info = dict(image.info)
    return restored


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
