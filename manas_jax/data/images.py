"""Reads and writes images for training and scoring.

Pixels are 8-bit RGB of shape (height, width, 3). Other files are converted as follows:

- grayscale is repeated over the three channels, palettes are looked up, CMYK is converted;
- 16-bit samples are reduced to their upper 8 bits (65535 becomes 255; nothing is clipped);
- alpha is dropped, not composited: the colours under it are what was recorded, and a rainy image
  and its clean one must be treated alike;
- EXIF orientation is applied;
- of an animation or a multi-page file only the first frame is read.

`inference.image_files` reads and writes images without such losses.
"""

import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from manas_jax.errors import UserError
from manas_jax.files import has_suffix, output_file

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

_EXIF_ORIENTATION = 0x0112
_SWAPPED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap height and width
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, MemoryError)
"""What Pillow raises for damaged files, which depends on the format and on the damage."""


def is_image(path) -> bool:
    """Whether a file name has the suffix of an image and is not hidden."""
    return has_suffix(path, SUFFIXES)


def read(path) -> np.ndarray:
    """Decodes an image file to RGB, uint8 (height, width, 3), as the module's docstring states.

    Raises:
      UserError: the file is missing, empty, truncated, not an image, or holds samples without a
        standard range (floating point, or integers beyond 16 bits).
    """
    with _open(path) as image:
        try:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "I" or image.mode.startswith("I;16"):
                return _from_16_bit(np.asarray(image), path)
            if image.mode == "F":
                raise UserError(
                    f"{path}: floating-point samples have no standard range; convert it to 8 or "
                    "16 bits"
                )
            return np.array(image.convert("RGB"))
        except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
            raise UserError(damage_message(path, error)) from error


def size(path) -> tuple[int, int]:
    """Returns the (height, width) of what `read` returns, from the file's header alone.

    Raises:
      UserError: the file is missing, empty or not an image.
    """
    with _open(path) as image:
        try:
            width, height = image.size
            # `getexif` may decode the file if it has no EXIF.
            has_exif = "exif" in image.info or image.format == "TIFF"
            swapped = has_exif and image.getexif().get(_EXIF_ORIENTATION) in _SWAPPED
        except DECODE_ERRORS as error:
            raise UserError(damage_message(path, error)) from error
    return (width, height) if swapped else (height, width)


def write_png(path, pixels: np.ndarray) -> None:
    """Writes uint8 `pixels` of shape (height, width, 3) as PNG, completely or not at all.

    Missing folders are created.

    Raises:
      ValueError: `pixels` is not uint8 of shape (height, width, 3).
      UserError: `path` cannot be written.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"expected uint8 of shape (H, W, 3), got {pixels.dtype} of {pixels.shape}")
    with output_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _open(path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image") from error
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise UserError(damage_message(path, error)) from error


def damage_message(path, error: Exception) -> str:
    """The error message for an image that Pillow cannot decode."""
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return f"{path}: the file is empty (0 bytes); copy it again or remove it"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path}: cannot be read as an image ({reason}); copy it again or remove it"


def _from_16_bit(samples: np.ndarray, path) -> np.ndarray:
    """Upper bytes of (height, width) samples, as Pillow reduces 16-bit RGB, in 3 channels."""
    if samples.min() < 0 or samples.max() > 65535:
        raise UserError(f"{path}: integer samples beyond 16 bits; convert it to 8 or 16 bits")
    gray = (samples.astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)
