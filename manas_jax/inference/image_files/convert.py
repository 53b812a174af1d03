"""Pages and metadata of one format as those of another, or the reason why they do not fit.

A page is taken over into an empty file of the other format that has the metadata: what its format's
`encode` needs is then there as in any other file.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from manas_jax.inference.image_files import encoders, previews, tiff
from manas_jax.inference.image_files.pixels import Page, rgb


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a format can hold.

    Attributes:
      modes: those of `Page`, with up to 8 bits.
      deep_modes: those with 16 bits.
      animated: whether several frames are shown in turn.
      lossless: whether samples come back as they were.
      partial_alpha: whether a pixel can be half transparent.
      side: pixels of the longest side that its encoder writes and its decoder reads; None without
        such a limit.
    """

    modes: tuple[str, ...]
    deep_modes: tuple[str, ...] = ()
    animated: bool = False
    lossless: bool = True
    partial_alpha: bool = True
    side: int | None = None


KINDS = {
    "PNG": Kind(("1", "L", "LA", "P", "RGB", "RGBA"), ("L", "LA", "RGB", "RGBA"), animated=True),
    "JPEG": Kind(("L", "RGB", "CMYK"), lossless=False, side=65_500),
    "WEBP": Kind(("RGB", "RGBA"), animated=True, lossless=False, side=16_383),
    "TIFF": Kind(("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"), ("L", "RGB", "RGBA")),
    "BMP": Kind(("1", "L", "P", "RGB")),
    "GIF": Kind(("RGB", "RGBA"), animated=True, partial_alpha=False, side=65_535),
    "PPM": Kind(("1", "L", "RGB"), ("L",)),
    "AVIF": Kind(("L", "RGB", "RGBA"), animated=True, lossless=False, side=32_768),
    "HEIF": Kind(("L", "RGB", "RGBA"), lossless=False),
    "JXL": Kind(("L", "LA", "RGB", "RGBA"), ("L",), lossless=False),
}
"""Pillow's name of a format -> what files of it can hold that are written from another format."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"bits": 8},
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"subsampling": "4:4:4"},
    "HEIF": {"chroma": 444},
}
STORAGE = {"TIFF": {"compression": "tiff_adobe_deflate"}}
"""How pixels are stored in place of what is so in `empty_file`."""

_WRITTEN = ("exif", "icc_profile", "xmp", "dpi")
EXIF_ID = b"Exif\0\0"
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/note/"
_XMP_TAG = 700
_NOT_EXIF = tiff.PIXEL_TAGS | {_XMP_TAG, 33723, 34377, 34675, 330, 37724}  # of a TIFF
# ITU-T H.273: those of BT.709 and unspecified ones, which readers take for sRGB.
_SRGB_PRIMARIES, _SRGB_TRANSFERS, _SRGB_TRANSFER = (1, 2), (1, 2, 6, 13), 13
_SRGB_GAMMA = 1 / 2.2
_GREY_MODES = ("1", "L", "LA")
_NAMES = {
    "exif": "EXIF",
    "icc_profile": "ICC profile",
    "xmp": "XMP",
    "extended_xmp": "extended XMP",
    "photoshop": "Photoshop resources",
    "comment": "comment",
    "text": "text",
    "colour_tags": "colour tags",
}


def metadata(image: Image.Image) -> dict[str, Any]:
    """What describes an open image, by Pillow's names of its options."""
    found = {key: image.info[key] for key in (*_NAMES, "dpi") if image.info.get(key)}
    if "exif" in found:  # some formats have an identifier before it
        found["exif"] = found["exif"].removeprefix(EXIF_ID)
    if image.format == "TIFF":
        exif = image.getexif()
        for directory in {ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo} & exif.keys():
            exif[directory] = exif.get_ifd(directory)  # its offset is in this file
        for tag in _NOT_EXIF & exif.keys():
            del exif[tag]
        found |= {"exif": exif.tobytes()} if exif else {}
    if image.format in ("JPEG", "MPO") and _EXTENDED_XMP in found.get("xmp", b""):
        # It is beside the XMP, in segments that no other format has.
        namespace, name = _EXTENDED_XMP, rb"HasExtendedXMP"
        found["xmp"] = previews.without_properties(found["xmp"], namespace, name)
        found["extended_xmp"] = True
    texts = getattr(image, "text", {}).keys() - {"XML:com.adobe.xmp"}
    return found | ({"text": sorted(texts)} if image.format == "PNG" and texts else {})


def colours_of(profile: bytes | None) -> bytes:
    """The colours that an ICC profile describes, such as b"RGB " or b"GRAY"; empty without one."""
    return (profile or b"")[16:20]


def colour_tags(image: Image.Image, content: bytes) -> dict[str, Any]:
    """What a file says of its colours by tags, as an entry of `metadata`; nothing for sRGB.

    Args:
      image: open, with a profile or without.
      content: of its file.
    """
    if image.info.get("icc_profile"):  # it says more
        return {}
    primaries, transfer = 1, _SRGB_TRANSFER
    if image.format == "HEIF" and (nclx := image.info.get("nclx_profile")):
        primaries, transfer = nclx["color_primaries"], nclx["transfer_characteristics"]
    if image.format == "AVIF" and (at := content.find(b"colrnclx")) >= 0:
        primaries, transfer = struct.unpack(">HH", content[at + 8 : at + 12])
    if image.format == "PNG" and (at := content.find(b"cICP")) >= 0:
        primaries, transfer = content[at + 4 : at + 6]
    gamma = image.info.get("gamma") if image.format == "PNG" else None
    other_gamma = gamma and "srgb" not in image.info and abs(gamma - _SRGB_GAMMA) > 0.01
    if primaries in _SRGB_PRIMARIES and transfer in _SRGB_TRANSFERS and not other_gamma:
        return {}
    return {"colour_tags": (primaries, transfer, gamma)}


def empty_file(format: str, page: Page, details: dict[str, Any], *, lossless: bool) -> bytes:
    """A file of one pixel with metadata, and with how pixels like those of a page are stored."""
    options = dict(_OPTIONS.get(format, {})) if page.mode != "L" else {}
    options |= {key: details[key] for key in _WRITTEN if key in details}
    if page.mode not in _GREY_MODES and colours_of(options.get("icc_profile")) == b"GRAY":
        del options["icc_profile"]
    if format == "JPEG" and "exif" in options:
        options["exif"] = EXIF_ID + options["exif"]
    if format == "PNG" and "xmp" in options:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options["xmp"].decode("utf-8", "replace"))
    if format == "TIFF":
        exif = Image.Exif()
        exif.load(options.pop("exif", b""))
        if "xmp" in options:
            exif[_XMP_TAG] = options["xmp"]
        options["exif"] = exif
    if format in ("WEBP", "JXL"):
        options["lossless"] = lossless
    is_deep_grey = page.mode == "L" and page.samples.dtype == np.uint16
    image = Image.new("I;16" if is_deep_grey else page.mode, (1, 1))
    if page.mode == "P":
        image.putpalette(page.palette[:, :3].tobytes())
    return encoders.with_pillow(image, format, **options)


def lost(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What of `metadata` a file does not have any more, in words."""
    return [name for key, name in _NAMES.items() if key in before and key not in after]


def fitting(pages: Sequence[Page], source: str, target: str) -> list[Page]:
    """The pages in modes that a format can hold, with the same samples, colours and transparency.

    Args:
      pages: those of a file.
      source, target: Pillow's names of its format and of the other one.

    Raises:
      ValueError: it cannot hold them; says what, in words.
    """
    if len(pages) > 1 and not (KINDS[source].animated and KINDS[target].animated):
        raise ValueError(f"its {len(pages)} frames")
    return [_fitting(page, KINDS[target]) for page in pages]


def with_alpha(page: Page) -> Page:
    """The page with alpha, in mode 'LA' or 'RGBA', where any pixel is transparent."""
    return next(_equal_pages(page))


def _fitting(page: Page, kind: Kind) -> Page:
    is_deep = page.samples.dtype == np.uint16
    modes = kind.deep_modes if is_deep else kind.modes
    alpha = _alpha(page)
    if alpha is not None and not kind.partial_alpha and not np.isin(alpha, (0, 255)).all():
        raise ValueError("its transparency")
    for candidate in _equal_pages(page):
        if candidate.mode in modes:
            return candidate
    if is_deep and not kind.deep_modes:
        raise ValueError("its 16 bits per sample")
    if page.mode == "CMYK":
        raise ValueError("its CMYK colours")
    raise ValueError("its transparency" if alpha is not None else "its 16 bits per sample")


def _equal_pages(page: Page) -> Iterator[Page]:
    """The page in its own mode and in larger ones; without alpha where it is opaque."""
    alpha = _alpha(page)
    if alpha is None or page.mode in ("LA", "RGBA"):
        yield page
    if page.mode == "CMYK":
        return
    colours, is_grey = rgb(page), page.mode in _GREY_MODES
    plain = dataclasses.replace(page, palette=None, transparent=None)
    if alpha is None:
        if is_grey:
            yield dataclasses.replace(plain, mode="L", samples=colours[..., 0])
        yield dataclasses.replace(plain, mode="RGB", samples=colours)
        return
    alpha = alpha[..., None]
    if is_grey:
        samples = np.concatenate([colours[..., :1], alpha], -1)
        yield dataclasses.replace(plain, mode="LA", samples=samples)
    yield dataclasses.replace(plain, mode="RGBA", samples=np.concatenate([colours, alpha], -1))


def _alpha(page: Page) -> np.ndarray | None:
    """(H, W) in the type of `rgb`; None where every pixel is opaque."""
    samples = page.samples
    opaque = 65535 if samples.dtype == np.uint16 else 255
    if page.mode == "P":
        alpha = page.palette[samples, 3]
    elif page.mode in ("LA", "RGBA"):
        alpha = samples[..., -1]
    elif page.transparent is not None:
        clear = (samples.reshape(*samples.shape[:2], -1) == page.transparent).all(-1)
        alpha = np.where(clear, 0, opaque).astype(rgb(page).dtype)
    else:
        return None
    return None if (alpha == opaque).all() else alpha
