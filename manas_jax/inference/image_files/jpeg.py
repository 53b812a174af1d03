"""JPEG: new scans with the old quantisation and subsampling, metadata segments as they were."""

from __future__ import annotations

import collections
import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from manas_jax.inference.image_files import encoders, previews
from manas_jax.inference.image_files.jpeg_segments import END, SCAN, segments
from manas_jax.inference.image_files.pixels import Page

_JFIF, _EXIF_OR_XMP, _PHOTOSHOP, _ADOBE, _COMMENT = 0xE0, 0xE1, 0xED, 0xEE, 0xFE
_JFIF_BYTES = 18  # of a segment without a thumbnail
_EXIF_ID, _XMP_ID, _PHOTOSHOP_ID = (
    b"Exif\0\0",
    b"http://ns.adobe.com/xap/1.0/\0",
    b"Photoshop 3.0\0",
)
_JFIF_EXTENSION_ID = b"JFXX\0"  # a thumbnail
_EXTENSION_ID = b"http://ns.adobe.com/xmp/extension/\0"
_EXTENSION = struct.Struct(">35s32sLL")  # identifier, name, bytes of all parts, place of this one
_EXTENSION_PART = 65_000  # bytes
# Segments that say what lies behind the first image: further images (CIPA DC-007), a gain map.
_BEHIND_IDS = (b"MPF\0", b"urn:iso:std:iso:ts:21496:-1\0")
_GAIN_MAP = re.compile(rb"hdr-gain-map|HDRGainMap|21496:-1")


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Pillow's options for the same quantisation tables, order and subsampling."""
    options = {
        "qtables": image.quantization,
        "progressive": bool(image.info.get("progressive")),
        **({"subsampling": _subsampling(image)} if image.layers == 3 else {}),
    }
    return options, _behind(content)


def _subsampling(image: Image.Image) -> int:
    """Pillow's number of the subsampling of three layers, or of one that loses nothing of it."""
    (_, width, height, _), *chroma = image.layer
    ratios = {(width / w, height / h) for _, w, h, _ in chroma}
    numbers = {(2, 1): 1, (2, 2): 2}  # other ratios are not written: 4:4:4 in their place
    return numbers.get(ratios.pop(), 0) if len(ratios) == 1 else 0


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """The file `content` with the pixels of the only page, up to the end of its first image."""
    (page,) = pages
    image = encoders.pillow_image(page)
    encoded = encoders.with_pillow(image, "JPEG", **page.storage)
    thumbnail_source = image.convert("RGB")
    kept = _with_extended_xmp(
        [
            _metadata(marker, content[start:end], thumbnail_source)
            for marker, start, end in _before_scan(content)
            if _is_metadata(marker, content[start:end])
        ]
    )
    parts = list(_before_scan(encoded))
    tables = [encoded[a:b] for marker, a, b in parts if not _is_metadata(marker, encoded[a:b])]
    return b"".join([b"\xff\xd8", *kept, *tables, encoded[parts[-1][2] :]])


def _is_metadata(marker: int, segment: bytes) -> bool:
    """Whether it is a comment or application segment that stays true for other pixels."""
    if marker == _ADOBE or segment[4:].startswith((*_BEHIND_IDS, _JFIF_EXTENSION_ID)):
        return False  # Adobe's says how the encoder stored colours
    return 0xE0 <= marker <= 0xEF or marker == _COMMENT


def _metadata(marker: int, segment: bytes, image: Image.Image) -> bytes:
    """A segment of metadata, changed as the new pixels need it."""
    data = segment[4:]
    if marker == _JFIF and data.startswith(b"JFIF\0"):
        data = data[: _JFIF_BYTES - 6] + bytes(2)
    elif marker == _EXIF_OR_XMP and data.startswith(_EXIF_ID):
        data = _EXIF_ID + previews.in_exif(data[len(_EXIF_ID) :], image)
    elif marker == _EXIF_OR_XMP and data.startswith(_XMP_ID):
        data = previews.in_xmp(data)
    elif marker == _PHOTOSHOP and data.startswith(_PHOTOSHOP_ID):
        resources = previews.in_photoshop_resources(data[len(_PHOTOSHOP_ID) :])
        data = _PHOTOSHOP_ID + resources
    elif not data.startswith(_EXTENSION_ID):
        data = previews.in_bytes(data, image)
    return _segment(marker, data)


def _with_extended_xmp(kept: Sequence[bytes]) -> list[bytes]:
    """Segments with extended XMP (XMP Specification, part 3, 1.1.3.1) as `previews.in_xmp` has it.

    Its name, by which the main XMP refers to it, is its digest.
    """
    others: list[bytes] = []
    extensions: dict[bytes, dict[int, bytes]] = collections.defaultdict(dict)
    for segment in kept:
        if segment[4:].startswith(_EXTENSION_ID) and len(segment) >= 4 + _EXTENSION.size:
            _, name, _, place = _EXTENSION.unpack_from(segment, 4)
            extensions[name][place] = segment[4 + _EXTENSION.size :]
        else:
            others.append(segment)
    for name, parts in extensions.items():
        old = b"".join(part for _, part in sorted(parts.items()))
        new, new_name = previews.in_xmp(old), name
        if new != old:
            new_name = hashlib.md5(new, usedforsecurity=False).hexdigest().upper().encode()
        others = [s.replace(name, new_name) if s[4:].startswith(_XMP_ID) else s for s in others]
        for place in range(0, len(new), _EXTENSION_PART):
            header = _EXTENSION.pack(_EXTENSION_ID, new_name, len(new), place)
            part = new[place : place + _EXTENSION_PART]
            others.append(_segment(_EXIF_OR_XMP, header + part))
    return others


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _behind(content: bytes) -> list[str]:
    """What lies behind the first image, in words."""
    end = next((end for marker, _, end in segments(content) if marker == END), len(content))
    rest = content[end:].strip(b"\0")
    if not rest:
        return []
    known = {
        "HDR gain map": rest.startswith(b"\xff\xd8") and _GAIN_MAP.search(content),
        "film": b"ftyp" in rest,
    }
    images = rest.count(b"\xff\xd8\xff") - bool(known["HDR gain map"])
    if images > 0 and not known["film"]:
        known[f"further images ({images})"] = True
    found = [name for name, applies in known.items() if applies]
    return found or [f"{len(rest):,} bytes behind the image"]


def _before_scan(content: bytes) -> Iterator[tuple[int, int, int]]:
    """`segments` before the first scan."""
    for marker, start, end in segments(content):
        if marker in (SCAN, END):
            return
        yield marker, start, end
