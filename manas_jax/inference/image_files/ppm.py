"""PPM, PGM and PBM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from manas_jax.inference.image_files import encoders
from manas_jax.inference.image_files.pixels import Page


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Nothing: there is one layout per mode."""
    return {}, []


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """A new file of the only page."""
    (page,) = pages
    return encoders.with_pillow(encoders.pillow_image(page), "PPM")
