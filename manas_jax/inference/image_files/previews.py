"""Metadata that shows the pixels once more: made from the new pixels, or removed.

So are claims to images and films that lie behind the first image, which are left out.
"""

from __future__ import annotations

import io
import re
import struct
from typing import Any

from PIL import Image

from manas_jax.inference.image_files import encoders
from manas_jax.inference.image_files.jpeg_segments import END, segments
from manas_jax.inference.image_files.pixels import Page

_QUALITIES = (90, 75, 50, 25)
_JPEG_OFFSET, _JPEG_LENGTH = 513, 514  # EXIF tags
_PHOTOSHOP_THUMBNAILS = (1033, 1036)  # Adobe Photoshop File Formats Specification
_JPEG = re.compile(rb"\xff\xd8\xff")
# Of previews; more than any camera writes. They bound the time that hostile files take.
_MAX_JPEGS, _MAX_HEADER = 64, 2**16
# Properties in XMP of what is left out, and of the image as it was: namespaces and names.
_UNTRUE_PROPERTIES = (
    (b"http://ns.google.com/photos/1.0/camera/", rb"(?:MicroVideo|MotionPhoto)\w*"),
    (b"http://ns.google.com/photos/1.0/container/", rb"\w+"),
    (b"http://ns.google.com/photos/1.0/image/", rb"\w+"),
    (b"http://ns.adobe.com/hdr-gain-map/1.0/", rb"\w+"),
    (b"http://ns.apple.com/HDRGainMap/1.0/", rb"\w+"),
)


def in_options(options: dict[str, Any], page: Page) -> dict[str, Any]:
    """Pillow's options for metadata, with those made from or without the old pixels.

    Args:
      options: with 'exif' and 'xmp' or without.
      page: the new pixels.
    """
    changed = dict(options)
    if "exif" in options:
        exif = options["exif"].removeprefix(b"Exif\0\0")
        changed["exif"] = in_exif(exif, encoders.thumbnail_source(page))
    if "xmp" in options:
        changed["xmp"] = in_xmp(options["xmp"])
    return changed


def in_exif(exif: bytes, image: Image.Image) -> bytes:
    """EXIF with a thumbnail of `image`, or without one if that takes more bytes than the old one.

    So are previews in the notes of camera makers. All offsets stay, on which these notes depend.

    Args:
      exif: a TIFF header and what follows it.
      image: RGB, as the file stores it.
    """
    exif = in_bytes(exif, image)
    try:
        return _with_thumbnail(bytearray(exif), image)
    except (struct.error, IndexError, KeyError):  # not EXIF, or damaged: nothing shows it
        return exif


def in_bytes(data: bytes, image: Image.Image) -> bytes:
    """Bytes of unknown layout whose JPEGs show `image`, or are zeros where it takes more bytes.

    A JPEG without an end loses its first bytes alone, as the end of its bytes is unknown.

    Args:
      data: such as a note of a camera's maker.
      image: RGB, as the file stores it.
    """
    changed, position = bytearray(data), 0
    for _ in range(_MAX_JPEGS):
        if not (found := _JPEG.search(data, position)):
            break
        start = position = found.start()
        position += 3
        if _size(data[start : start + _MAX_HEADER]) is None:
            continue
        old = data[start:]
        end = next((end for marker, _, end in segments(old) if marker == END), None)
        new = _thumbnail(old[:end], image) if end else None
        changed[start : start + (end or 3)] = (new or b"").ljust(end or 3, b"\0")
        position = start + (end or 3)
    return bytes(changed)


def in_photoshop_resources(resources: bytes) -> bytes:
    """Photoshop's image resources without its thumbnails."""
    kept, position = [], 0
    while resources[position : position + 4] == b"8BIM" and position + 12 <= len(resources):
        (number,) = struct.unpack_from(">H", resources, position + 4)
        data = position + 6 + (resources[position + 6] + 2) // 2 * 2  # after a name, padded
        if data + 4 > len(resources):
            break
        (length,) = struct.unpack_from(">L", resources, data)
        end = data + 4 + (length + 1) // 2 * 2
        if number not in _PHOTOSHOP_THUMBNAILS:
            kept.append(resources[position:end])
        position = end
    return b"".join([*kept, resources[position:]])


def in_xmp(xmp: bytes) -> bytes:
    """XMP without thumbnails and without properties that are no longer true."""
    xmp = without_elements(xmp, rb"\w+:Thumbnails")
    for namespace, names in _UNTRUE_PROPERTIES:
        xmp = without_properties(xmp, namespace, names)
    return xmp


def without_properties(xmp: bytes, namespace: bytes, names: bytes) -> bytes:
    """XMP without the properties of a namespace whose names match, as attributes or elements."""
    prefixes = re.findall(rb"xmlns:([\w.-]+)\s*=\s*[\"']" + re.escape(namespace), xmp)
    if not prefixes:
        return xmp
    name = rb"(?:" + b"|".join(map(re.escape, prefixes)) + rb"):" + names
    xmp = re.sub(rb"\s" + name + rb"\s*=\s*(\"[^\"]*\"|'[^']*')", b"", xmp)
    return without_elements(xmp, name)


def without_elements(xmp: bytes, name: bytes) -> bytes:
    """XMP without the elements whose names match a pattern; linear in time, also if hostile."""
    start_tag = re.compile(rb"<(" + name + rb")(?:\s[^<>]*)?/?>")
    kept, position = [], 0
    while found := start_tag.search(xmp, position):
        end = found.end()
        if not found[0].endswith(b"/>"):
            end = xmp.find(b"</" + found[1], end)
            end = xmp.find(b">", end) + 1 if end > 0 else 0
            if not end:
                break
        kept.append(xmp[position : found.start()])
        position = end
    return b"".join([*kept, xmp[position:]])


def _with_thumbnail(exif: bytearray, image: Image.Image) -> bytes:
    order = {b"II": "<", b"MM": ">"}[bytes(exif[:2])]
    (first,) = struct.unpack_from(f"{order}L", exif, 4)
    (entries,) = struct.unpack_from(f"{order}H", exif, first)
    link = first + 2 + 12 * entries
    (second,) = struct.unpack_from(f"{order}L", exif, link)
    if not second:
        return bytes(exif)
    (entries,) = struct.unpack_from(f"{order}H", exif, second)
    places = {}  # tag -> where its value is
    for entry in range(second + 2, second + 2 + 12 * entries, 12):
        (tag,) = struct.unpack_from(f"{order}H", exif, entry)
        places[tag] = entry + 8
    if _JPEG_OFFSET in places and _JPEG_LENGTH in places:
        (start,) = struct.unpack_from(f"{order}L", exif, places[_JPEG_OFFSET])
        (length,) = struct.unpack_from(f"{order}L", exif, places[_JPEG_LENGTH])
        old = bytes(exif[start : start + length])
        new = _thumbnail(old, image)
        exif[start : start + len(old)] = (new or b"").ljust(len(old), b"\0")
        if new:
            struct.pack_into(f"{order}L", exif, places[_JPEG_LENGTH], len(new))
            return bytes(exif)
    struct.pack_into(f"{order}L", exif, link, 0)
    return bytes(exif)


def _thumbnail(old: bytes, image: Image.Image) -> bytes | None:
    """A JPEG of at most the old one's size in pixels and in bytes; None if that is not possible."""
    if not (size := _size(old)):
        return None
    small = image.copy()
    small.thumbnail(size)
    candidates = (encoders.with_pillow(small, "JPEG", quality=quality) for quality in _QUALITIES)
    return next((jpeg for jpeg in candidates if len(jpeg) <= len(old)), None)


def _size(jpeg: bytes) -> tuple[int, int] | None:
    """Width and height as its header claims; None if it is no JPEG."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            return image.size
    except Exception:  # Pillow raises many types
        return None
