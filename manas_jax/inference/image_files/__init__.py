"""Image files whose pixel values change and nothing else: read, restore, write in the same format.

`read` gives the RGB of every frame as it is displayed. `write` puts new RGB into a file that is
otherwise the one read:

- format, mode (1-bit, greyscale, palette, CMYK, RGB) and bit depth (8 or 16) stay;
- alpha and transparency stay bit for bit;
- a palette keeps its length and transparency; its colours are fitted to the new ones, without
  dithering;
- the stored layout stays: frames are turned upright, files keep their EXIF orientation;
- metadata (EXIF, ICC, XMP, text, resolution) stays. In PNG, JPEG and TIFF this holds for every
  chunk, segment and tag that does not describe how the pixels are stored;
- JPEG keeps its quantisation tables, subsampling and progressive order, TIFF its compression and
  predictor, WebP stays lossless where it was.

Colours keep their ICC profile and are never converted to another one.

Limits of formats and encoders: animations are encoded again, so frames look the same, while
disposal, blending and cropping are the encoder's choice, which also merges equal frames; PNG loses
interlacing and TIFF its tiles; only the first image of a JPEG with several (MPO) stays; directories
beside a TIFF's pages (SubIFDs) are dropped; lossy formats lose quality again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import struct
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from manas_jax.data import images
from manas_jax.errors import UserError
from manas_jax.files import has_suffix, output_file
from manas_jax.inference.image_files import bmp, decode, gif, jpeg, png, ppm, tiff, webp
from manas_jax.inference.image_files.pixels import Page, rgb, with_rgb

SUFFIXES = images.SUFFIXES | {".apng", ".gif", ".pbm"}
MAX_PIXELS = 10**9
"""Files whose headers claim more, in all frames together, are refused undecoded."""
MAX_PIXELS_PER_BYTE = 8 * 1032
"""DEFLATE packs 1032:1 at most (https://zlib.net/zlib_tech.html), and a pixel takes a bit at least.
JPEG, GIF and lossy WebP stay below. Frames of one colour can exceed it in lossless WebP and in fax
TIFF, so it is applied to frames beyond `TRUSTED_PIXELS` only."""
TRUSTED_PIXELS = 89_478_485
"""Smaller frames are decoded however short the file is. The value is Pillow's own limit."""

_FORMATS: dict[str, ModuleType] = {
    "PNG": png,
    "JPEG": jpeg,
    "WEBP": webp,
    "TIFF": tiff,
    "BMP": bmp,
    "GIF": gif,
    "PPM": ppm,
}
"""Pillow's name of a format -> the module with its `storage` and `encode`."""
# Raised for damaged files: also by Pillow's parsers of metadata.
_DAMAGE = (*images.DECODE_ERRORS, IndexError, KeyError, TypeError, OverflowError)

_pillow_limit = threading.RLock()


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """An image file in memory.

    Attributes:
      name: what messages call it.
      format: Pillow's name of the format, such as 'PNG'.
      frames: RGB, uint8 or uint16 of shape (H, W, 3), upright and read-only: one frame of a still
        image, all of an animation or a TIFF of several pages. The pages of a TIFF may differ in
        size and bit depth.
    """

    name: str
    format: str
    frames: Sequence[np.ndarray] = dataclasses.field(repr=False)
    _pages: Sequence[Page] = dataclasses.field(repr=False)
    _content: bytes = dataclasses.field(repr=False)


def is_picture(path: str | os.PathLike) -> bool:
    """Whether `path` has the suffix of an image file and is not hidden."""
    return has_suffix(path, SUFFIXES)


def read(source: str | os.PathLike | bytes, name: str | None = None) -> Picture:
    """Decodes an image file.

    Args:
      source: its path or its content.
      name: what messages call it; the path by default.

    Raises:
      UserError: missing, unreadable, empty, truncated, of an unknown format, of more than
        `MAX_PIXELS` or more than its bytes can hold, or of samples that cannot be written back
        (floating point, beyond 16 bits, 16-bit CMYK or PPM, Lab).
    """
    content, name = _load(source, name)
    with _open(content, name) as image:
        format = "JPEG" if image.format == "MPO" else image.format
        count = 1 if format == "JPEG" else getattr(image, "n_frames", 1)
        pages, pixels = [], 0
        for index in range(count):
            image.seek(index)
            pixels += image.width * image.height
            _check_size(image, f"frame {index + 1} of {count}", pixels, len(content), name)
            storage = _FORMATS[format].storage(image, content)
            pages.append(decode.read_page(image, index, count, content, name, storage))
    return Picture(name, format, [rgb(page) for page in pages], pages, content)


def write(
    picture: Picture,
    restored: Sequence[np.ndarray],
    target: str | os.PathLike | BinaryIO,
) -> None:
    """Writes `picture` with new RGB; a file is written completely or not at all.

    Args:
      picture: as `read` gave it.
      restored: new RGB in the shapes and types of `picture.frames`. With the old RGB lossless
        formats get the same samples again.
      target: a path, of any suffix, or a binary stream.

    Raises:
      ValueError: `restored` differs from `picture.frames` in number, shape or type.
      UserError: `target` cannot be written, or the encoder cannot store what the file held.
    """
    given, expected = ([(x.shape, x.dtype) for x in xs] for xs in (restored, picture.frames))
    if given != expected:
        raise ValueError(f"expected frames of {expected}, got {given}")
    pages = [with_rgb(page, new) for page, new in zip(picture._pages, restored, strict=True)]
    try:
        with _without_pillow_limit():
            content = _FORMATS[picture.format].encode(picture._content, pages)
    except (OSError, OverflowError, RuntimeError, struct.error) as error:  # beyond the format
        raise UserError(
            f"{picture.name}: cannot be stored as {picture.format} ({error}); convert it first"
        ) from error
    if hasattr(target, "write"):
        target.write(content)
    else:
        with output_file(target) as temporary:
            temporary.write_bytes(content)


def _load(source: str | os.PathLike | bytes, name: str | None) -> tuple[bytes, str]:
    """Content and name."""
    if isinstance(source, bytes):
        name, content = name or "the picture", source
    else:
        name = name or os.fspath(source)
        try:
            content = pathlib.Path(source).read_bytes()
        except FileNotFoundError:
            raise UserError(f"{name}: no such picture") from None
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None
    if not content:
        raise UserError(f"{name}: the file is empty (0 bytes); copy it again or remove it")
    return content, name


@contextlib.contextmanager
def _open(content: bytes, name: str) -> Iterator[Image.Image]:
    """Opens an image with Pillow; errors of decoding within become a UserError."""
    try:
        with (
            _without_pillow_limit(),
            Image.open(io.BytesIO(content), formats=tuple(_FORMATS)) as image,
        ):
            yield image
    except UnidentifiedImageError:
        raise UserError(
            f"{name}: no picture of a known format ({', '.join(_FORMATS)}), or a damaged one"
        ) from None
    except _DAMAGE as error:
        raise UserError(images.damage_message(name, error)) from error


@contextlib.contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Lifts Pillow's limit of pixels, which `MAX_PIXELS` replaces.

    It is a global of Pillow that its decoders read, hence the lock.
    """
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_size(image: Image.Image, frame: str, total: int, file_size: int, name: str) -> None:
    """Refuses decompression bombs, by what the header claims.

    Args:
      image: the file at one of its frames.
      frame: which one, for messages.
      total: pixels of this and all earlier frames.
      file_size: bytes.
      name: what messages call the file.
    """
    claim = f"{name}: claims {image.width}x{image.height} pixels in {frame}"
    if total > MAX_PIXELS:
        raise UserError(f"{claim}, more than {MAX_PIXELS:,} in all; split it into smaller ones")
    if image.width * image.height > max(TRUSTED_PIXELS, MAX_PIXELS_PER_BYTE * file_size):
        raise UserError(
            f"{claim}, more than {file_size:,} bytes can hold; copy it again or remove it"
        )
