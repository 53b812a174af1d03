"""Encoding of pixels by Pillow and FFmpeg, for all formats."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from PIL import Image

from manas_jax.inference.image_files.pixels import Page, rgb, stored_samples


def pillow_image(page: Page) -> Image.Image:
    """The page as Pillow holds it; not for `is_16_bit_colour`."""
    samples = stored_samples(page)
    if page.mode != "P":
        return Image.fromarray(samples, "CMYK" if page.mode == "CMYK" else None)
    image = Image.fromarray(samples)
    image.putpalette(page.palette[:, :3].tobytes())
    return image


def thumbnail_source(page: Page) -> Image.Image:
    """The page as RGB of 8 bits, as the file stores it."""
    colours = stored_samples(dataclasses.replace(page, samples=rgb(page)))
    return Image.fromarray(
        colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)
    )


def with_pillow(image: Image.Image, format: str, **options: Any) -> bytes:
    """The file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def animation_options(pages: Sequence[Page]) -> dict[str, Any]:
    """Pillow's options for an animation of these frames."""
    return {"save_all": True, "duration": [page.duration or 0 for page in pages]}


def is_16_bit_colour(page: Page) -> bool:
    """Whether there are several channels of 16 bits, which Pillow cannot hold."""
    return page.samples.dtype == np.uint16 and page.mode != "L"


def fits_ffmpeg(width: int, height: int) -> bool:
    """Whether FFmpeg takes an image of this size (`av_image_check_size` in libavutil)."""
    return (width + 128) * (height + 128) < 2**31 // 8


def with_ffmpeg(codec: str, pixel_format: str, samples: np.ndarray, options: dict) -> bytes:
    """The file that FFmpeg writes.

    Args:
      codec: FFmpeg's name of the encoder.
      pixel_format: FFmpeg's packed format.
      samples: (H, W, channels) in the byte order of the format.
      options: of the encoder.
    """
    height, width = samples.shape[:2]
    frame = av.VideoFrame(width, height, pixel_format)
    rows = np.zeros((height, frame.planes[0].line_size), np.uint8)
    packed = samples.view(np.uint8).reshape(height, -1)
    rows[:, : packed.shape[1]] = packed
    frame.planes[0].update(rows)
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = width, height, pixel_format
    context.time_base, context.options = 1, options
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
