"""Thumbnails and other previews show the new pixels or nothing."""

import io
import struct

import numpy as np
import pytest
from media import encoded, noise
from PIL import ExifTags, Image

from manas_jax.inference import image_files
from manas_jax.inference.image_files import previews

THUMBNAIL = encoded(Image.fromarray(noise(30, 40, 3)), "JPEG", quality=60)
MAKER_NOTE = b"a note with offsets of its own"


def exif_with(thumbnail, order=">"):
    """EXIF with a maker's note in the directory of pixels, and a thumbnail in the next one."""
    first = struct.pack(order + "H", 1) + struct.pack(order + "HHLL", 37500, 7, len(MAKER_NOTE), 26)
    second_at = 26 + len(MAKER_NOTE)
    start = second_at + 2 + 3 * 12 + 4
    second = struct.pack(order + "H", 3) + b"".join(
        struct.pack(order + "HHLL", tag, 4, 1, value)
        for tag, value in ((256, 40), (513, start), (514, len(thumbnail)))
    )
    header = {">": b"MM", "<": b"II"}[order] + struct.pack(order + "HL", 42, 8)
    return (
        header + first + struct.pack(order + "L", second_at) + MAKER_NOTE
        + second + bytes(4) + thumbnail
    )  # fmt: skip


def thumbnail_of(exif):
    """The thumbnail, or None."""
    found = Image.Exif()
    found.load(exif)
    directory = found.get_ifd(ExifTags.IFD.IFD1)
    if not directory:
        return None
    start, length = directory[513], directory[514]
    return Image.open(io.BytesIO(exif[start : start + length]))


@pytest.mark.parametrize("order", "<>")
def test_thumbnails_are_made_from_the_new_pixels(order):
    old = exif_with(THUMBNAIL, order)
    new = previews.in_exif(old, Image.new("RGB", (400, 200), (10, 200, 30)))
    thumbnail = thumbnail_of(new)
    assert thumbnail.size == (40, 20)
    assert np.abs(np.asarray(thumbnail, int) - (10, 200, 30)).max() <= 3
    assert len(new) == len(old) and new[:26] == old[:26] and MAKER_NOTE in new
    assert THUMBNAIL[-200:] not in new


@pytest.mark.parametrize("thumbnail", [THUMBNAIL[:300], b"uncompressed" * 20, b""])
def test_thumbnails_that_cannot_be_replaced_are_removed(thumbnail):
    old = exif_with(thumbnail)
    new = previews.in_exif(old, Image.fromarray(noise(300, 400, 3)))
    assert thumbnail_of(new) is None and len(new) == len(old)
    assert not thumbnail or thumbnail[-20:] not in new


@pytest.mark.parametrize(
    "exif",
    [b"", b"II", b"no EXIF", exif_with(THUMBNAIL)[:40], b"MM\0*\xff\xff\xff\xff", b"\0" * 99],
)
def test_damaged_exif_stays_as_it_is(exif):
    assert previews.in_exif(exif, Image.new("RGB", (4, 4))) == exif


def test_exif_without_thumbnail_stays_as_it_is():
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "maker"
    content = exif.tobytes()[6:]
    assert previews.in_exif(content, Image.new("RGB", (4, 4))) == content


def resource(number, data):
    return b"8BIM" + struct.pack(">HHL", number, 0, len(data)) + data + bytes(len(data) % 2)


def test_photoshop_thumbnails_are_removed():
    others = [resource(1028, b"caption"), resource(1060, b"xmp!")]
    content = others[0] + resource(1036, THUMBNAIL) + others[1] + resource(1033, b"old")
    assert previews.in_photoshop_resources(content) == b"".join(others)
    for damaged in (b"", b"8BIM", b"8BIM\4\4\0\0\0\0", b"other", others[0] + b"8BIM\4"):
        assert previews.in_photoshop_resources(damaged) == damaged


def test_xmp_thumbnails_are_removed():
    xmp = b"<a><xmp:Thumbnails><rdf:Alt>\n/9j/4AAQ</rdf:Alt></xmp:Thumbnails><b/></a>"
    assert previews.in_xmp(xmp) == b"<a><b/></a>"


@pytest.mark.parametrize(
    ("xmp", "expected"),
    [
        (b"<a:x/><a:x y='1'/>b<a:x>c</a:x >d<a:xy/>", b"bd<a:xy/>"),
        (b"<a:x>" * 9, b"<a:x>" * 9),
        (b"<a:x></a:x", b"<a:x></a:x"),
        (b"<a:x <a:x>1</a:x>", b"<a:x "),
    ],
)
def test_elements_are_removed(xmp, expected):
    assert previews.without_elements(xmp, rb"a:x") == expected


@pytest.mark.parametrize("tag", [b"<x:Thumbnails>", b"<x:Thumbnails ", b"<x:Thumbnails></x:"])
def test_hostile_xmp_takes_linear_time(tag):
    previews.in_xmp(tag * 100_000)  # minutes if it were quadratic


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_every_format_replaces_its_thumbnail(format):
    exif = exif_with(THUMBNAIL)
    source = encoded(Image.fromarray(noise(60, 80, 3)), format, exif=b"Exif\0\0" + exif)
    picture = image_files.read(source)
    buffer = io.BytesIO()
    image_files.write(picture, [np.full_like(picture.frames[0], 90)], buffer)
    found = Image.open(buffer).info["exif"].removeprefix(b"Exif\0\0")
    assert np.abs(np.asarray(thumbnail_of(found), int) - 90).max() <= 2
    assert MAKER_NOTE in found
