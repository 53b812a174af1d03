"""Picture files whose colours change and nothing else: read, restore, write back in kind.

`read` gives the colours of every frame as they are seen, `write` puts new colours into a file that
is otherwise the one that was read:

- the format, the mode (1-bit, grey, palette, CMYK, RGB) and the depth (8 or 16 bits) stay;
- alpha and transparency stay bit for bit, whatever the colours under them become;
- a palette keeps its length and its transparency, and its colours move to where the restored ones
  are; nothing is dithered;
- the stored layout stays: frames are seen upright, files keep their EXIF orientation;
- metadata (EXIF, ICC, XMP, texts, resolution) stay. In PNG, JPEG and TIFF this holds for every
  chunk, segment and tag that does not describe the pixels' own storage;
- JPEG keeps its quantisation tables, subsampling and progressive order, TIFF its compression and
  predictor, WebP stays lossless where it was so.

Colours pass with their ICC profile attached and are never converted to another one.

Where formats set a limit: animations are stored anew, so they look the same frame by frame, while
their disposal, blending and cropping are the encoder's, which joins equal frames; PNG loses its
interlacing and TIFF its tiles; of a JPEG that holds further pictures (MPO) the first one stays;
directories beside a TIFF's pages (SubIFDs) go; the colours of lossy formats are lossy once more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import av
import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError
from scipy.spatial import KDTree

from manas_jax.data import images
from manas_jax.errors import UserError
from manas_jax.files import has_suffix, output_file

SUFFIXES = images.SUFFIXES | {".apng", ".gif", ".pbm"}
MOST_PIXELS = 10**9
"""Frames whose header claims more are refused undecoded, and files of more in all frames."""
MOST_PIXELS_A_BYTE = 8 * 1032
"""What a byte can stand for: DEFLATE packs 1032:1 at most (https://zlib.net/zlib_tech.html), and a
pixel takes a bit at least. JPEG, GIF and lossy WebP stay below. One colour all over can take less
in lossless WebP and in a fax's TIFF, so this is asked only of frames beyond `BELIEVED_PIXELS`."""
BELIEVED_PIXELS = 89_478_485
"""Frames of as many are decoded however short the file is; it is Pillow's limit of good faith."""
WEBP_QUALITY = 95

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
# Of files that claim what they do not hold, these as well, from Pillow's readers of metadata.
_DAMAGE = (*images.DAMAGE, IndexError, KeyError, TypeError, OverflowError)
_PALETTE_ROUNDS = 4

_pillow_limit = threading.RLock()


@dataclasses.dataclass(frozen=True)
class _Page:
    """One frame as it is stored, but upright.

    `mode` is Pillow's name without the depth, which is that of `samples`: (H, W) for '1', 'L' and
    'P', else (H, W, channels).
    """

    mode: str
    samples: np.ndarray
    orientation: int = 1  # EXIF's
    palette: np.ndarray | None = None  # (colours, 4), of mode 'P': RGB and alpha
    key: tuple[int, ...] | None = None  # the colour that means transparent, of '1', 'L' and 'RGB'
    duration: float | None = None  # milliseconds
    tags: TiffImagePlugin.ImageFileDirectory_v2 | None = None  # TIFF's that do not store pixels
    storage: dict = dataclasses.field(default_factory=dict)  # how the encoder is to store it


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A picture file in memory.

    Attributes:
      name: what messages call it.
      format: Pillow's name of the format, such as 'PNG'.
      frames: the colours, uint8 or uint16 of shape (H, W, 3), upright and read-only. A still
        picture has one frame, an animation or a TIFF of several pages has them all; the pages of a
        TIFF may differ in size and depth.
    """

    name: str
    format: str
    frames: Sequence[np.ndarray] = dataclasses.field(repr=False)
    _pages: Sequence[_Page] = dataclasses.field(repr=False)
    _content: bytes = dataclasses.field(repr=False)


def is_picture(path: str | os.PathLike) -> bool:
    """Whether the name of `path` ends like that of a picture (hidden files never do)."""
    return has_suffix(path, SUFFIXES)


def read(source: str | os.PathLike | bytes, name: str | None = None) -> Picture:
    """Decodes a picture file, given by its path or by its content.

    Args:
      source: path of the file, or the bytes in it.
      name: what messages call it; the path unless given.

    Raises:
      UserError: missing, unreadable, empty, truncated, no picture of a known format, of more than
        `MOST_PIXELS`, of more than its bytes can hold, or of samples that cannot be kept (floating
        point, beyond 16 bits, 16-bit CMYK or PPM, Lab).
    """
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
    with _opened(content, name) as image:
        kind = "JPEG" if image.format == "MPO" else image.format
        count = 1 if kind == "JPEG" else getattr(image, "n_frames", 1)
        pages, pixels = [], 0
        for index in range(count):
            image.seek(index)
            area = image.width * image.height
            pixels += area
            claim = f"{name}: claims {image.width}x{image.height} pixels in frame {index + 1} of"
            if pixels > MOST_PIXELS:
                raise UserError(
                    f"{claim} {count}, which makes more than {MOST_PIXELS:,}; cut it into parts"
                )
            if area > max(BELIEVED_PIXELS, MOST_PIXELS_A_BYTE * len(content)):
                raise UserError(
                    f"{claim} {count}, more than {len(content):,} bytes can hold; copy it again "
                    "or remove it"
                )
            pages.append(_page(image, index, count, content, name))
    for page in pages:
        page.samples.flags.writeable = False
    return Picture(name, kind, [_colours(page) for page in pages], pages, content)


def write(
    picture: Picture,
    restored: Sequence[np.ndarray],
    target: str | os.PathLike | BinaryIO,
) -> None:
    """Writes `picture` with the colours `restored`; a file is written whole or not at all.

    Args:
      picture: what `read` gave.
      restored: new colours in the shapes and types of `picture.frames`. Where they are the old
        ones, lossless formats come back with the same samples.
      target: a path, whose suffix is not looked at, or a binary stream.

    Raises:
      ValueError: `restored` differs from `picture.frames` in number, shape or type.
      UserError: the place cannot be written to, or the format cannot hold what the file held.
    """
    kinds = [[(x.shape, x.dtype) for x in frames] for frames in (restored, picture.frames)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"expected frames of {kinds[1]}, got {kinds[0]}")
    pages = [_recoloured(page, new) for page, new in zip(picture._pages, restored, strict=True)]
    try:
        with _own_limit():
            content = _ENCODERS[picture.format](picture, pages)
    except (OSError, OverflowError, RuntimeError, struct.error) as error:  # too much for the format
        raise UserError(
            f"{picture.name}: cannot be stored as {picture.format} ({error}); convert it first"
        ) from error
    if hasattr(target, "write"):
        target.write(content)
    else:
        with output_file(target) as temporary:
            temporary.write_bytes(content)


# Reading.


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Within, `MOST_PIXELS` is the limit, not Pillow's own.

    Pillow's is a global of its module that its decoders ask: it is off in here, under a lock, and
    afterwards as it was.
    """
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextlib.contextmanager
def _opened(content: bytes, name: str) -> Iterator[Image.Image]:
    """The picture as Pillow opens it; what goes wrong meanwhile is said of the picture."""
    try:
        with _own_limit(), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise UserError(
            f"{name}: no picture of a known format ({', '.join(_FORMATS)}), or a damaged one"
        ) from None
    except _DAMAGE as error:
        raise UserError(images.damaged(name, error)) from error


def _page(image: Image.Image, index: int, count: int, content: bytes, name: str) -> _Page:
    """Frame `index` of `count`."""
    tiff = image.format == "TIFF"
    rawmode = _rawmode(image)
    if problem := _unkeepable(image, rawmode):
        raise UserError(f"{name}: {problem}")
    # Loading turns a TIFF upright and drops the tag; of a PNG it may be what finds the tag.
    orientation = image.tag_v2.get(ExifTags.Base.Orientation, 1) if tiff else 1
    tags = _kept_tags(image) if tiff else None
    storage = _STORAGE[image.format](image, content)
    if rawmode.startswith("RGBa"):  # Pillow would divide by alpha; kept as they are, they stay
        rawmode = rawmode.replace("a", "A")
        _set_rawmode(image, rawmode)
    palette = key = None
    if rawmode.startswith(("RGB;16", "RGBA;16", "LA;16")):
        if count > 1 and not tiff:
            raise UserError(f"{name}: animations of 16 bits cannot be kept; convert it to 8 bits")
        mode, samples = _deep_samples(image, index, rawmode, content)
    else:
        image.load()
        if image.format == "GIF" or (count > 1 and not tiff):
            # Pillow gives frames as they are seen, in modes that differ from frame to frame.
            frame = image.convert("RGBA" if image.has_transparency_data else "RGB")
        else:
            frame = image.convert(_AS_MODES.get(image.mode, image.mode))
        mode, samples, palette = _shallow_samples(frame)
    if not tiff:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation in _UPRIGHT:
            samples = np.ascontiguousarray(_UPRIGHT[orientation](samples))
    if mode in ("1", "L", "RGB") and image.format == "PNG":
        key = _transparent_colour(image.info.get("transparency"), mode, storage["bits"])
    duration = image.info.get("duration")
    return _Page(mode, samples, orientation, palette, key, duration, tags, storage)


_AS_MODES = {"RGBX": "RGB", "YCbCr": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}


def _rawmode(image: Image.Image) -> str:
    """How the samples lie in the file, by Pillow's name; '' where the format does not say."""
    args = image.tile[0].args if image.tile else ""
    rawmode = args if isinstance(args, str) else args[0] if isinstance(args, tuple) else args
    return rawmode if isinstance(rawmode, str) else ""


def _unkeepable(image: Image.Image, rawmode: str) -> str | None:
    """Why the samples cannot be kept, if they cannot."""
    if image.mode == "F":
        return "floating-point samples have no agreed range; convert it to 8 or 16 bits"
    if image.mode == "I" and image.format != "PPM":
        return "integer samples beyond 16 bits; convert it to 8 or 16 bits"
    if image.mode == "LAB":
        return "Lab colours; convert it to RGB"
    if rawmode.startswith("CMYK;16"):
        return "16-bit CMYK; convert it to 8 bits or to RGB"
    if image.format == "TIFF" and image.tag_v2.get(_SAMPLES, 1) > len(image.getbands()):
        return "an extra channel of no stated meaning; mark it as alpha or remove it"
    if image.format == "PPM" and image.mode == "RGB" and image.tile[0].codec_name == "ppm":
        maximum = image.tile[0].args
        maximum = maximum[-1] if isinstance(maximum, tuple) else maximum
        if maximum > 255:
            return "PPM of 16 bits; convert it to PNG or TIFF"
    return None


def _deep_samples(
    image: Image.Image, index: int, rawmode: str, content: bytes
) -> tuple[str, np.ndarray]:
    """Mode and uint16 samples of a picture of 16 bits in several channels.

    Pillow holds such pictures with 8 bits: each sample's upper byte, or its lower one if told that
    the file has the other byte order. Both together are the sample.
    """
    if rawmode.startswith("LA;16"):  # four bytes a pixel: as many as RGBA has
        _set_rawmode(image, "RGBA")
        return "LA", np.asarray(image).view(">u2").astype(np.uint16)
    mode, order = rawmode.split(";16")
    native = "L" if sys.byteorder == "little" else "B"
    other = {"L": "B", "B": "L"}[native if order == "N" else order]
    upper = np.asarray(image).astype(np.uint16) << 8
    with Image.open(io.BytesIO(content), formats=_FORMATS) as again:
        again.seek(index)
        _set_rawmode(again, f"{mode};16{other}")
        return mode, upper | np.asarray(again)


def _set_rawmode(image: Image.Image, rawmode: str) -> None:
    image.tile = [
        tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:]))
        for tile in image.tile
    ]


def _shallow_samples(image: Image.Image) -> tuple[str, np.ndarray, np.ndarray | None]:
    """Mode, samples and palette of a picture in a mode of Pillow's."""
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


def _transparent_colour(transparency, mode: str, bits: int) -> tuple[int, ...] | None:
    """The colour that a PNG calls transparent, in the samples that Pillow gives."""
    if transparency is None or isinstance(transparency, tuple):
        return transparency
    if mode == "L" and bits < 8:  # samples are spread over 8 bits, this one is not
        transparency = transparency * 255 // (2**bits - 1)
    return (bool(transparency) if mode == "1" else transparency,)


# What EXIF's orientations ask for, and what undoes it.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}
_STORED = _UPRIGHT | {6: _UPRIGHT[8], 8: _UPRIGHT[6]}


# Colours of a page, and a page of other colours.


def _colours(page: _Page) -> np.ndarray:
    """RGB of shape (H, W, 3), a view where there can be one."""
    samples = page.samples
    if page.mode == "P":
        colours = page.palette[samples, :3]
    elif page.mode == "CMYK":
        colours = np.array(Image.fromarray(samples, "CMYK").convert("RGB"))
    elif page.mode in ("RGB", "RGBA"):
        colours = samples[..., :3]
    else:
        grey = samples[..., 0] if page.mode == "LA" else samples
        grey = grey * np.uint8(255) if page.mode == "1" else grey
        colours = np.broadcast_to(grey[..., None], (*grey.shape, 3)).view()
    colours.flags.writeable = False
    return colours


def _recoloured(page: _Page, colours: np.ndarray) -> _Page:
    """The page with other colours in its own mode."""
    samples, palette = page.samples, page.palette
    if page.mode == "P":
        start = _moved(palette, samples.ravel(), colours.reshape(-1, 3))
        samples, palette = _in_palette(colours, palette[samples, 3], start)
    elif page.mode == "CMYK":
        changed = (colours != _colours(page)).any(-1, keepdims=True)
        samples = np.where(changed, _inks(colours, samples[..., 3]), samples)
    elif page.mode == "1":
        samples = _luma(colours) >= 128
    elif page.mode in ("L", "LA"):
        new = _luma(colours)
        samples = np.stack([new, samples[..., 1]], -1) if page.mode == "LA" else new
    else:
        samples = np.concatenate([colours, samples[..., 3:]], -1)
    if page.key is not None:
        samples = _with_key(samples, page)
    return dataclasses.replace(page, samples=samples, palette=palette)


def _luma(colours: np.ndarray) -> np.ndarray:
    """(H, W) by the weights of BT.601 as Pillow rounds them, in the type of `colours`.

    Equal channels are their own luma: the weights add up to 2 ** 16.
    """
    weighted = colours @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighted + 0x8000) >> 16).astype(colours.dtype)


def _inks(colours: np.ndarray, black: np.ndarray) -> np.ndarray:
    """CMYK of these colours with as much black as before, less where they are brighter."""
    black = np.minimum(black, 255 - colours.max(-1))
    light = 255 - black[..., None].astype(np.float32)
    ink = 255 - np.float32(255) * colours / np.maximum(light, 1)
    return np.concatenate([np.rint(ink.clip(0, 255)).astype(np.uint8), black[..., None]], -1)


def _with_key(samples: np.ndarray, page: _Page) -> np.ndarray:
    """The samples with the transparent colour where it was, and nowhere else."""
    shape = samples.shape
    new = samples.reshape(*shape[:2], -1).copy()
    was = (page.samples.reshape(new.shape) == page.key).all(-1)
    new[(new == page.key).all(-1) & ~was, -1] ^= samples.dtype.type(1)  # the smallest change
    new[was] = page.key
    return new.reshape(shape)


def _in_palette(
    colours: np.ndarray, alpha: np.ndarray, palette: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (H, W) and a palette like the given one, moved to these colours (k-means).

    Every pixel goes to the nearest entry of its own alpha, so alpha stays. Colours that are in the
    palette already are reproduced exactly.
    """
    seen, inverse, counts = np.unique(
        np.column_stack([colours.reshape(-1, 3), alpha.ravel()]),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    nearest = _nearest(seen, palette)
    for _ in range(_PALETTE_ROUNDS):
        if (palette[nearest] == seen).all():
            break
        palette = _moved(palette, nearest, seen, counts)
        nearest = _nearest(seen, palette)
    return nearest[inverse].reshape(alpha.shape).astype(np.uint8), palette


def _nearest(seen: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """For each (N, 4) of `seen` the nearest entry of the palette that has its alpha."""
    nearest = np.zeros(len(seen), np.intp)
    for level in np.unique(seen[:, 3]):
        entries, chosen = np.flatnonzero(palette[:, 3] == level), seen[:, 3] == level
        nearest[chosen] = entries[KDTree(palette[entries, :3]).query(seen[chosen, :3])[1]]
    return nearest


def _moved(
    palette: np.ndarray, indices: np.ndarray, colours: np.ndarray, counts: np.ndarray | None = None
) -> np.ndarray:
    """The palette with each entry in use at the mean of the colours (N, 3 or 4) that use it."""
    weights = np.ones(len(indices)) if counts is None else counts
    total = np.bincount(indices, weights, len(palette))
    used, moved = total > 0, palette.copy()
    for channel in range(3):
        sums = np.bincount(indices, weights * colours[:, channel], len(palette))
        moved[used, channel] = np.rint(sums[used] / total[used])
    return moved


# Writing. The encoders store pixels alone; what else the file held is put around them.


def _stored(page: _Page) -> np.ndarray:
    """The samples in the file's layout."""
    samples = page.samples
    turn = _STORED.get(page.orientation)
    return np.ascontiguousarray(turn(samples) if turn else samples)


def _image(page: _Page) -> Image.Image:
    """The page as Pillow holds it; not of 16 bits in several channels."""
    samples = _stored(page)
    if page.mode != "P":
        return Image.fromarray(samples, "CMYK" if page.mode == "CMYK" else None)
    image = Image.fromarray(samples)
    image.putpalette(page.palette[:, :3].tobytes())
    return image


def _saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _is_deep(page: _Page) -> bool:
    return page.samples.dtype == np.uint16 and page.mode != "L"


def _saved_deep(codec: str, pixel_format: str, samples: np.ndarray, options: dict) -> bytes:
    """Picture file of samples in the bytes of a pixel format of FFmpeg, which writes 16 bits."""
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


def _png(picture: Picture, pages: Sequence[_Page]) -> bytes:
    first = pages[0]
    if len(pages) > 1:
        has_default = bool(first.storage.get("default_image"))
        options = _animation(pages[has_default:]) | {
            "append_images": [_image(page) for page in pages[1:]],
            "default_image": has_default,
            "loop": first.storage.get("loop", 0),
            "disposal": 0,
            "blend": 0,
        }
        encoded = _saved(_image(first), "PNG", **options)
    elif _is_deep(first):
        pixel_format = {"LA": "ya16be", "RGB": "rgb48be", "RGBA": "rgba64be"}[first.mode]
        samples = _stored(first).astype(">u2")
        encoded = _saved_deep("png", pixel_format, samples, {"pred": "mixed"})
    else:
        bits = min(first.storage["bits"], 8)  # asked of grey and palettes of 8 bits at most
        encoded = _saved(_image(first), "PNG", bits=bits)
    return _png_around(picture._content, encoded)


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH, _PNG_COLOUR_TYPE = 16, 17  # where they are in the header chunk
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"acTL", b"fcTL", b"IDAT", b"fdAT", b"IEND"})
_PNG_OF_COLOUR_TYPE = frozenset({b"tRNS", b"bKGD", b"sBIT", b"hIST"})


def _png_around(source: bytes, encoded: bytes) -> bytes:
    """The PNG `source` with the pixels of `encoded`: all its other chunks stay, in their places."""
    new = [chunk for chunk in _png_chunks(encoded) if chunk[0] in _PNG_PIXELS]
    extra = [chunk for chunk in _png_chunks(encoded) if chunk[0] == b"tRNS"]
    old = list(_png_chunks(source))
    same_type = old[0][1][_PNG_COLOUR_TYPE] == new[0][1][_PNG_COLOUR_TYPE]
    result = []
    pixels = [chunk for chunk in new if chunk[0] not in (b"IHDR", b"PLTE", b"IEND")]
    for kind, chunk in old:
        if kind in (b"IHDR", b"PLTE"):
            result += [chunk for name, chunk in new if name == kind]
        elif kind == b"IDAT":
            result += [] if same_type else [chunk for _, chunk in extra]
            result += [chunk for _, chunk in pixels]
            pixels, extra = [], []
        elif kind not in _PNG_PIXELS and (same_type or kind not in _PNG_OF_COLOUR_TYPE):
            result.append(chunk)
    return b"".join([_PNG_SIGNATURE, *result, new[-1][1]])


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and whole bytes of each chunk, the end included."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        yield kind, content[position : position + length + 12]
        position += length + 12
        if kind == b"IEND":
            return


def _jpeg(picture: Picture, pages: Sequence[_Page]) -> bytes:
    encoded = _saved(_image(pages[0]), "JPEG", **pages[0].storage)
    return _jpeg_around(picture._content, encoded)


_ADOBE, _COMMENT = 0xEE, 0xFE


def _jpeg_around(source: bytes, encoded: bytes) -> bytes:
    """The JPEG `encoded` with the metadata segments (APPn, COM) of `source`, byte for byte."""

    def is_metadata(marker: int, segment: bytes) -> bool:
        # Adobe's segment says how the encoder stored the colours, MPF's where further pictures are.
        pixels = marker == _ADOBE or segment[4:8] == b"MPF\0"
        return (0xE0 <= marker <= 0xEF or marker == _COMMENT) and not pixels

    metadata = [s for marker, s in _jpeg_segments(source) if is_metadata(marker, s)]
    pixels = [s for marker, s in _jpeg_segments(encoded) if not is_metadata(marker, s)]
    return b"".join([b"\xff\xd8", *metadata, *pixels])


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and whole bytes of each segment after the start; the scan and all after it as one."""
    position = 2
    while position + 4 <= len(content):
        while content[position : position + 2] == b"\xff\xff":  # fill bytes
            position += 1
        marker, length = struct.unpack_from(">xBH", content, position)
        if marker == 0xDA:
            yield marker, content[position:]
            return
        yield marker, content[position : position + 2 + length]
        position += 2 + length


def _webp(picture: Picture, pages: Sequence[_Page]) -> bytes:
    options = {**pages[0].storage, "exact": True, "quality": WEBP_QUALITY}
    if options["lossless"]:
        options["quality"] = 80  # of lossless WebP, the effort
    else:
        options["alpha_quality"] = 100
    if len(pages) > 1:
        options |= _animation(pages) | {"append_images": [_image(page) for page in pages[1:]]}
    else:
        options = {key: options[key] for key in options if key not in ("loop", "background")}
    return _saved(_image(pages[0]), "WEBP", **options)


def _animation(pages: Sequence[_Page]) -> dict:
    return {"save_all": True, "duration": [page.duration or 0 for page in pages]}


def _gif(picture: Picture, pages: Sequence[_Page]) -> bytes:
    images = [_gif_image(page) for page in pages]
    options = dict(pages[0].storage)
    if len(images) > 1:
        seen_through = any("transparency" in image.info for image in images)
        options |= _animation(pages) | {
            "append_images": images[1:],
            "disposal": 2 if seen_through else 1,
        }
    return _saved(images[0], "GIF", optimize=False, **options)


def _gif_image(page: _Page) -> Image.Image:
    """A page of mode 'RGB' or 'RGBA' in a palette of its own."""
    samples = page.samples
    opaque = samples[..., 3] >= 128 if page.mode == "RGBA" else np.ones(samples.shape[:2], bool)
    most = 256 if opaque.all() else 255
    seen = np.unique(samples[opaque][:, :3], axis=0)
    if len(seen) > most:
        image = Image.fromarray(samples[opaque][None, :, :3])
        palette = image.quantize(most, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        seen = np.array(palette.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.column_stack([seen, np.full(len(seen), 255, np.uint8)])
    if not opaque.all():
        palette = np.concatenate([palette, np.zeros((1, 4), np.uint8)])
    colours = np.where(opaque[..., None], samples[..., :3], 0)
    indices, palette = _in_palette(colours, opaque * np.uint8(255), palette)
    image = _image(_Page("P", indices, palette=palette))
    if not opaque.all():
        image.info["transparency"] = len(palette) - 1
    return image


def _bmp(picture: Picture, pages: Sequence[_Page]) -> bytes:
    page = pages[0]
    if page.mode != "RGBA":
        return _saved(_image(page), "BMP", **page.storage["options"])
    # Pillow writes no header that says which bytes are alpha; the file's own header does.
    tile = page.storage["tile"]
    rawmode, stride, direction = tile.args
    return picture._content[: tile.offset] + _image(page).tobytes("raw", rawmode, stride, direction)


def _ppm(picture: Picture, pages: Sequence[_Page]) -> bytes:
    return _saved(_image(pages[0]), "PPM")


# TIFF. The tags that say how the pixels are stored; the encoder gives new ones.
_TIFF_PIXELS = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 288, 289, 292, 293, 317, 320}
    | {322, 323, 324, 325, 330, 332, 334, 338, 339, 340, 341, 347, *range(512, 522)}
    | {529, 530, 531, 532}
)
_COMPRESSION, _OFFSETS, _SAMPLES, _COUNTS, _PREDICTOR, _EXTRA_SAMPLES = 259, 273, 277, 279, 317, 338
_INTEROPERABILITY = 40965  # an offset within EXIF's own directory
_HORIZONTAL, _DEFLATE, _OLD_DEFLATE = 2, 8, 32946
_TIFF_DEEP = {"raw": "raw", "packbits": "packbits", "tiff_lzw": "lzw"}
_TIFF_SHALLOW = frozenset(
    {"raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "zstd", "lzma"}
)
_TIFF_BILEVEL = _TIFF_SHALLOW | {"tiff_ccitt", "group3", "group4"}


def _kept_tags(image: Image.Image) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in image.tag_v2.items():
        if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            entries = image.getexif().get_ifd(tag)
            value = {key: entries[key] for key in entries if key != _INTEROPERABILITY}
            tags[tag] = value
        elif tag not in _TIFF_PIXELS:
            tags.tagtype[tag] = image.tag_v2.tagtype[tag]
            tags[tag] = value
    return tags


def _tiff(picture: Picture, pages: Sequence[_Page]) -> bytes:
    """The pages one after the other, each as its directory, what that refers to, and strips."""
    out = io.BytesIO()
    out.write(b"II*\0" + bytes(4))
    link = 4  # where the offset of the next directory belongs
    for page in pages:
        encoded = _tiff_deep(page) if _is_deep(page) else _tiff_shallow(page)
        directory, strips = _tiff_page(page, encoded)
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


def _tiff_page(page: _Page, encoded: bytes) -> tuple[TiffImagePlugin.ImageFileDirectory_v2, bytes]:
    """Directory and strips of a page: its own tags and, of the pixels, those of `encoded`."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    with Image.open(io.BytesIO(encoded), formats=("TIFF",)) as image:
        for tags, wanted in ((page.tags, True), (image.tag_v2, False)):
            for tag in tags:
                if wanted or tag in _TIFF_PIXELS:
                    directory.tagtype[tag] = tags.tagtype[tag]
                    directory[tag] = tags[tag]
        places = list(zip(image.tag_v2[_OFFSETS], image.tag_v2[_COUNTS], strict=True))
    if _is_deep(page) and "predictor" in page.storage:
        directory[_PREDICTOR] = page.storage["predictor"]
    if directory[_COMPRESSION] == _OLD_DEFLATE:  # FFmpeg's number for the same thing
        directory[_COMPRESSION] = _DEFLATE
    if page.mode == "RGBA":
        directory[_EXTRA_SAMPLES] = page.storage["extra_samples"]
    counts = [count for _, count in places]
    directory.tagtype[_OFFSETS] = directory.tagtype[_COUNTS] = TiffImagePlugin.TiffTags.LONG
    directory[_COUNTS] = tuple(counts)
    directory[_OFFSETS] = tuple(np.cumsum([0, *counts[:-1]]).tolist())
    return directory, b"".join(encoded[offset : offset + count] for offset, count in places)


def _tiff_shallow(page: _Page) -> bytes:
    compression = page.storage["compression"]
    if compression not in (_TIFF_BILEVEL if page.mode == "1" else _TIFF_SHALLOW):
        compression = "tiff_adobe_deflate"
    options = {"quality": 95} if compression == "jpeg" else {}
    if "predictor" in page.storage and compression not in ("raw", "packbits", "jpeg"):
        options["tiffinfo"] = {_PREDICTOR: page.storage["predictor"]}
    return _saved(_image(page), "TIFF", compression=compression, **options)


def _tiff_deep(page: _Page) -> bytes:
    samples = _stored(page).astype("<u2")
    if "predictor" in page.storage:
        samples[:, 1:] -= samples[:, :-1].copy()
    pixel_format = {"RGB": "rgb48le", "RGBA": "rgba64le"}[page.mode]
    compression = _TIFF_DEEP.get(page.storage["compression"], "deflate")
    return _saved_deep("tiff", pixel_format, samples, {"compression_algo": compression})


# How each format's own encoder is to store the pixels, so that they are stored as before.


def _png_storage(image: Image.Image, content: bytes) -> dict:
    _, header = next(_png_chunks(content))
    return {"bits": header[_PNG_DEPTH]} | {
        key: image.info[key] for key in ("loop", "default_image") if key in image.info
    }


def _jpeg_storage(image: Image.Image, content: bytes) -> dict:
    subsampling = JpegImagePlugin.get_sampling(image)
    return {
        "qtables": image.quantization,
        "progressive": bool(image.info.get("progressive")),
        **({"subsampling": subsampling} if subsampling >= 0 else {}),
    }


def _tiff_storage(image: Image.Image, content: bytes) -> dict:
    compression = image.info.get("compression", "raw")
    horizontal = image.tag_v2.get(_PREDICTOR) == _HORIZONTAL
    return {
        "compression": compression,
        "extra_samples": image.tag_v2.get(_EXTRA_SAMPLES, (2,))[:1],
        **({"predictor": _HORIZONTAL} if horizontal else {}),
    }


def _webp_storage(image: Image.Image, content: bytes) -> dict:
    keys = ("icc_profile", "exif", "xmp", "loop", "background")
    kept = {key: image.info[key] for key in keys if key in image.info}
    return kept | {"lossless": _webp_is_lossless(content)}


def _webp_is_lossless(content: bytes) -> bool:
    """Whether the first frame is, found by walking the chunks to where its samples begin."""
    position = 12
    while position + 8 <= len(content):
        kind, length = struct.unpack_from("<4sL", content, position)
        if kind == b"VP8L":
            return True
        if kind == b"VP8 ":
            return False
        # An animation's frame holds chunks of its own, after 16 bytes about place and time.
        position += 8 + (16 if kind == b"ANMF" else length + length % 2)
    return False


def _gif_storage(image: Image.Image, content: bytes) -> dict:
    return {key: image.info[key] for key in ("loop", "comment") if key in image.info}


def _bmp_storage(image: Image.Image, content: bytes) -> dict:
    options = {key: image.info[key] for key in ("dpi",) if key in image.info}
    return {"options": options, "tile": image.tile[0]}


_STORAGE: dict[str, Callable[[Image.Image, bytes], dict]] = {
    "PNG": _png_storage,
    "JPEG": _jpeg_storage,
    "MPO": _jpeg_storage,
    "TIFF": _tiff_storage,
    "WEBP": _webp_storage,
    "GIF": _gif_storage,
    "BMP": _bmp_storage,
    "PPM": lambda image, content: {},
}
_ENCODERS: dict[str, Callable[[Picture, Sequence[_Page]], bytes]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "TIFF": _tiff,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "PPM": _ppm,
}
