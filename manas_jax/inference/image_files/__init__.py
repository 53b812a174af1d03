"""Image files whose pixel values change and nothing else: read, restore, write.

`read` gives the RGB of every frame as it is displayed. `write` puts new RGB into a file that is
otherwise the one read, or what `converted` made of it:

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
interlacing and TIFF its tiles; lossy formats lose quality again.

What shows the pixels a second time would keep the rain: EXIF thumbnails are made from the new
pixels, other previews are removed. What `ImageFile.left_out` names goes with all claims to it: what
lies behind the first image of a JPEG (gain maps, films, further images), SubIFDs and Photoshop
layers in TIFF, and profiles and XMP in GIF and BMP, which the encoder does not write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from manas_jax.data import images
from manas_jax.errors import UserError, check_extra, install, one_line
from manas_jax.files import has_suffix, output_file
from manas_jax.inference.image_files import (
    avif,
    bmp,
    convert,
    decode,
    encoders,
    gif,
    heif,
    jpeg,
    jxl,
    png,
    ppm,
    previews,
    tiff,
    webp,
)
from manas_jax.inference.image_files.pixels import Page, rgb, with_rgb

_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "JXL": (".jxl",),
}
"""Pillow's name of a format -> suffixes of its files, the usual one first."""
_OF_ONE_MODE = {
    ".pgm": ("shades of grey", ("L",)),
    ".pbm": ("black and white", ("1",)),
    ".pfm": ("floats", ()),
}
"""Suffix of PPM -> what such files hold, and its modes here."""
SUFFIXES = frozenset(itertools.chain.from_iterable(_SUFFIXES.values()))
MAX_BYTES = 3 * 10**9
"""Files whose headers claim more bytes of RGB, in all frames together, are refused undecoded."""
MAX_PIXELS_PER_BYTE = 8 * 1032
"""DEFLATE packs 1032:1 at most (https://zlib.net/zlib_tech.html), and a pixel takes a bit at least.
JPEG, GIF and lossy WebP stay below. Frames of one colour can exceed it in lossless WebP and in fax
TIFF, so it is applied to files beyond `TRUSTED_PIXELS` only."""
TRUSTED_PIXELS = 40_000_000
"""Fewer pixels are decoded however short the file is: a blank A4 page in 600 dpi."""

_OTHER_SUFFIXES = frozenset(
    {".jp2", ".j2k", ".jpf", ".jpx", ".psd", ".xcf"}
    | {".svg", ".eps", ".ico", ".icns", ".tga", ".exr", ".hdr", ".pcx", ".qoi", ".dds", ".fits"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"}
)
"""Of images that are not read."""

_FORMATS: dict[str, ModuleType] = {
    "PNG": png,
    "JPEG": jpeg,
    "WEBP": webp,
    "TIFF": tiff,
    "BMP": bmp,
    "GIF": gif,
    "PPM": ppm,
    "AVIF": avif,
    "HEIF": heif,
    "JXL": jxl,
}
"""Pillow's name of a format -> the module with its `storage` and `encode`.

`storage(image, content)` returns how the current frame is stored, as `encode` needs it, and what
`encode` leaves out of the file, in words."""
_EXTRAS = {"HEIF": "heic", "JXL": "jxl"}
"""Formats that need a package -> the extra that brings it; their modules name the package."""
_pillow_limit = threading.RLock()


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFile:
    """An image file in memory.

    Attributes:
      name: what messages call it.
      format: Pillow's name of the format, such as 'PNG'.
      frames: RGB, uint8 or uint16 of shape (H, W, 3), upright and read-only: one frame of a still
        image, all of an animation or a TIFF of several pages. The pages of a TIFF may differ in
        size and bit depth.
      left_out: what the file holds beside them that `write` leaves out, such as 'film'.
    """

    name: str
    format: str
    frames: Sequence[np.ndarray] = dataclasses.field(repr=False)
    left_out: Sequence[str]
    _pages: Sequence[Page] = dataclasses.field(repr=False)
    _content: bytes = dataclasses.field(repr=False)

    @property
    def rgb_profile(self) -> bytes | None:
        """The ICC profile of its frames; None if it has none, or one of other colours."""
        with (
            _without_pillow_limit(),
            Image.open(io.BytesIO(self._content), formats=_readable(self._content)) as image,
        ):
            profile = image.info.get("icc_profile")
        return profile if convert.colours_of(profile) == b"RGB " else None


def is_image(path: str | os.PathLike) -> bool:
    """Whether `path` has the suffix of an image file that can be read, and is not hidden."""
    return has_suffix(path, SUFFIXES) and not _is_missing(format_of(path))


def is_other_image(path: str | os.PathLike) -> bool:
    """Whether `path` has the suffix of images that cannot be read, and is not hidden."""
    return has_suffix(path, SUFFIXES | _OTHER_SUFFIXES) and not is_image(path)


def how_to_read(path: str | os.PathLike) -> str | None:
    """What to install for images like this one; None where that would not help."""
    format = format_of(path)
    return install(_EXTRAS[format]) if _is_missing(format) else None


def check_available(format: str) -> None:
    """Checks that files of a format can be read and written.

    Raises:
      UserError: it needs an extra that is not installed; names it.
    """
    if format in _EXTRAS:
        check_extra(_EXTRAS[format], _FORMATS[format].PACKAGE, subject=format)
        _FORMATS[format].register()


def _is_missing(format: str | None) -> bool:
    return format in _EXTRAS and importlib.util.find_spec(_FORMATS[format].PACKAGE) is None


def _readable(content: bytes) -> list[str]:
    """Pillow's names of the formats that a file may have.

    Raises:
      UserError: it has one that needs an extra that is not installed; names it.
    """
    own = [format for format in _EXTRAS if _FORMATS[format].recognises(content)]
    for format in own:
        check_available(format)
    return own or [format for format in _FORMATS if format not in _EXTRAS]


def read(source: str | os.PathLike | bytes, name: str | None = None) -> ImageFile:
    """Decodes an image file.

    Args:
      source: its path or its content.
      name: what messages call it; the path by default.

    Raises:
      UserError: missing, unreadable, empty, truncated, of an unknown format, of more than
        `MAX_BYTES` or more than its bytes can hold, or of samples that are not understood or cannot
        be written back (floating point, signed, 12 bits, 16-bit CMYK or PPM, Lab, and others).
    """
    content, name = _load(source, name)
    formats = _readable(content)
    with _without_pillow_limit(), images.opened(io.BytesIO(content), name, formats) as image:
        format, count = _format_and_count(image)
        _check_size(image, count, len(content), name)
        pages = _read_pages(image, content, name)
    left_out = list(dict.fromkeys(item for page in pages for item in page.left_out))
    return ImageFile(name, format, [rgb(page) for page in pages], left_out, pages, content)


def write(
    file: ImageFile,
    restored: Sequence[np.ndarray],
    target: str | os.PathLike | BinaryIO,
    *,
    like: str | os.PathLike | None = None,
) -> None:
    """Writes `file` with new RGB; a file is written completely or not at all.

    Args:
      file: as `read` gave it.
      restored: new RGB in the shapes and types of `file.frames`. With the old RGB lossless
        formats get the same samples again.
      target: a path, of any suffix, or a binary stream.
      like: a file whose permissions `target` gets.

    Raises:
      ValueError: `restored` differs from `file.frames` in number, shape or type.
      UserError: `target` cannot be written, or the encoder cannot store what the file held.
    """
    given, expected = ([(x.shape, x.dtype) for x in xs] for xs in (restored, file.frames))
    if given != expected:
        raise ValueError(f"expected frames of {expected}, got {given}")
    pages = [with_rgb(page, new) for page, new in zip(file._pages, restored, strict=True)]
    with _encoding(file.name, file.format), _without_pillow_limit():
        content = _FORMATS[file.format].encode(file._content, pages)
        _check_readable(content, pages)
    if hasattr(target, "write"):
        target.write(content)
    else:
        with output_file(target, like=like) as temporary:
            temporary.write_bytes(content)


def check_suffix(file: ImageFile, target: str | os.PathLike) -> None:
    """Checks that a file of the suffix of `target` can hold what `file` does.

    Raises:
      UserError: it is one of .pgm, .pbm or .pfm, and the file is in colour, say.
    """
    target = pathlib.PurePath(target)
    suffix = target.suffix.lower()
    holds, modes = _OF_ONE_MODE.get(suffix, ("", ()))
    if holds and file.format == "PPM" and file._pages[0].mode not in modes:
        raise UserError(f"{target.name}: a {suffix} file holds {holds} only; name it .ppm")


def converted(file: ImageFile, format: str) -> ImageFile:
    """The same frames and metadata as a file of another format, for `write`.

    Transparency of no pixel is dropped where the format has none. What it cannot hold of the
    metadata is in `left_out`.

    Args:
      file: as `read` gave it.
      format: Pillow's name of it.

    Raises:
      UserError: it cannot hold the size, the bits, the transparency, the colours or the frames.
    """
    check_available(format)
    longest, limit = max(max(frame.shape[:2]) for frame in file.frames), convert.KINDS[format].side
    if limit and longest > limit:
        raise UserError(
            f"{file.name}: a side of {longest:,} pixels, {format} has at most {limit:,}; choose "
            "another format"
        )
    try:
        pages = convert.fitting(file._pages, file.format, format)
    except ValueError as error:
        raise UserError(
            f"{file.name}: {error} would be lost in {format}; choose another format"
        ) from None
    with _encoding(file.name, format), _without_pillow_limit():
        with Image.open(io.BytesIO(file._content), formats=_readable(file._content)) as image:
            details = convert.metadata(image) | convert.colour_tags(image, file._content)
        lossless = convert.KINDS[file.format].lossless
        content = convert.empty_file(format, pages[0], details, lossless=lossless)
        with Image.open(io.BytesIO(content), formats=_readable(content)) as image:
            storage, _ = _FORMATS[format].storage(image, content)
            made = convert.metadata(image) | convert.colour_tags(image, content)
            lost = convert.lost(details, made)
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    storage |= convert.STORAGE.get(format, {})
    loop = pages[0].storage.get("loop", 1 if file.format == "GIF" else None)  # a GIF plays once
    storage |= {} if loop is None else {"loop": loop}
    pages = [dataclasses.replace(page, orientation=orientation, storage=storage) for page in pages]
    frames = [rgb(page) for page in pages]
    return ImageFile(file.name, format, frames, [*file.left_out, *lost], pages, content)


def to_pillow(file: ImageFile, restored: np.ndarray) -> Image.Image:
    """The only frame of `file` with new RGB as an upright Pillow image.

    It has the mode of the file, but 'LA' or 'RGBA' where a palette or a transparent colour makes
    pixels transparent, and 'RGB' or 'RGBA' for GIF. In 'I;16' the transparent colour stays. That,
    EXIF, XMP and ICC profile are in its `info`, under the names of Pillow's options.

    Args:
      file: as `read` gave it.
      restored: new RGB in the shape and type of its frame.

    Raises:
      UserError: it has several frames, or colours of 16 bits, which Pillow cannot hold.
    """
    page = file._pages[0]
    is_deep = page.samples.dtype == np.uint16  # Pillow has no alpha of 16 bits
    page = with_rgb(page if is_deep else convert.with_alpha(page), restored)
    problem = "colours of 16 bits" if encoders.is_16_bit_colour(page) else None
    if len(file.frames) > 1:
        problem = f"{len(file.frames)} frames"
    if problem:
        raise UserError(f"{file.name}: {problem} do not fit a Pillow image; use the command")
    image = encoders.pillow_image(dataclasses.replace(page, orientation=1))
    with Image.open(io.BytesIO(file._content), formats=_readable(file._content)) as original:
        image.info |= previews.in_options(convert.metadata(original), page)
    if is_deep and page.transparent is not None:
        (image.info["transparency"],) = page.transparent
    exif = image.getexif()
    if exif.pop(ExifTags.Base.Orientation, 1) != 1:
        image.info["exif"] = exif.tobytes()
    elif "exif" in image.info:
        image.info["exif"] = convert.EXIF_ID + image.info["exif"]  # without it JPEG's is not read
    return image


def format_of(path: str | os.PathLike) -> str | None:
    """Pillow's name of the format that a path's suffix stands for; None if it is no image's."""
    name = os.fspath(path).lower()
    return next((format for format, known in _SUFFIXES.items() if name.endswith(known)), None)


def _format_and_count(image: Image.Image) -> tuple[str, int]:
    """Pillow's name of the format, and the number of frames that are restored."""
    if image.format in ("JPEG", "MPO", "HEIF"):
        return image.format.replace("MPO", "JPEG"), 1
    return image.format, getattr(image, "n_frames", 1)


def _read_pages(image: Image.Image, content: bytes, name: str) -> list[Page]:
    format, count = _format_and_count(image)
    pages, canvas = [], image.size
    for index in range(count):
        if count > 1:  # else it is there, in HEIC not at 0
            image.seek(index)
        if image.size != canvas and format != "TIFF":  # Pillow extends a GIF as far as its frames
            raise UserError(
                f"{name}: frame {index + 1} is larger than the canvas; convert it first"
            )
        try:
            storage, left_out = _FORMATS[format].storage(image, content)
        except UserError as error:  # of a kind that would be lost
            raise UserError(f"{name}: {error}") from None
        page = decode.read_page(image, index, count, content, name, storage)
        if format == "JXL":  # it is written upright, as its readers ignore what EXIF says
            page = dataclasses.replace(page, orientation=1)
        pages.append(dataclasses.replace(page, left_out=left_out))
    return pages


def _check_readable(content: bytes, pages: Sequence[Page]) -> None:
    """Raises an error unless `content` is an image file of such pages."""
    formats = _readable(content)
    with images.opened(io.BytesIO(content), "the encoded image", formats) as image:
        again = _read_pages(image, content, "the encoded image")
    expected, found = (
        [(page.orientation, page.samples.shape[:2], page.samples.dtype) for page in pages]
        for pages in (pages, again)
    )
    # Encoders of animations merge frames that are equal.
    if found[:1] != expected[:1] or (len(found) != len(expected) and image.format == "TIFF"):
        raise ValueError("it would come back as another image")


@contextlib.contextmanager
def _encoding(name: str, format: str) -> Iterator[None]:
    """Makes one line of what an encoder raises within."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # of any type, as formats and their metadata have many encoders
        raise UserError(
            f"{name}: cannot be stored as {format} ({one_line(error)}); convert it first"
        ) from error


def _load(source: str | os.PathLike | bytes, name: str | None) -> tuple[bytes, str]:
    """Content and name."""
    if not isinstance(source, bytes):
        return images.read_bytes(source), name or os.fspath(source)
    name = name or "the image"
    if not source:
        raise UserError(f"{name}: the file is empty (0 bytes); copy it again or remove it")
    return source, name


@contextlib.contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Lifts Pillow's limit of pixels, which `_check_size` replaces.

    It is a global of Pillow that its decoders read, hence the lock.
    """
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_size(image: Image.Image, count: int, file_size: int, name: str) -> None:
    """Refuses decompression bombs by what the headers claim; decodes nothing.

    Args:
      image: the file at its first frame.
      count: its frames; all have the same canvas, but for the pages of a TIFF.
      file_size: bytes.
      name: what messages call the file.
    """
    pixels = size = 0
    for index in range(count if image.format == "TIFF" else 1):
        if index:
            image.seek(index)
        area = image.width * image.height * (1 if image.format == "TIFF" else count)
        pixels += area
        size += area * decode.bytes_per_pixel(image)
    if count > 1:
        image.seek(0)
    frames = f" in {count} frames" if count > 1 else f", {image.width}x{image.height}"
    claim = f"{name}: claims {pixels:,} pixels{frames}"
    if size > MAX_BYTES:
        raise UserError(f"{claim}, more than {MAX_BYTES:,} bytes; split it into smaller ones")
    if pixels > max(TRUSTED_PIXELS, MAX_PIXELS_PER_BYTE * file_size):
        raise UserError(
            f"{claim}, more than {file_size:,} bytes can hold; copy it again or remove it"
        )
