"""Frames as Pillow opens them -> `Page`, with all 16 bits where Pillow itself keeps 8."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from manas_jax.data import images
from manas_jax.errors import UserError
from manas_jax.inference.image_files import encoders, heif, png, tiff
from manas_jax.inference.image_files.pixels import Page, upright

_COLOUR_OF_16_BITS = ("RGB;16", "RGBA;16", "LA;16")
_EQUIVALENT_MODES = {"RGBX": "RGB", "YCbCr": "RGB", "PA": "RGBA", "RGBa": "RGBA"}


def read_page(
    image: Image.Image, index: int, count: int, content: bytes, name: str, storage: dict[str, Any]
) -> Page:
    """Decodes the current frame.

    Args:
      image: an open image, at frame `index`, not loaded yet.
      index: number of the frame.
      count: frames of the file.
      content: the file.
      name: what messages call it.
      storage: see `Page`.

    Raises:
      UserError: the samples cannot be written back, or it is an animation of 16 bits.
    """
    is_tiff, is_animation = image.format == "TIFF", count > 1 and image.format != "TIFF"
    rawmode = _rawmode(image)
    if problem := _unsupported(image, rawmode, is_animation):
        raise UserError(f"{name}: {problem}")
    # Pillow turns a TIFF upright when it loads and drops the tag; a PNG's may follow its pixels.
    orientation = image.tag_v2.get(ExifTags.Base.Orientation, 1) if is_tiff else 1
    if rawmode.startswith("RGBa"):  # Pillow would divide by alpha, which loses bits
        rawmode = rawmode.replace("a", "A")
        _set_rawmode(image, rawmode)
    palette = None
    if image.format == "HEIF" and storage["bits"] > 8:
        mode, samples = heif.deep_samples(content, storage["bits"])
    elif rawmode.startswith(_COLOUR_OF_16_BITS):
        mode, samples = _colour_of_16_bits(image, index, rawmode, content)
    else:
        white_is_zero = images.is_16_bit_white_is_zero(image)
        image.load()
        if image.format == "GIF" or is_animation:  # Pillow changes the mode between frames
            frame = image.convert("RGBA" if image.has_transparency_data else "RGB")
        else:
            frame = image.convert(_EQUIVALENT_MODES.get(image.mode, image.mode))
        mode, samples, palette = _samples(frame)
        if white_is_zero:  # written as black-is-zero, as Pillow does with fewer bits
            samples = 65535 - samples
    if not is_tiff:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        samples = upright(samples, orientation)
    samples.flags.writeable = False
    transparent = None
    if image.format == "PNG":
        transparent = png.transparent_colour(image, mode, storage["bits"])
    duration = image.info.get("duration")
    return Page(mode, samples, orientation, palette, transparent, duration, storage)


def _rawmode(image: Image.Image) -> str:
    """Pillow's name of the layout of samples in the file; '' if its decoder has none."""
    args = image.tile[0].args if image.tile else ""
    rawmode = args if isinstance(args, str) else args[0] if isinstance(args, tuple) else args
    return rawmode if isinstance(rawmode, str) else ""


def _set_rawmode(image: Image.Image, rawmode: str) -> None:
    image.tile = [
        tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:]))
        for tile in image.tile
    ]


def bytes_per_pixel(image: Image.Image) -> int:
    """Bytes of a pixel of the current frame as RGB of its bit depth."""
    is_deep = image.mode.startswith("I") or ";16" in _rawmode(image)
    return 6 if is_deep or image.info.get("bit_depth", 8) > 8 else 3  # the latter of HEIC


def _unsupported(image: Image.Image, rawmode: str, is_animation: bool) -> str | None:
    """Why the samples cannot be written back, and what to do; None if they can."""
    if problem := images.unsupported(image):
        return problem
    if image.mode == "La":
        return "greyscale with premultiplied alpha; convert it to RGB"
    if rawmode.startswith("CMYK;16"):
        return "16-bit CMYK; convert it to 8 bits or to RGB"
    if image.format == "TIFF" and tiff.has_unknown_channel(image):
        return "an extra channel of no stated meaning; mark it as alpha or remove it"
    if image.format == "PPM" and image.mode == "RGB" and image.tile[0].codec_name == "ppm":
        maximum = image.tile[0].args
        maximum = maximum[-1] if isinstance(maximum, tuple) else maximum
        if maximum > 255:
            return "PPM of 16 bits; convert it to PNG or TIFF"
    if rawmode.startswith(_COLOUR_OF_16_BITS):
        if is_animation:
            return "animation of 16 bits; convert it to 8 bits"
        if not encoders.fits_ffmpeg(image.width, image.height):
            return "too many pixels for colours of 16 bits; convert it to 8 bits or split it"
    return None


def _colour_of_16_bits(
    image: Image.Image, index: int, rawmode: str, content: bytes
) -> tuple[str, np.ndarray]:
    """Mode and uint16 samples of an image of 16 bits in several channels.

    Pillow decodes those to 8 bits: the upper byte of each sample, or its lower byte if told the
    opposite byte order. Decoding both ways gives the sample.
    """
    if rawmode.startswith("LA;16"):  # has four bytes per pixel, as 8-bit RGBA has
        _set_rawmode(image, "RGBA")
        return "LA", np.asarray(image).view(">u2").astype(np.uint16)
    mode, order = rawmode.split(";16")
    native = "L" if sys.byteorder == "little" else "B"
    opposite = {"L": "B", "B": "L"}[native if order == "N" else order]
    upper = np.asarray(image).astype(np.uint16) << 8
    with Image.open(io.BytesIO(content), formats=(image.format,)) as again:
        again.seek(index)
        _set_rawmode(again, f"{mode};16{opposite}")
        return mode, upper | np.asarray(again)


def _samples(image: Image.Image) -> tuple[str, np.ndarray, np.ndarray | None]:
    """Mode, samples and palette of an image in a mode that Pillow holds fully."""
    samples = np.array(image)
    if image.mode.startswith("I"):
        return "L", samples.astype(np.uint16), None
    if image.mode != "P":
        return image.mode, samples, None
    colours = np.frombuffer(bytes(image.getpalette("RGB")), np.uint8).reshape(-1, 3)
    if samples.max(initial=0) >= len(colours):
        raise ValueError("an index beyond the palette")
    alpha = np.full(len(colours), 255, np.uint8)
    transparency = image.info.get("transparency")
    if isinstance(transparency, bytes):
        alpha[: len(transparency)] = list(transparency[: len(alpha)])
    elif transparency is not None:
        alpha[transparency] = 0
    return image.mode, samples, np.column_stack([colours, alpha])
