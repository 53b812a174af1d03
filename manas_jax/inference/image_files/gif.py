"""GIF: every frame with a palette of its own, fitted to its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from manas_jax.inference.image_files import encoders
from manas_jax.inference.image_files.palette import fit_palette, pack
from manas_jax.inference.image_files.pixels import Page

_LEFT_OUT = {b"XMP DataXMP": "XMP", b"ICCRGBG1012": "ICC profile"}  # application extensions
_SAMPLE = 2**16  # pixels that the first guess at a palette is made from


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Pillow's options for the same comment and playback."""
    options = {key: image.info[key] for key in ("loop", "comment") if key in image.info}
    return options, [name for mark, name in _LEFT_OUT.items() if mark in content]


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """A new file of the pages, which are of mode 'RGB' or 'RGBA'."""
    first, *rest = images = [_with_palette(page) for page in pages]
    options = dict(pages[0].storage)
    if rest:
        transparent = any("transparency" in image.info for image in images)
        options |= encoders.animation_options(pages)
        options |= {"append_images": rest, "disposal": 2 if transparent else 1}
    return encoders.with_pillow(first, "GIF", optimize=False, **options)


def _with_palette(page: Page) -> Image.Image:
    """A page as at most 256 colours, one of which stands for transparent where there is any."""
    samples = page.samples
    opaque = samples[..., 3] >= 128 if page.mode == "RGBA" else np.ones(samples.shape[:2], bool)
    size = 256 if opaque.all() else 255
    packed = np.unique(pack(samples[opaque][:, :3]))
    colours = packed.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:]
    if len(colours) > size:
        chosen = samples[opaque][None, :: 1 + opaque.sum() // _SAMPLE, :3]
        image = Image.fromarray(np.ascontiguousarray(chosen))
        image = image.quantize(size, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.column_stack([colours, np.full(len(colours), 255, np.uint8)])
    rgb = samples[..., :3]
    if not opaque.all():
        hidden = rgb[~opaque][0]
        palette = np.concatenate([palette, [[*hidden, 0]]]).astype(np.uint8)
        rgb = np.where(opaque[..., None], rgb, hidden)
    indices, palette = fit_palette(rgb, opaque * np.uint8(255), palette)
    image = encoders.pillow_image(Page("P", indices, palette=palette))
    if not opaque.all():
        image.info["transparency"] = len(palette) - 1
    return image
