"""Reads and writes images for training and scoring.

Pixels are 8-bit RGB of shape (height, width, 3). Other files are converted as follows:

- greyscale is repeated over the three channels, palettes are looked up, CMYK is converted;
- 16-bit samples are reduced to their upper 8 bits (65535 becomes 255; nothing is clipped);
- alpha is dropped, not composited: the colours under it are what was recorded, and a rainy image
  and its clean one must be treated alike;
- EXIF orientation is applied;
- of an animation or a multi-page file only the first frame is read.

`inference.image_files` reads and writes images without such losses.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pathlib
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from manas_jax.errors import UserError, one_line
from manas_jax.files import first_few, has_suffix, list_folder, output_file

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}
)
OTHER_SUFFIXES = frozenset({".gif", ".apng", ".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2"})
"""Of images that are left out of folders, with a warning."""
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Pillow's names of the formats that are read; others may run programs, as EPS does."""

EXIF_ORIENTATION = 0x0112
_SWAPPED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap height and width
_EXIF_KEYS = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
_DESCRIBING_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # of PNG; the last three hold XMP, say
# TIFF tags and some of their values.
_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _PLANAR = 258, 259, 262, 266, 284
_COLOUR_MAP, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBSAMPLING = 320, 338, 339, 530
_UNCOMPRESSED, _WHITE_IS_ZERO, _PALETTE, _YCBCR = 1, 0, 3, 6
_SEPARATE_PLANES, _PREMULTIPLIED, _UNSIGNED = 2, 1, 1

# Pillow refuses longer texts and profiles of PNGs, by default from 1 MiB on.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28


def is_image(path) -> bool:
    """Whether a file name has the suffix of an image and is not hidden."""
    return has_suffix(path, SUFFIXES)


def files_in(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The images in a folder, in natural order; warns of those of kinds that are left out.

    Raises:
      UserError: the folder is missing or cannot be read.
    """
    found = list_folder(folder, SUFFIXES | OTHER_SUFFIXES).files
    if ignored := [path for path in found if not is_image(path)]:
        kinds = ", ".join(sorted({path.suffix.lower() for path in ignored}))
        logging.warning(
            "data: %s: %s is not read in training and scoring, ignored; convert it to PNG",
            first_few(ignored),
            kinds,
        )
    return [path for path in found if is_image(path)]


def read(path) -> np.ndarray:
    """Decodes an image file to RGB, uint8 (height, width, 3), as the module's docstring states.

    Raises:
      UserError: the file is missing, unreadable, empty, truncated, not an image, or holds samples
        whose brightness is not known, see `unsupported`.
    """
    with opened(path, path) as image:
        if problem := unsupported(image):
            raise UserError(f"{path}: {problem}")
        white_is_zero = is_16_bit_white_is_zero(image)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "I" or image.mode.startswith("I;16"):
            return _from_16_bit(np.asarray(image), white_is_zero)
        return np.array(image.convert("RGB"))


def size(path) -> tuple[int, int]:
    """Returns the (height, width) of what `read` returns, from the file's header alone.

    Raises:
      UserError: the file is missing, unreadable, empty or not an image.
    """
    with opened(path, path) as image:
        width, height = image.size
        # Pillow has swapped the sides of a TIFF already. `getexif` decodes a PNG without EXIF.
        if image.format != "PNG" or _EXIF_KEYS & image.info.keys() or _is_described_late(image.fp):
            turned = image.getexif().get(EXIF_ORIENTATION) in _SWAPPED
        else:
            turned = False
        swapped = turned and image.format != "TIFF"
    return (width, height) if swapped else (height, width)


def _is_described_late(png: BinaryIO) -> bool:
    """Whether chunks that may state the orientation follow the pixels of a PNG; decodes nothing."""
    start, position, are_pixels_over = png.tell(), 8, False
    try:
        while True:
            png.seek(position)
            if len(head := png.read(8)) < 8:
                return False
            length, kind = struct.unpack(">L4s", head)
            if are_pixels_over and kind in _DESCRIBING_CHUNKS:
                return True
            are_pixels_over |= kind == b"IDAT"
            position += 12 + length
    finally:
        png.seek(start)


def write_png(path, pixels: np.ndarray, like=None, icc_profile: bytes | None = None) -> None:
    """Writes uint8 `pixels` of shape (height, width, 3) as PNG, completely or not at all.

    Missing folders are created. `like` is a file whose permissions it gets.

    Raises:
      ValueError: `pixels` is not uint8 of shape (height, width, 3).
      UserError: `path` cannot be written.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"expected uint8 of shape (H, W, 3), got {pixels.dtype} of {pixels.shape}")
    with output_file(path, like) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", icc_profile=icc_profile)


@contextlib.contextmanager
def opened(
    source: str | os.PathLike | io.BytesIO, name: object, formats: Sequence[str] = FORMATS
) -> Iterator[Image.Image]:
    """Opens an image with Pillow; whatever Pillow raises within becomes a UserError.

    Args:
      source: its path, or its content.
      name: what messages call it.
      formats: Pillow's names of those that it may have.

    Raises:
      UserError: the file is missing, unreadable or no image, or Pillow cannot decode it.
    """
    content = source if isinstance(source, io.BytesIO) else None
    with contextlib.ExitStack() as stack:
        if content is None:
            content = stack.enter_context(_open_file(source))
        try:
            with Image.open(content, formats=formats) as image:
                yield image
        except UserError:
            raise
        except UnidentifiedImageError:
            raise UserError(
                f"{name}: no image of a known format ({', '.join(formats)}), a damaged one, or one "
                "with an unusual kind of samples; convert it to PNG with 8 or 16 bits"
            ) from None
        except Exception as error:  # of any type, as formats and their metadata have many parsers
            raise UserError(
                f"{name}: cannot be read as an image ({one_line(error)}); copy it again or remove "
                "it"
            ) from error


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of an image file.

    Raises:
      UserError: the file is missing, unreadable, empty or not a regular file.
    """
    with _open_file(path) as file:
        return file.read()


def _open_file(path: str | os.PathLike) -> BinaryIO:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading from a pipe would block
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UserError(f"{path}: {kind}, and no image; name another file or remove it")
        if not status.st_size:
            raise UserError(f"{path}: the file is empty (0 bytes); copy it again or remove it")
        return open(path, "rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except (OSError, ValueError) as error:  # a name may hold a null character
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from error


def unsupported(image: Image.Image) -> str | None:
    """Why it is not known how bright the samples are that Pillow reads; None if it is known.

    Pillow ignores some of what a file states about its samples, or has no mode for it.

    Args:
      image: as `opened` gives it, not loaded yet.

    Returns:
      What is wrong with the file and what to do.
    """
    if image.mode == "F":
        return "floating-point samples have no standard range; convert it to 8 or 16 bits"
    if image.mode == "I" and image.format != "PPM":
        return "samples that are signed or beyond 16 bits; convert it to 8 or 16 bits, unsigned"
    if image.mode == "LAB":
        return "Lab colours; convert it to RGB"
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        return "CMYK without the marker that says whether 0 is white; convert it to RGB"
    return _unsupported_tiff(image) if image.format == "TIFF" else None


def is_16_bit_white_is_zero(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF of 16 bits, which Pillow applies to fewer bits only."""
    return (
        image.format == "TIFF"
        and image.mode.startswith("I;16")
        and image.tag_v2.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    )


def _unsupported_tiff(image: TiffImagePlugin.TiffImageFile) -> str | None:
    tags = image.tag_v2
    bits, photometric = set(tags.get(_BITS, (1,))), tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO)
    uncompressed = tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED
    plain = bits == {8} and photometric != _WHITE_IS_ZERO and tags.get(_FILL_ORDER, 1) == 1
    plain = plain and _PREMULTIPLIED not in tags.get(_EXTRA_SAMPLES, ())
    if set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) != {_UNSIGNED}:
        return "signed samples; convert it to 8 or 16 bits, unsigned"
    if not bits <= {1, 2, 4, 8, 16}:
        return f"samples of {max(bits)} bits; convert it to 8 or 16 bits"
    if tags.get(_PLANAR) == _SEPARATE_PLANES and not plain:
        return "channels in separate planes; interleave them"
    if photometric == _YCBCR and uncompressed and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1):
        return "subsampled colours without compression; convert it to RGB"
    if photometric == _YCBCR and uncompressed and image.mode != "YCbCr":  # as Pillow 12 has it
        return "colours as YCbCr without compression; convert it to RGB"
    if photometric == _PALETTE and max(tags.get(_COLOUR_MAP, (0,))) in range(1, 256):
        return "a palette of 8 bits, where TIFF has 16; convert it to RGB"
    return None


def _from_16_bit(samples: np.ndarray, white_is_zero: bool) -> np.ndarray:
    """Upper bytes of (height, width) samples, as Pillow reduces 16-bit RGB, in 3 channels."""
    grey = (samples.astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat((255 - grey if white_is_zero else grey)[..., None], 3, axis=-1)
