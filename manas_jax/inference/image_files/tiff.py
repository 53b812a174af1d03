"""TIFF: every page with new strips and all tags that do not describe pixel storage."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from manas_jax.inference.image_files import encoders, previews
from manas_jax.inference.image_files.pixels import Page, stored_samples

Directory = TiffImagePlugin.ImageFileDirectory_v2

PIXEL_TAGS = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 288, 289, 292, 293, 317, 320}
    | {322, 323, 324, 325, 332, 334, 338, 339, 340, 341, 347, *range(512, 522)}
    | {529, 530, 531, 532}
)
"""Tags that describe how the pixels are stored: the encoder's values replace them."""
_COMPRESSION, _OFFSETS, _SAMPLES_PER_PIXEL, _COUNTS, _PREDICTOR, _EXTRA_SAMPLES = (
    259, 273, 277, 279, 317, 338,
)  # fmt: skip
_LEFT_OUT = {330: "directories beside the pages (SubIFDs)", 37724: "Photoshop layers"}
_PREVIEWS = {700: previews.in_xmp, 34377: previews.in_photoshop_resources}
_INTEROPERABILITY = 40965  # holds an offset within EXIF's own directory
_HORIZONTAL, _DEFLATE, _OLD_DEFLATE = 2, 8, 32946
_FFMPEG_COMPRESSION = {"raw": "raw", "packbits": "packbits", "tiff_lzw": "lzw"}  # else deflate
_PILLOW_COMPRESSION = frozenset(
    {"raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "zstd", "lzma"}
)
_BILEVEL_COMPRESSION = _PILLOW_COMPRESSION | {"tiff_ccitt", "group3", "group4"}


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Compression, predictor and kind of alpha, and the tags to keep."""
    horizontal = image.tag_v2.get(_PREDICTOR) == _HORIZONTAL
    left_out = [name for tag, name in _LEFT_OUT.items() if tag in image.tag_v2]
    options = {
        "compression": image.info.get("compression", "raw"),
        "extra_samples": image.tag_v2.get(_EXTRA_SAMPLES, (2,))[:1],
        "tags": _metadata_tags(image),
        **({"predictor": _HORIZONTAL} if horizontal else {}),
    }
    return options, left_out


def has_unknown_channel(image: Image.Image) -> bool:
    """Whether there are more samples per pixel than Pillow's mode has channels."""
    return image.tag_v2.get(_SAMPLES_PER_PIXEL, 1) > len(image.getbands())


def _metadata_tags(image: Image.Image) -> Directory:
    tags = Directory()
    for tag, value in image.tag_v2.items():
        if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            entries = image.getexif().get_ifd(tag)
            tags[tag] = {key: entries[key] for key in entries if key != _INTEROPERABILITY}
        elif tag not in PIXEL_TAGS and tag not in _LEFT_OUT:
            tags.tagtype[tag] = image.tag_v2.tagtype[tag]
            tags[tag] = _PREVIEWS[tag](value) if tag in _PREVIEWS else value
    return tags


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """A new file of the pages in turn, each as its directory, what that refers to, and strips."""
    out = io.BytesIO()
    out.write(b"II*\0" + bytes(4))
    link = 4  # where the offset of the next directory belongs
    for page in pages:
        deep = encoders.is_16_bit_colour(page)
        directory, strips = _directory(page, _by_ffmpeg(page) if deep else _by_pillow(page))
        out.write(bytes(out.tell() % 2))
        start = out.tell()
        directory = directory.tobytes(start)
        out.write(directory)
        out.write(strips)
        out.seek(link)
        out.write(struct.pack("<L", start))
        link = start + 2 + 12 * struct.unpack_from("<H", directory)[0]
        out.seek(0, io.SEEK_END)
    return out.getvalue()


def _directory(page: Page, encoded: bytes) -> tuple[Directory, bytes]:
    """Directory and strips of a page: its own tags, and pixels as in the file `encoded`."""
    directory = Directory()
    with Image.open(io.BytesIO(encoded), formats=("TIFF",)) as image:
        for tags, all_tags in ((page.storage["tags"], True), (image.tag_v2, False)):
            for tag in tags:
                if all_tags or tag in PIXEL_TAGS:
                    directory.tagtype[tag] = tags.tagtype[tag]
                    directory[tag] = _with_new_previews(tags[tag], page)
        places = list(zip(image.tag_v2[_OFFSETS], image.tag_v2[_COUNTS], strict=True))
    if encoders.is_16_bit_colour(page) and "predictor" in page.storage:
        directory[_PREDICTOR] = page.storage["predictor"]
    if directory[_COMPRESSION] == _OLD_DEFLATE:  # FFmpeg's number for the same method
        directory[_COMPRESSION] = _DEFLATE
    if page.mode == "RGBA":
        directory[_EXTRA_SAMPLES] = page.storage["extra_samples"]
    counts = [count for _, count in places]
    directory.tagtype[_OFFSETS] = directory.tagtype[_COUNTS] = TiffImagePlugin.TiffTags.LONG
    directory[_COUNTS] = tuple(counts)
    directory[_OFFSETS] = tuple(np.cumsum([0, *counts[:-1]]).tolist())
    return directory, b"".join(encoded[offset : offset + count] for offset, count in places)


def _with_new_previews(value: Any, page: Page) -> Any:
    """The value of a tag; its bytes, or those of a directory, may hold previews."""
    if isinstance(value, bytes) and b"\xff\xd8\xff" in value:
        return previews.in_bytes(value, encoders.thumbnail_source(page))
    if isinstance(value, dict):
        return {tag: _with_new_previews(entry, page) for tag, entry in value.items()}
    return value


def _by_pillow(page: Page) -> bytes:
    compression = page.storage["compression"]
    if compression not in (_BILEVEL_COMPRESSION if page.mode == "1" else _PILLOW_COMPRESSION):
        compression = "tiff_adobe_deflate"
    options = {"quality": 95} if compression == "jpeg" else {}
    if "predictor" in page.storage and compression not in ("raw", "packbits", "jpeg"):
        options["tiffinfo"] = {_PREDICTOR: page.storage["predictor"]}
    image = encoders.pillow_image(page)
    return encoders.with_pillow(image, "TIFF", compression=compression, **options)


def _by_ffmpeg(page: Page) -> bytes:
    samples = stored_samples(page).astype("<u2")
    if "predictor" in page.storage:  # FFmpeg does not apply it
        samples[:, 1:] -= samples[:, :-1].copy()
    pixel_format = {"RGB": "rgb48le", "RGBA": "rgba64le"}[page.mode]
    compression = _FFMPEG_COMPRESSION.get(page.storage["compression"], "deflate")
    options = {"compression_algo": compression}
    return encoders.with_ffmpeg("tiff", pixel_format, samples, options)
