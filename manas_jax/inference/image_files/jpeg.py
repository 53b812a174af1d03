"""JPEG: new scans with the old quantisation and subsampling, metadata segments as they were."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, JpegImagePlugin

from manas_jax.inference.image_files import encoders
from manas_jax.inference.image_files.pixels import Page

_ADOBE, _COMMENT, _SCAN = 0xEE, 0xFE, 0xDA  # markers


def storage(image: Image.Image, content: bytes) -> dict[str, Any]:
    """Pillow's options for the same quantisation tables, order and subsampling."""
    subsampling = JpegImagePlugin.get_sampling(image)
    return {
        "qtables": image.quantization,
        "progressive": bool(image.info.get("progressive")),
        **({"subsampling": subsampling} if subsampling >= 0 else {}),
    }


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """The file `content` with the pixels of the only page."""
    (page,) = pages
    encoded = encoders.with_pillow(encoders.pillow_image(page), "JPEG", **page.storage)
    metadata = [s for marker, s in _segments(content) if _is_metadata(marker, s)]
    pixels = [s for marker, s in _segments(encoded) if not _is_metadata(marker, s)]
    return b"".join([b"\xff\xd8", *metadata, *pixels])


def _is_metadata(marker: int, segment: bytes) -> bool:
    """Whether it is a comment or application segment that does not describe pixels."""
    # Adobe's says how the encoder stored colours; MPF's where the other images of an MPO are.
    describes_pixels = marker == _ADOBE or segment[4:8] == b"MPF\0"
    return (0xE0 <= marker <= 0xEF or marker == _COMMENT) and not describes_pixels


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and all bytes of each segment after SOI; the first scan and all after it as one."""
    position = 2
    while position + 4 <= len(content):
        while content[position : position + 2] == b"\xff\xff":  # fill bytes
            position += 1
        marker, length = struct.unpack_from(">xBH", content, position)
        if marker == _SCAN:
            yield marker, content[position:]
            return
        yield marker, content[position : position + 2 + length]
        position += 2 + length
