"""AVIF of 8 bits: metadata, subsampling and colour tags as they were, exact alpha."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from PIL import Image

from manas_jax.errors import UserError
from manas_jax.inference.image_files import encoders, previews
from manas_jax.inference.image_files.pixels import Page

QUALITY = 90
_CONFIGURATION, _COLOUR_TAGS, _GAIN_MAP = b"av1C", b"colrnclx", b"tmap"  # boxes of the container
_EDIT_LIST, _TRACK_HEADER = b"elst", b"tkhd"
# Bits of the third byte of the configuration (AV1 Codec ISO Media File Format Binding, 2.3.3).
_HIGH_BIT_DEPTH, _MONOCHROME, _SUBSAMPLED_X, _SUBSAMPLED_Y = 0x40, 0x10, 0x08, 0x04
_EXACT_ALPHA = {"codec": "aom", "advanced": {"a:lossless": "1"}}


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Pillow's options for the same metadata and subsampling, colour tags, plays of an animation.

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
    playback = {"loop": _plays(content)} if getattr(image, "n_frames", 1) > 1 else {}
    return {"options": options, "tags": _colour_tags(content)} | playback, left_out


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


def _plays(content: bytes) -> int:
    """How often an animation is shown; 0 for ever, as readers do where the file does not say.

    By the edit list: if it repeats, it does so until the end of the track (AVIF specification).
    """
    edits, track = (content.partition(box)[2] for box in (_EDIT_LIST, _TRACK_HEADER))
    try:
        if not edits or not edits[3] & 1:
            return 1 if edits else 0
        (edit,) = struct.unpack_from(">Q" if edits[0] else ">L", edits, 8)
        (whole,) = struct.unpack_from(">Q" if track[0] else ">L", track, 28 if track[0] else 20)
    except (struct.error, IndexError):
        return 0
    is_endless = whole == (2**64 if track[0] else 2**32) - 1
    return 0 if is_endless or not edit else -(-whole // edit)
