"""BMP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from manas_jax.inference.image_files import encoders
from manas_jax.inference.image_files.pixels import Page

_VERSION_5, _COLOUR_SPACE = 124, slice(70, 74)  # bytes of its header, and where in the file
_PROFILES = (b"DEBM", b"KNIL")  # it is embedded or linked


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Pillow's options for the same resolution, and where and how the samples are stored."""
    options = {key: image.info[key] for key in ("dpi",) if key in image.info}
    has_profile = content[14] == _VERSION_5 and content[_COLOUR_SPACE] in _PROFILES
    left_out = ["ICC profile"] if has_profile and image.mode != "RGBA" else []
    return {"options": options, "tile": image.tile[0]}, left_out


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """The file `content` with the pixels of the only page."""
    (page,) = pages
    image = encoders.pillow_image(page)
    if page.mode != "RGBA":
        return encoders.with_pillow(image, "BMP", **page.storage["options"])
    # Pillow writes no header that says which bytes are alpha; the file's own does.
    tile = page.storage["tile"]
    rawmode, stride, direction = tile.args
    pixels = image.tobytes("raw", rawmode, stride, direction)
    return content[: tile.offset] + pixels + content[tile.offset + len(pixels) :]
