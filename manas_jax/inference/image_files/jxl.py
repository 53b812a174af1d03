"""JPEG XL of 8 bits, by pillow-jxl-plugin: lossless files stay lossless; written upright.

The plugin tells neither the bits nor whether there is an animation, so they are read from the
header of the codestream (ISO/IEC 18181-1, annex D), and it writes no ICC profiles.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from manas_jax.errors import UserError
from manas_jax.inference.image_files import encoders, previews
from manas_jax.inference.image_files.pixels import Page

PACKAGE = "pillow_jxl"
QUALITY = 95
_CODESTREAM, _CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_ALPHA = 0  # type of an extra channel
_SIZES = ((1, 9), (1, 13), (1, 18), (1, 30))
_BITS = ((8, 0), (10, 0), (12, 0), (1, 6))


def recognises(content: bytes) -> bool:
    """Whether a file starts as JPEG XL does."""
    return content.startswith((_CODESTREAM, _CONTAINER))


@functools.cache
def register() -> None:
    """Makes Pillow read and write JPEG XL, XMP included."""
    from pillow_jxl import JpegXLImagePlugin

    class JXLImageFile(JpegXLImagePlugin.JXLImageFile):
        def _open(self) -> None:
            super()._open()
            if xmp := dict(_boxes(self.fc)).get(b"xml "):
                self.info["xmp"] = xmp
            if not self.jpeg and "exif" in self.info:  # the decoder has turned it
                self.info["exif"] = _upright(self.info["exif"])
            if self.info.get("icc_profile") == _default_profile(self.mode):
                del self.info["icc_profile"]

    Image.register_open("JXL", JXLImageFile, recognises)


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of a codestream says.

    Attributes:
      bits: of a sample; of floating point as well.
      is_float: whether samples are floating-point numbers.
      is_animation: whether there may be several frames.
      channels: types of those beside the colours.
      is_lossy: whether colours are in XYB, as lossy encoders have them.
    """

    bits: int = 8
    is_float: bool = False
    is_animation: bool = False
    channels: tuple[int, ...] = ()
    is_lossy: bool = True


def read_header(content: bytes) -> Header:
    """The header of a file.

    Raises:
      IndexError: the file ends within it.
    """
    take = _Bits(_codestream(content)[2:])
    take.size()
    if take.flag():
        return Header()
    is_animation = False
    if take.flag():
        take(3)  # orientation, which the decoder applies
        if take.flag():
            take.size()
        if take.flag():
            take.preview()
        is_animation = take.flag()
        if is_animation:
            take.animation()
    bits, is_float = take.depth()
    take.flag()
    count = take.number((0, 0), (1, 0), (2, 4), (1, 12))
    channels = tuple(take.channel() for _ in range(count))
    return Header(bits, is_float, is_animation, channels, is_lossy=take.flag())


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Options for the same metadata and kind of compression.

    Raises:
      UserError: the plugin does not read or write all of the pixels.
    """
    header = read_header(content)
    is_deep_grey = image.mode == "I;16"
    problems = {
        "animation in JPEG XL": header.is_animation,
        "floating-point samples in JPEG XL": header.is_float,
        f"JPEG XL of {header.bits} bits": header.bits > 8 and not is_deep_grey,
        "JPEG XL with channels beside colours and transparency": set(header.channels) - {_ALPHA}
        or len(header.channels) > 1,
    }
    for problem, applies in problems.items():
        if applies:
            raise UserError(f"{problem}; convert it first")
    options = {key: image.info[key] for key in ("exif", "xmp") if key in image.info}
    if "exif" in options:
        options["exif"] = _upright(options["exif"])
    left_out = ["ICC profile"] if "icc_profile" in image.info else []
    return {"options": options, "lossless": not header.is_lossy and not image.jpeg}, left_out


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """A new file of the only page."""
    (page,) = pages
    options = previews.in_options(page.storage["options"], page)
    options |= {"lossless": page.storage["lossless"], "quality": QUALITY}
    return encoders.with_pillow(encoders.pillow_image(page), "JXL", **options)


def _upright(exif: bytes) -> bytes:
    """EXIF of a picture that needs no turn."""
    tags = Image.Exif()
    tags.load(exif)
    if tags.get(ExifTags.Base.Orientation, 1) == 1:
        return exif
    tags[ExifTags.Base.Orientation] = 1
    return tags.tobytes()


@functools.cache
def _default_profile(mode: str) -> bytes | None:
    """The ICC profile that the decoder makes of a file that has none of its own."""
    import pillow_jxl

    encoded = encoders.with_pillow(Image.new(mode, (1, 1)), "JXL", lossless=True)
    *_, profile, _ = pillow_jxl.Decoder(num_threads=0)(encoded)
    return profile


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of the boxes of a container."""
    position = 0
    while content.startswith(_CONTAINER) and position + 8 <= len(content):
        size, kind = (
            int.from_bytes(content[position : position + 4], "big"),
            content[position + 4 :][:4],
        )
        start = position + 8
        if size == 1:
            size, start = int.from_bytes(content[start : start + 8], "big"), start + 8
        end = position + size if size else len(content)
        if end < start:
            return
        yield kind, content[start:end]
        position = end


def _codestream(content: bytes) -> bytes:
    if not content.startswith(_CONTAINER):
        return content
    parts = ((kind, data) for kind, data in _boxes(content) if kind in (b"jxlc", b"jxlp"))
    return b"".join(data if kind == b"jxlc" else data[4:] for kind, data in parts)


class _Bits:
    """Fields of a header, from the lowest bit of the first byte on."""

    def __init__(self, data: bytes):
        self._bits = np.unpackbits(np.frombuffer(data[:4096], np.uint8), bitorder="little")
        self._position = 0

    def __call__(self, count: int) -> int:
        taken = self._bits[self._position : self._position + count]
        if len(taken) < count:
            raise IndexError("the header of JPEG XL is truncated")
        self._position += count
        return sum(int(bit) << i for i, bit in enumerate(taken))

    def flag(self) -> bool:
        return bool(self(1))

    def number(self, *choices: tuple[int, int]) -> int:
        """One of four numbers: an offset, and that many bits added to it."""
        offset, bits = choices[self(2)]
        return offset + self(bits)

    def size(self) -> None:
        is_small = self.flag()

        def side() -> None:
            if is_small:
                self(5)
            else:
                self.number(*_SIZES)

        side()
        if not self(3):  # else a ratio
            side()

    def preview(self) -> None:
        eighths, sides = (
            ((16, 0), (32, 0), (1, 5), (33, 9)),
            ((1, 6), (65, 8), (321, 10), (1345, 12)),
        )
        sizes = eighths if self.flag() else sides
        self.number(*sizes)
        if not self(3):
            self.number(*sizes)

    def animation(self) -> None:
        self.number((100, 0), (1000, 0), (1, 10), (1, 30))
        self.number((1, 0), (1001, 0), (1, 8), (1, 10))
        self.number((0, 0), (0, 3), (0, 16), (0, 32))
        self.flag()

    def depth(self) -> tuple[int, bool]:
        """Bits, and whether they are floating-point numbers."""
        if self.flag():
            bits = self.number((32, 0), (16, 0), (24, 0), (1, 6))
            self(4)
            return bits, True
        return self.number(*_BITS), False

    def channel(self) -> int:
        """The type of an extra channel."""
        if self.flag():
            return _ALPHA
        kind = self.number((0, 0), (1, 0), (2, 4), (18, 6))
        self.depth()
        self.number((0, 0), (3, 0), (4, 0), (1, 3))
        self(8 * self.number((0, 0), (0, 4), (16, 5), (48, 10)))
        if kind == _ALPHA:
            self.flag()
        return kind
