"""WebP: lossless files stay lossless; metadata is handed to the encoder."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from PIL import Image

from manas_jax.inference.image_files import encoders, previews
from manas_jax.inference.image_files.pixels import Page

_QUALITY = 95
_LOSSLESS_EFFORT = 80  # what "quality" means for lossless WebP


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Pillow's options for the same metadata, playback and kind of compression."""
    keys = ("icc_profile", "exif", "xmp", "loop", "background")
    options = {key: image.info[key] for key in keys if key in image.info}
    return options | {"lossless": _is_lossless(content)}, []


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """A new file of the pages."""
    options = previews.in_options(pages[0].storage, pages[0])
    options |= {"exact": True, "quality": _QUALITY}
    if options["lossless"]:
        options["quality"] = _LOSSLESS_EFFORT
    else:
        options["alpha_quality"] = 100
    first, *rest = (encoders.pillow_image(page) for page in pages)
    if rest:
        options |= encoders.animation_options(pages) | {"append_images": rest}
    else:
        options = {key: options[key] for key in options if key not in ("loop", "background")}
    return encoders.with_pillow(first, "WEBP", **options)


def _is_lossless(content: bytes) -> bool:
    """Whether the first frame is, by the type of the chunk that holds its samples."""
    position = 12
    while position + 8 <= len(content):
        kind, length = struct.unpack_from("<4sL", content, position)
        if kind == b"VP8L":
            return True
        if kind == b"VP8 ":
            return False
        # The chunks of an animation's frame follow 16 bytes on its place and duration.
        position += 8 + (16 if kind == b"ANMF" else length + length % 2)
    return False
