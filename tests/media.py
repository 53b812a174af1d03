"""Noise images in Pillow's modes, their encoded bytes, and what a video holds."""

import io
import struct

import av
import numpy as np
from PIL import Image

from manas_jax.inference import video


def noise(*shape, seed=0, dtype=np.uint8):
    """Uniform samples; `seed` may be a generator, which advances."""
    high = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, high, shape, dtype, endpoint=True)


def noise_image(mode, height, width, seed=0):
    """A Pillow image of noise in one of its modes."""
    draw, size = np.random.default_rng(seed), (height, width)
    if mode == "1":
        return Image.fromarray(noise(*size, seed=draw) > 127)
    if mode == "I;16":
        return Image.fromarray(noise(*size, seed=draw, dtype=np.uint16))
    if mode == "P":
        image = Image.fromarray(noise(*size, seed=draw) % 50)
        image.putpalette(noise(50, 3, seed=draw).tobytes())
        return image
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    pixels = noise(*size, *channels, seed=draw)
    return Image.fromarray(pixels, "CMYK" if mode == "CMYK" else None)


def encoded(image, format, **options):
    """The bytes of a Pillow image's file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def raw_tiff(data, size, bits, photometric, tags=None, order="<"):
    """A TIFF of one strip of `data`, without compression.

    Args:
      data: bytes as the file stores them.
      size: (height, width).
      bits: per sample of a pixel, a tuple.
      photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 Lab.
      tags: further ones, each a tuple of 16-bit numbers.
      order: "<" or ">", of bytes.
    """
    fields = {256: size[1:], 257: size[:1], 258: bits, 259: (1,), 262: (photometric,)}
    fields |= {273: (0,), 277: (len(bits),), 278: size[:1], 279: (len(data),)} | (tags or {})
    start = 8 + 2 + 12 * len(fields) + 4  # of what does not fit the entries
    far, entries = b"", b""
    for tag, values in sorted(fields.items()):
        kind = "L" if tag in (273, 279) else "H"
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if tag == 273:
            offset_at = 8 + 2 + len(entries) + 8
        if len(packed) > 4:
            packed, far = struct.pack(f"{order}L", start + len(far)), far + packed
        entries += struct.pack(f"{order}HHL", tag, "HL".index(kind) + 3, len(values))
        entries += packed.ljust(4, b"\0")
    header = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HL", 42, 8)
    directory = header + struct.pack(f"{order}H", len(fields)) + entries + bytes(4) + far
    content = bytearray(directory + data)
    struct.pack_into(f"{order}L", content, offset_at, len(directory))
    return bytes(content)


UNREADABLE_TIFFS = {
    "signed samples": ((8,), 1, {339: (2,)}),
    "signed or beyond 16 bits": ((16,), 1, {339: (2,)}),
    "beyond 16 bits": ((32,), 1, {}),
    "floating-point": ((32,), 1, {339: (3,)}),
    "unusual kind of samples": ((16,), 1, {339: (3,)}),
    "samples of 12 bits": ((12,), 1, {}),
    "kind of samples": ((10, 10, 10), 2, {}),
    "Lab colours": ((8, 8, 8), 8, {}),
    "separate planes": ((16, 16, 16), 2, {284: (2,)}),
    "in separate planes": ((8,), 0, {284: (2,)}),
    "separate": ((8, 8, 8, 8), 2, {284: (2,), 338: (1,)}),
    "subsampled colours": ((8, 8, 8), 6, {}),
    "a palette of 8 bits": ((8,), 3, {320: tuple(range(256)) * 3}),
}
"""Part of the message -> bits, photometric and tags of TIFFs whose samples are not understood."""


def look(path):
    """What is in a video: its frames as displayed, and its streams' packets."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
        stream = file.streams.video[0]
        found = {
            "frames": [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in frames],
            "times": [frame.time for frame in frames],
            "rotation": frames[0].rotation,
            "size": (frames[0].height, frames[0].width),
            "format": frames[0].format.name,
            "tags": {name: getattr(frames[0], name) for name in video.COLOUR_TAGS},
            "codec": stream.codec.canonical_name,
            "rate": stream.average_rate,
            "title": file.metadata.get("title"),
            "language": stream.metadata.get("language"),
            "duration": file.duration,
        }
    with av.open(str(path)) as file:
        packets = [p for p in file.demux(audio=0) if p.size] if file.streams.audio else []
        found["sound"] = [(bytes(p), p.pts * p.time_base) for p in packets]
    return found
