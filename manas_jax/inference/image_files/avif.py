"""AVIF of 8 bits: metadata, subsampling and colour tags as they were, exact alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from manas_jax.errors import UserError
from manas_jax.inference.image_files import encoders, previews
from manas_jax.inference.image_files.pixels import Page

QUALITY = 90
_CONFIGURATION, _COLOUR_TAGS, _GAIN_MAP = b"av1C", b"colrnclx", b"tmap"  # boxes of the container
# Bits of the third byte of the configuration (AV1 Codec ISO Media File Format Binding, 2.3.3).
_HIGH_BIT_DEPTH, _MONOCHROME, _SUBSAMPLED_X, _SUBSAMPLED_Y = 0x40, 0x10, 0x08, 0x04
_EXACT_ALPHA = {"codec": "aom", "advanced": {"a:lossless": "1"}}


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Pillow's options for the same metadata and subsampling, and the colour tags.

    Raises:
      UserError: it has more than 8 bits, of which Pillow reads 8.
    """
    flags = _flags(content)
    if any(flag & _HIGH_BIT_DEPTH for flag in flags):
        raise UserError("AVIF of more than 8 bits; convert it to PNG with 16 bits")
    options = {key: image.info[key] for key in ("icc_profile", "exif", "xmp") if key in image.info}
    colours = [flag for flag in flags if not flag & _MONOCHROME]
    if colours:
        options["subsampling"] = {
            0: "4:4:4",
            _SUBSAMPLED_X: "4:2:2",
            _SUBSAMPLED_X | _SUBSAMPLED_Y: "4:2:0",
        }[colours[0] & (_SUBSAMPLED_X | _SUBSAMPLED_Y)]
    left_out = ["HDR gain map"] if _GAIN_MAP in content else []
    return {"options": options, "tags": _colour_tags(content)}, left_out


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """A new file of the pages."""
    options = previews.in_options(pages[0].storage["options"], pages[0])
    options["quality"] = QUALITY
    if any(page.mode == "RGBA" for page in pages):
        options |= _EXACT_ALPHA
    first, *rest = map(encoders.pillow_image, pages)
    if rest:
        options |= encoders.animation_options(pages) | {"append_images": rest}
    encoded = encoders.with_pillow(first, "AVIF", **options)
    tags, own = pages[0].storage["tags"], _colour_tags(encoded)
    return encoded.replace(_COLOUR_TAGS + own, _COLOUR_TAGS + tags) if tags and own else encoded


def _flags(content: bytes) -> list[int]:
    """The third byte of the configuration of each AV1 image in the file."""
    return [part[2] for part in content.split(_CONFIGURATION)[1:] if len(part) > 2]


def _colour_tags(content: bytes) -> bytes:
    """Numbers of primaries and transfer function (ITU-T H.273); empty without such a box."""
    return content.partition(_COLOUR_TAGS)[2][:4]
