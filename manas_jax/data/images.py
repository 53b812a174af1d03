"""Reading and writing pictures: the one place where files become pixels and pixels files.

Everything is 8-bit RGB in height, width, channel order. What a file holds beyond that is reduced in
one stated way:

- grayscale is repeated over the three channels, palettes are looked up, CMYK is converted;
- 16-bit samples keep their upper 8 bits (65535 becomes 255; nothing is clipped);
- alpha is dropped, not composited: it says how a picture is laid over a page, whereas the colours
  under it are what was recorded, and a rainy picture and its clean one must be treated alike;
- EXIF orientation is applied, so a picture is seen as its camera meant it;
- of an animation or a multi-page file the first frame is taken.
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
_SIDEWAYS = frozenset({5, 6, 7, 8})  # the EXIF orientations that swap height and width
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, MemoryError)
"""What Pillow raises for damaged files, depending on format and on where the damage is."""


def is_picture(path) -> bool:
    """Whether the name of `path` ends like that of a picture (hidden files never do)."""
    return has_suffix(path, SUFFIXES)


def read(path) -> np.ndarray:
    """Decodes the picture at `path` into uint8 of shape (height, width, 3), RGB.

    See the module's docstring for what becomes of alpha, 16-bit samples, palettes and orientation.

    Raises:
      UserError: the file is missing, empty, truncated, no picture, or holds samples that have no
        agreed range (floating point, or integers beyond 16 bits).
    """
    with _open(path) as image:
        try:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "I" or image.mode.startswith("I;16"):
                return _from_16_bit(np.asarray(image), path)
            if image.mode == "F":
                raise UserError(
                    f"{path}: floating-point samples have no agreed range; convert it to 8 or "
                    "16 bits"
                )
            return np.array(image.convert("RGB"))
        except (*DAMAGE, Image.DecompressionBombError) as error:
            raise UserError(damaged(path, error)) from error


def size(path) -> tuple[int, int]:
    """The (height, width) that `read` would give, from the file's header alone.

    Raises:
      UserError: the file is missing, empty or no picture.
    """
    with _open(path) as image:
        try:
            width, height = image.size
            # Looking for EXIF in a file that has none may decode it: ask only where it is at hand.
            has_exif = "exif" in image.info or image.format == "TIFF"
            sideways = has_exif and image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
        except DAMAGE as error:
            raise UserError(damaged(path, error)) from error
    return (width, height) if sideways else (height, width)


def write_png(path, pixels: np.ndarray) -> None:
    """Writes uint8 `pixels` of shape (height, width, 3) to `path` as PNG, wholly or not at all.

    Missing folders are made.

    Raises:
      ValueError: `pixels` is not uint8 of shape (height, width, 3).
      UserError: the place cannot be written to.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"expected uint8 of shape (H, W, 3), got {pixels.dtype} of {pixels.shape}")
    with output_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _open(path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such picture") from error
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise UserError(damaged(path, error)) from error


def damaged(path, error: Exception) -> str:
    """The message for a picture that Pillow gave up on with this error."""
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return f"{path}: the file is empty (0 bytes); copy it again or remove it"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path}: cannot be read as a picture ({reason}); copy it again or remove it"


def _from_16_bit(samples: np.ndarray, path) -> np.ndarray:
    """Upper bytes of (height, width) samples, as Pillow does it for 16-bit RGB, in 3 channels."""
    if samples.min() < 0 or samples.max() > 65535:
        raise UserError(f"{path}: integer samples beyond 16 bits; convert it to 8 or 16 bits")
    gray = (samples.astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)
