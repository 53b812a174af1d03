"""Stored frames as RGB, and RGB as stored frames: modes, transparency, orientation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from manas_jax.inference.image_files.palette import fit_palette, move_to_means


@dataclasses.dataclass(frozen=True)
class Page:
    """One frame in its file's mode, turned upright.

    Attributes:
      mode: Pillow's mode without the bit depth, which is that of `samples`.
      samples: uint8, uint16 or bool; (H, W) for '1', 'L' and 'P', else (H, W, channels).
      orientation: EXIF's, as the file has it.
      palette: uint8 (colours, 4), RGB and alpha; of mode 'P'.
      transparent: the colour that stands for transparent; of '1', 'L' and 'RGB'.
      duration: milliseconds; of an animation.
      storage: how the file stores the pixels, as its format's `encode` needs it.
      left_out: what its format's `encode` leaves out of the file, in words.
    """

    mode: str
    samples: np.ndarray
    orientation: int = 1
    palette: np.ndarray | None = None
    transparent: tuple[int, ...] | None = None
    duration: float | None = None
    storage: dict[str, Any] = dataclasses.field(default_factory=dict)
    left_out: Sequence[str] = ()


# EXIF orientation -> how stored samples are turned upright, and back.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}
_STORED = _UPRIGHT | {6: _UPRIGHT[8], 8: _UPRIGHT[6]}


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Turns samples as stored upright."""
    turn = _UPRIGHT.get(orientation)
    return np.ascontiguousarray(turn(stored)) if turn else stored


def stored_samples(page: Page) -> np.ndarray:
    """The samples turned back to how the file stores them."""
    turn = _STORED.get(page.orientation)
    return np.ascontiguousarray(turn(page.samples) if turn else page.samples)


def rgb(page: Page) -> np.ndarray:
    """RGB, read-only, (H, W, 3) in the type of the samples; a view where possible."""
    samples = page.samples
    if page.mode == "P":
        colours = page.palette[samples, :3]
    elif page.mode == "CMYK":
        colours = np.array(Image.fromarray(samples, "CMYK").convert("RGB"))
    elif page.mode in ("RGB", "RGBA"):
        colours = samples[..., :3]
    else:
        grey = samples[..., 0] if page.mode == "LA" else samples
        grey = grey * np.uint8(255) if page.mode == "1" else grey
        colours = np.broadcast_to(grey[..., None], (*grey.shape, 3)).view()
    colours.flags.writeable = False
    return colours


def with_rgb(page: Page, colours: np.ndarray) -> Page:
    """The page with new RGB, in its own mode, alpha unchanged.

    Args:
      page: the page.
      colours: in shape and type of `rgb(page)`.
    """
    samples, palette = page.samples, page.palette
    if page.mode == "P":
        start = move_to_means(palette, samples.ravel(), colours.reshape(-1, 3))
        samples, palette = fit_palette(colours, palette[samples, 3], start)
    elif page.mode == "CMYK":
        changed = (colours != rgb(page)).any(-1, keepdims=True)
        samples = np.where(changed, _cmyk(colours, samples[..., 3]), samples)
    elif page.mode == "1":
        samples = luma(colours) >= 128
    elif page.mode in ("L", "LA"):
        new = luma(colours)
        samples = np.stack([new, samples[..., 1]], -1) if page.mode == "LA" else new
    else:
        samples = np.concatenate([colours, samples[..., 3:]], -1)
    if page.transparent is not None:
        samples = _keep_transparent(samples, page)
    return dataclasses.replace(page, samples=samples, palette=palette)


def luma(colours: np.ndarray) -> np.ndarray:
    """(H, W) by the weights of BT.601 as Pillow rounds them, in the type of `colours`.

    Grey pixels keep their value: the weights sum to 2 ** 16.
    """
    weighted = colours @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighted + 0x8000) >> 16).astype(colours.dtype)


def _cmyk(colours: np.ndarray, black: np.ndarray) -> np.ndarray:
    """CMYK of RGB with the given black (H, W), less where the colour is brighter than that."""
    black = np.minimum(black, 255 - colours.max(-1))
    light = 255 - black[..., None].astype(np.float32)
    ink = 255 - np.float32(255) * colours / np.maximum(light, 1)
    return np.concatenate([np.rint(ink.clip(0, 255)).astype(np.uint8), black[..., None]], -1)


def _keep_transparent(samples: np.ndarray, page: Page) -> np.ndarray:
    """Puts the transparent colour where `page` has it, and removes it elsewhere."""
    shape = samples.shape
    new = samples.reshape(*shape[:2], -1).copy()
    before = (page.samples.reshape(new.shape) == page.transparent).all(-1)
    clash = (new == page.transparent).all(-1) & ~before
    new[clash, -1] ^= samples.dtype.type(1)  # the smallest change
    new[before] = page.transparent
    return new.reshape(shape)
