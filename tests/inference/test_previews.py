"""Thumbnails and other previews show the new pixels or nothing."""

import hashlib
import io
import re
import struct

import numpy as np
import pytest
from media import encoded, noise
from PIL import ExifTags, Image, PngImagePlugin

from manas_jax.inference import image_files
from manas_jax.inference.image_files import png, previews

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


# Previews in makers' notes


def _with_note(note):
    """EXIF whose maker's note holds `note`, and no thumbnail."""
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.MakerNote: note}
    return exif.tobytes()[6:]


def _grey(*shape):
    return Image.fromarray(np.full(shape, 90, np.uint8))


def test_previews_in_makers_notes_are_made_from_the_new_pixels():
    note = b"MAKER\0" + THUMBNAIL + b"\xff\xd8\xff no JPEG" + THUMBNAIL + b"the end"
    new = previews.in_bytes(note, Image.new("RGB", (400, 200), (10, 200, 30)))
    assert len(new) == len(note) and new.endswith(b"the end") and b"no JPEG" in new
    assert THUMBNAIL[-100:] not in new
    for start in (6, 6 + len(THUMBNAIL) + 11):
        preview = Image.open(io.BytesIO(new[start:]))
        assert preview.size == (40, 20)
        assert np.abs(np.asarray(preview, int) - (10, 200, 30)).max() <= 3


def test_previews_without_an_end_do_not_take_what_follows():
    for cut in (200, len(THUMBNAIL) - 30):
        note = THUMBNAIL[:cut] + b"further notes" + THUMBNAIL + b"the end"
        new = previews.in_bytes(note, Image.new("RGB", (400, 200)))
        assert new[:3] == bytes(3) and new[3 : cut + 13] == note[3 : cut + 13]
        assert new.endswith(b"the end") and len(new) == len(note)


def test_previews_that_do_not_fit_are_removed():
    tiny = encoded(_grey(30, 40), "JPEG", quality=1, optimize=True)
    assert previews.in_bytes(tiny, Image.fromarray(noise(30, 40, 3))) == bytes(len(tiny))


def test_hostile_notes_take_bounded_time():
    start = THUMBNAIL[:30]
    previews.in_bytes(start * 20_000, Image.new("RGB", (4, 4)))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_format_replaces_previews_in_makers_notes(format):
    exif = Image.Exif()
    exif.load(_with_note(b"MAKER\0" + THUMBNAIL))
    source = encoded(Image.fromarray(noise(60, 80, 3)), format, exif=exif)
    assert THUMBNAIL in source
    written = _made_grey(source)
    assert THUMBNAIL[-100:] not in written and b"MAKER\0" in written
    (note,) = (
        ifd[ExifTags.Base.MakerNote]
        for ifd in [Image.open(io.BytesIO(written)).getexif().get_ifd(ExifTags.IFD.Exif)]
    )
    preview = Image.open(io.BytesIO(note[6:]))
    assert np.abs(np.asarray(preview, int) - 90).max() <= 2


def _made_grey(source):
    """The file as it is written with grey pixels."""
    picture, buffer = image_files.read(source), io.BytesIO()
    image_files.write(picture, [np.full_like(picture.frames[0], 90)], buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("number", [3, 4, 5])
def test_previews_in_other_segments(number):
    source = encoded(Image.fromarray(noise(60, 80, 3)), "JPEG")
    data = b"Meta\0" + THUMBNAIL
    segment = struct.pack(">BBH", 0xFF, 0xE0 + number, len(data) + 2) + data
    written = _made_grey(source[:2] + segment + source[2:])
    assert b"Meta\0\xff\xd8" in written and THUMBNAIL[-100:] not in written


# Previews in XMP

XMP_ID, EXTENSION_ID = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
IMAGE_NAMESPACE = b"xmlns:GImage='http://ns.google.com/photos/1.0/image/'"


def xmp_of(attributes, content=b""):
    return (
        b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description " + attributes + b">" + content
        + b"</rdf:Description></x:xmpmeta>"
    )  # fmt: skip


def app1(data):
    return struct.pack(">BBH", 0xFF, 0xE1, len(data) + 2) + data


def extended_xmp(content, step=40_000):
    """Segments of XMP with an extension, which is split."""
    name = hashlib.md5(content).hexdigest().upper().encode()
    main = xmp_of(b"xmlns:n='http://ns.adobe.com/xmp/note/' n:HasExtendedXMP='" + name + b"'")
    parts = [
        app1(EXTENSION_ID + name + struct.pack(">LL", len(content), i) + content[i : i + step])
        for i in range(0, len(content), step)
    ]
    return app1(XMP_ID + main), parts


def extension_of(content):
    """The extension that the XMP of a JPEG names, None if the file lacks it."""
    wanted = re.search(rb"HasExtendedXMP='(\w{32})'", content)[1]
    parts = {}
    for found in re.finditer(re.escape(EXTENSION_ID), content):
        at = found.end()
        (length,) = struct.unpack_from(">H", content, found.start() - 2)
        name, (total, place) = content[at : at + 32], struct.unpack_from(">LL", content, at + 32)
        if name == wanted:
            parts[place] = content[at + 40 : found.start() - 2 + length]
    data = b"".join(part for _, part in sorted(parts.items()))
    assert len(data) == total and hashlib.md5(data).hexdigest().upper().encode() == wanted
    return data


@pytest.mark.parametrize("order", [1, -1])
def test_previews_in_extended_xmp_are_removed(order):
    history = b"<h>" + b"developed " * 9000 + b"</h>"
    pictures = b"<xmp:Thumbnails>" + b"/9j/" * 9000 + b"</xmp:Thumbnails>"
    image = b" " + IMAGE_NAMESPACE + b" GImage:Mime='image/jpeg' GImage:Data='" + b"/9j/" * 900
    main, parts = extended_xmp(xmp_of(image + b"'", pictures + history))
    source = encoded(Image.fromarray(noise(60, 80, 3)), "JPEG")
    written = _made_grey(b"".join([source[:2], main, *parts[::order], source[2:]]))
    assert b"/9j/" not in written
    assert extension_of(written) == xmp_of(b" " + IMAGE_NAMESPACE, history)


def test_extended_xmp_without_previews_stays():
    content = xmp_of(b"", b"<h>" + b"developed " * 20_000 + b"</h>")
    main, parts = extended_xmp(content)
    source = encoded(Image.fromarray(noise(60, 80, 3)), "JPEG")
    written = _made_grey(b"".join([source[:2], main, *parts, source[2:]]))
    assert main in written and extension_of(written) == content


@pytest.mark.parametrize("extension", [b"", b"A" * 32, b"A" * 32 + bytes(7)])
def test_damaged_extended_xmp_stays_as_it_is(extension):
    segment = app1(EXTENSION_ID + extension)
    source = encoded(Image.fromarray(noise(60, 80, 3)), "JPEG")
    assert segment in _made_grey(source[:2] + segment + source[2:])


@pytest.mark.parametrize("compressed", [False, True])
def test_previews_in_the_xmp_of_a_png_are_removed(compressed):
    info = PngImagePlugin.PngInfo()
    text = "<a><xmp:Thumbnails>/9j/4AAQ</xmp:Thumbnails><b/></a>"
    info.add_itxt("XML:com.adobe.xmp", text, zip=compressed)
    info.add_itxt("Title", text, zip=compressed)  # a text of the user's
    source = encoded(Image.fromarray(noise(60, 80, 3)), "PNG", pnginfo=info)
    found = Image.open(io.BytesIO(_made_grey(source)))
    assert found.text == {"XML:com.adobe.xmp": "<a><b/></a>", "Title": text}


@pytest.mark.parametrize("data", [b"\1\0\0\0no zlib", b"\1\0\0\0", b"", b"\2\0\0\0text"])
def test_damaged_xmp_of_a_png_stays_as_it_is(data):
    data = b"XML:com.adobe.xmp\0" + data
    assert png._with_clean_xmp(data) == data


def test_conversion_keeps_no_claim_to_extended_xmp_or_to_a_gain_map():
    main, parts = extended_xmp(xmp_of(b"", b"history"))
    claim = b"<x xmlns:hdrgm='http://ns.adobe.com/hdr-gain-map/1.0/' hdrgm:Version='1.0' "
    main = app1(main[4:].replace(b"<rdf:Description ", claim))
    source = encoded(Image.fromarray(noise(60, 80, 3)), "JPEG")
    picture = image_files.read(b"".join([source[:2], main, *parts, source[2:]]))
    buffer, other = io.BytesIO(), image_files.converted(picture, "WEBP")
    assert "extended XMP" in other.left_out
    image_files.write(other, other.frames, buffer)
    xmp = Image.open(buffer).info["xmp"]
    assert b"x:xmpmeta" in xmp and b"HasExtendedXMP" not in xmp and b"hdrgm:Version" not in xmp


def test_a_pillow_image_has_no_old_thumbnail():
    source = encoded(
        Image.fromarray(noise(60, 80, 3)), "JPEG", exif=b"Exif\0\0" + exif_with(THUMBNAIL)
    )
    picture = image_files.read(source)
    image = image_files.to_pillow(picture, np.full_like(picture.frames[0], 90))
    found = thumbnail_of(image.info["exif"].removeprefix(b"Exif\0\0"))
    assert np.abs(np.asarray(found, int) - 90).max() <= 2


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
