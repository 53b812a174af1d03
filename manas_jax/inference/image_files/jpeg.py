"""JPEG: new scans with the old quantisation and subsampling, metadata segments as they were."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, JpegImagePlugin

from manas_jax.inference.image_files import encoders, previews
from manas_jax.inference.image_files.pixels import Page

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_JFIF, _EXIF_OR_XMP, _PHOTOSHOP, _ADOBE, _COMMENT = 0xE0, 0xE1, 0xED, 0xEE, 0xFE
_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_JFIF_BYTES = 18  # of a segment without a thumbnail
_EXIF_ID, _XMP_ID, _PHOTOSHOP_ID = (
    b"Exif\0\0",
    b"http://ns.adobe.com/xap/1.0/\0",
    b"Photoshop 3.0\0",
)
_JFIF_EXTENSION_ID = b"JFXX\0"  # a thumbnail
# Segments that say what lies behind the first image: further images (CIPA DC-007), a gain map.
_BEHIND_IDS = (b"MPF\0", b"urn:iso:std:iso:ts:21496:-1\0")
# Properties in XMP that say so: a namespace and a pattern of names.
_BEHIND_PROPERTIES = (
    (b"http://ns.google.com/photos/1.0/camera/", rb"(?:MicroVideo|MotionPhoto)\w*"),
    (b"http://ns.google.com/photos/1.0/container/", rb"\w+"),
    (b"http://ns.adobe.com/hdr-gain-map/1.0/", rb"\w+"),
    (b"http://ns.apple.com/HDRGainMap/1.0/", rb"\w+"),
)
_GAIN_MAP = re.compile(rb"hdr-gain-map|HDRGainMap|21496:-1")


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Pillow's options for the same quantisation tables, order and subsampling."""
    subsampling = JpegImagePlugin.get_sampling(image)
    options = {
        "qtables": image.quantization,
        "progressive": bool(image.info.get("progressive")),
        **({"subsampling": subsampling} if subsampling >= 0 else {}),
    }
    return options, _behind(content)


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """The file `content` with the pixels of the only page, up to the end of its first image."""
    (page,) = pages
    image = encoders.pillow_image(page)
    encoded = encoders.with_pillow(image, "JPEG", **page.storage)
    thumbnail_source = image.convert("RGB")
    kept = [
        _metadata(marker, content[start:end], thumbnail_source)
        for marker, start, end in _before_scan(content)
        if _is_metadata(marker, content[start:end])
    ]
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
        for namespace, names in _BEHIND_PROPERTIES:
            data = _without_properties(data, namespace, names)
    elif marker == _PHOTOSHOP and data.startswith(_PHOTOSHOP_ID):
        resources = previews.in_photoshop_resources(data[len(_PHOTOSHOP_ID) :])
        data = _PHOTOSHOP_ID + resources
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _without_properties(xmp: bytes, namespace: bytes, names: bytes) -> bytes:
    """XMP without the properties of a namespace whose names match, as attributes or elements."""
    prefixes = re.findall(rb"xmlns:([\w.-]+)\s*=\s*[\"']" + re.escape(namespace), xmp)
    if not prefixes:
        return xmp
    name = rb"(?:" + b"|".join(map(re.escape, prefixes)) + rb"):" + names
    xmp = re.sub(rb"\s" + name + rb"\s*=\s*(\"[^\"]*\"|'[^']*')", b"", xmp)
    return previews.without_elements(xmp, name)


def _behind(content: bytes) -> list[str]:
    """What lies behind the first image, in words."""
    end = next((end for marker, _, end in _segments(content) if marker == _END), len(content))
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
    """`_segments` before the first scan."""
    for marker, start, end in _segments(content):
        if marker in (_SCAN, _END):
            return
        yield marker, start, end


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of the first image, without SOI and restart markers.

    Bytes between segments are skipped, as decoders do: junk, or the entropy-coded data of a scan.
    """
    position = 2
    while found := _MARKER.search(content, position):
        marker, start, position = found[1][0], found.end() - 2, found.end()
        if marker in _WITHOUT_LENGTH:
            continue
        if marker != _END:
            if position + 2 > len(content):
                return
            position = start + 2 + struct.unpack_from(">H", content, position)[0]
        yield marker, start, min(position, len(content))
        if marker == _END:
            return
