"""PNG and APNG: new pixel chunks, all other chunks as they were."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from manas_jax.inference.image_files import encoders, previews
from manas_jax.inference.image_files.pixels import Page, stored_samples

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH, _COLOUR_TYPE = 16, 17  # their bytes in the IHDR chunk, its length and type included
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"acTL", b"fcTL", b"IDAT", b"fdAT", b"IEND"})
_COLOUR_TYPE_CHUNKS = frozenset({b"tRNS", b"bKGD", b"sBIT", b"hIST"})  # their layout depends on it
_XMP = re.compile(rb"XML:com\.adobe\.xmp\0(?P<compressed>[\0\1])\0[^\0]*\0[^\0]*\0")
_MAX_XMP = 64 * 2**20  # bytes
_PIXEL_FORMATS = {"LA": "ya16be", "RGB": "rgb48be", "RGBA": "rgba64be"}  # FFmpeg's, of 16 bits


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Bit depth, and options of an animation."""
    _, header = next(_chunks(content))
    playback = {key: image.info[key] for key in ("loop", "default_image") if key in image.info}
    return {"bits": header[_BIT_DEPTH], **playback}, []


def transparent_colour(image: Image.Image, mode: str, bits: int) -> tuple[int, ...] | None:
    """The colour of a tRNS chunk, in samples as Pillow decodes them to `mode`."""
    value = image.info.get("transparency")
    if mode not in ("1", "L", "RGB"):
        return None
    if value is None:
        return None
    # Higher bits are to be ignored (PNG specification, section 11.3.2.1).
    colour = [x & (2**bits - 1) for x in (value if isinstance(value, tuple) else (value,))]
    if mode == "L" and bits < 8:  # Pillow scales samples to 8 bits, but not this value
        colour = [x * 255 // (2**bits - 1) for x in colour]
    return tuple(map(bool, colour) if mode == "1" else colour)


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """The file `content` with the pixels of `pages`."""
    first = pages[0]
    if len(pages) > 1:
        has_default = bool(first.storage.get("default_image"))
        options = encoders.animation_options(pages[has_default:]) | {
            "append_images": [encoders.pillow_image(page) for page in pages[1:]],
            "default_image": has_default,
            "loop": first.storage.get("loop", 0),
            "disposal": 0,
            "blend": 0,
        }
        encoded = encoders.with_pillow(encoders.pillow_image(first), "PNG", **options)
    elif encoders.is_16_bit_colour(first):
        samples = stored_samples(first).astype(">u2")
        encoded = encoders.with_ffmpeg(
            "png", _PIXEL_FORMATS[first.mode], samples, {"pred": "mixed"}
        )
    elif first.mode == "L" and first.storage["bits"] < 8:
        encoded = _grey_of_few_bits(first)
    else:
        bits = min(first.storage["bits"], 8)  # Pillow reads it for palettes only
        encoded = encoders.with_pillow(encoders.pillow_image(first), "PNG", bits=bits)
    return _with_pixels(content, encoded, first)


def _grey_of_few_bits(page: Page) -> bytes:
    """Encoded as the indices of a palette: of greys Pillow takes the lowest bits, or writes 8."""
    bits = page.storage["bits"]
    step = 255 // (2**bits - 1)
    samples = stored_samples(page)
    levels = ((samples.astype(np.uint16) + step // 2) // step).astype(np.uint8)
    if page.transparent is not None:
        (key,) = page.transparent
        levels[(levels == key // step) & (samples != key)] ^= 1
    image = Image.fromarray(levels)
    image.putpalette(bytes(3 * 2**bits))
    indexed = encoders.with_pillow(image, "PNG", bits=bits)
    (_, header), *rest = _chunks(indexed)
    header = _chunk(b"IHDR", header[8:_COLOUR_TYPE] + b"\0" + header[_COLOUR_TYPE + 1 : -4])
    return b"".join([_SIGNATURE, header, *(chunk for _, chunk in rest)])


def _with_pixels(source: bytes, encoded: bytes, first: Page) -> bytes:
    """`source` with the pixel chunks of `encoded`; its other chunks stay where they are.

    Args:
      source: a file.
      encoded: a file.
      first: the first frame, of which the palette and a thumbnail in EXIF are made.
    """
    new = [chunk for chunk in _chunks(encoded) if chunk[0] in _PIXEL_CHUNKS]
    transparency = [chunk for kind, chunk in _chunks(encoded) if kind == b"tRNS"]
    old = list(_chunks(source))
    same_type = old[0][1][_COLOUR_TYPE] == new[0][1][_COLOUR_TYPE]
    pixels = [chunk for kind, chunk in new if kind not in (b"IHDR", b"PLTE", b"IEND")]
    image = encoders.thumbnail_source(first)
    result = []
    for kind, chunk in old:
        if kind == b"IHDR":
            result.append(new[0][1])
        elif kind == b"PLTE" and first.mode == "P":
            result.append(_chunk(b"PLTE", first.palette[:, :3].tobytes()))
        elif kind == b"IDAT":
            result += ([] if same_type else transparency) + pixels
            pixels, transparency = [], []
        elif kind not in _PIXEL_CHUNKS and (same_type or kind not in _COLOUR_TYPE_CHUNKS):
            if kind == b"eXIf":
                chunk = _chunk(kind, previews.in_exif(chunk[8:-4], image))
            elif kind == b"iTXt":
                chunk = _chunk(kind, _with_clean_xmp(chunk[8:-4]))
            result.append(chunk)
    return b"".join([_SIGNATURE, *result, new[-1][1]])


def _with_clean_xmp(data: bytes) -> bytes:
    """The data of an iTXt chunk of XMP (PNG specification, section 11.3.3.4) without previews."""
    if not (found := _XMP.match(data)):
        return data
    header, xmp = data[: found.end()], data[found.end() :]
    if found["compressed"] == b"\0":
        return header + previews.in_xmp(xmp)
    decompressor = zlib.decompressobj()
    try:
        xmp = decompressor.decompress(xmp, _MAX_XMP)
    except zlib.error:  # damaged: nothing shows it
        return data
    return header + zlib.compress(previews.in_xmp(xmp)) if decompressor.eof else data


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", checksum)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and all bytes of each chunk up to IEND."""
    position = len(_SIGNATURE)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        yield kind, content[position : position + length + 12]
        position += length + 12
        if kind == b"IEND":
            return
