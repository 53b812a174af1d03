"""Noise images in Pillow's modes, their encoded bytes, and what a video holds."""

import io

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
