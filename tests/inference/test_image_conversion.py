"""Image files as files of another format: the same pixels and metadata, or a refusal."""

import io
import struct
import zlib

import numpy as np
import pytest
from media import encoded, noise, noise_image
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from manas_jax.errors import UserError
from manas_jax.inference import image_files

SIZE = (9, 13)
ICC = b"a profile that nobody looks into" * 40
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>rain</x:xmpmeta>"
LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP")


def described(mode, format):
    """A turned image of noise with EXIF, XMP and an ICC profile."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Artist] = 6, "someone"
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: b"a comment"}
    options = {"exif": exif, "icc_profile": ICC, "xmp": XMP}
    if format == "TIFF":
        options["tiffinfo"] = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in (*options.pop("exif").items(), (700, XMP)):
            options["tiffinfo"][tag] = value
    if format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    if format == "WEBP":
        options["lossless"] = True
    return encoded(noise_image(mode, *SIZE), format, **options)


def converted(content, format, change=lambda frame: frame):
    """The file as one of another format, and what it leaves out."""
    file = image_files.converted(image_files.read(content), format)
    out = io.BytesIO()
    image_files.write(file, [change(frame) for frame in file.frames], out)
    assert Image.open(io.BytesIO(out.getvalue())).format == format
    return out.getvalue(), file.left_out


@pytest.mark.parametrize("target", LOSSLESS)
@pytest.mark.parametrize(
    ("source", "mode"),
    [
        ("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "1"), ("PNG", "P"), ("PNG", "RGB"), ("TIFF", "L"),
        ("TIFF", "P"), ("BMP", "P"), ("BMP", "RGB"), ("GIF", "P"), ("PPM", "L"),
    ],
)  # fmt: skip
def test_pixels_stay(source, mode, target):
    if source == target:
        pytest.skip("no other format")
    content = encoded(noise_image(mode, *SIZE), source)
    (before,) = image_files.read(content).frames
    if target == "WEBP" and source == "JPEG":
        pytest.skip("lossy files stay lossy")
    (same,) = image_files.read(converted(content, target)[0]).frames
    np.testing.assert_array_equal(same, before)
    colours = noise(*before.shape[:2], 1, seed=3).repeat(3, -1)
    (other,) = image_files.read(converted(content, target, lambda _: colours)[0]).frames
    if mode not in ("1", "P"):
        np.testing.assert_array_equal(other, colours)


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("target", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_metadata_stay(source, target):
    if source == target:
        pytest.skip("no other format")
    content = described("RGB", source)
    result, left_out = converted(content, target)
    assert left_out == []
    before, after = (image_files.read(x).frames[0] for x in (content, result))
    assert before.shape == after.shape == (*SIZE[::-1], 3)  # upright
    image = Image.open(io.BytesIO(result))
    exif = image.getexif()
    assert exif[ExifTags.Base.Orientation] == 6 and exif[ExifTags.Base.Artist] == "someone"
    assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] == b"a comment"
    assert image.info["icc_profile"] == ICC and image.info["xmp"] == XMP


@pytest.mark.parametrize("target", ["BMP", "GIF", "PPM"])
def test_metadata_without_a_place_are_named_and_frames_upright(target):
    result, left_out = converted(described("RGB", "WEBP"), target)
    assert left_out == ["EXIF", "ICC profile", "XMP"]
    assert Image.open(io.BytesIO(result)).size == SIZE


def _with_chunk(content, kind, data):
    """A PNG with another chunk before its pixels."""
    at = content.index(b"IDAT") - 4
    chunk = kind + data
    return content[:at] + struct.pack(">I", len(data)) + chunk + struct.pack(
        ">I", zlib.crc32(chunk)
    ) + content[at:]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "data", "lost"),
    [
        (b"cICP", bytes([9, 16, 0, 1]), ["colour tags"]),
        (b"cICP", bytes([1, 13, 0, 1]), []),
        (b"gAMA", struct.pack(">I", 100_000), ["colour tags"]),
        (b"gAMA", struct.pack(">I", 45_455), []),
    ],
)
def test_colours_other_than_srgb_are_named(kind, data, lost):
    content = _with_chunk(encoded(noise_image("RGB", *SIZE), "PNG"), kind, data)
    assert converted(content, "WEBP")[1] == lost


def test_colour_tags_of_avif_are_named():
    content = encoded(noise_image("RGB", *SIZE), "AVIF")
    at = content.index(b"colrnclx") + 8
    assert converted(content, "PNG")[1] == []
    tagged = content[:at] + struct.pack(">HH", 12, 13) + content[at + 4 :]
    assert converted(tagged, "PNG")[1] == ["colour tags"]


@pytest.mark.parametrize("target", ["WEBP", "PNG"])
def test_profiles_of_grey_are_not_put_on_colours(target):
    profile = ICC[:16] + b"GRAY" + ICC[20:]
    content = encoded(noise_image("L", *SIZE), "JPEG", icc_profile=profile)
    result, left_out = converted(content, target)
    kept = Image.open(io.BytesIO(result)).info.get("icc_profile")
    assert (kept, left_out) == ((profile, []) if target == "PNG" else (None, ["ICC profile"]))


def test_comments_and_texts_are_named():
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a street")
    assert converted(encoded(noise_image("L", *SIZE), "PNG", pnginfo=text), "JPEG")[1] == ["text"]
    content = encoded(noise_image("L", *SIZE), "JPEG", comment=b"dry")
    assert converted(content, "PNG")[1] == ["comment"]


@pytest.mark.parametrize("target", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_stays(mode, target):
    content = encoded(noise_image(mode, *SIZE), "TIFF" if target == "PNG" else "PNG")
    before, after = (
        np.asarray(Image.open(io.BytesIO(x)).convert("RGBA"))
        for x in (content, converted(content, target)[0])
    )
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(("mode", "key"), [("P", 3), ("L", 7), ("RGB", (7, 8, 9))])
def test_transparent_colours_become_alpha(mode, key):
    image = noise_image(mode, *SIZE)
    image.putpixel((2, 2), key)
    content = encoded(image, "PNG", transparency=key)
    result = Image.open(io.BytesIO(converted(content, "TIFF")[0]))
    assert result.mode in ("LA", "RGBA")
    before = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    np.testing.assert_array_equal(np.asarray(result.convert("RGBA")), before)
    assert before[2, 2, 3] == 0


def test_alpha_of_opaque_pixels_is_dropped():
    image = noise_image("RGB", *SIZE)
    image.putalpha(255)
    result, _ = converted(encoded(image, "PNG"), "JPEG")
    assert Image.open(io.BytesIO(result)).mode == "RGB"


@pytest.mark.parametrize("target", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_stay(channels, target):
    content = deep(channels, "TIFF" if target == "PNG" else "PNG")
    before = image_files.read(content).frames[0]
    after = image_files.read(converted(content, target)[0]).frames[0]
    assert after.dtype == np.uint16
    np.testing.assert_array_equal(after, before)


def deep(channels, format):
    """A file with colours of 16 bits, made of one of 8 bits by writing into it."""
    file = image_files.read(encoded(noise_image("RGBA"[:channels], *SIZE), format))
    (page,) = file._pages
    samples = noise(*SIZE, channels, dtype=np.uint16)
    deep_page = type(page)(**{**vars(page), "samples": samples})
    return image_files._FORMATS[format].encode(file._content, [deep_page])


def test_animations_stay():
    first, *rest = (Image.fromarray(noise(*SIZE, 3, seed=i)) for i in range(3))
    options = {"save_all": True, "append_images": rest, "duration": [40, 70, 100], "loop": 2}
    content = encoded(first, "PNG", **options)
    result = converted(content, "WEBP")[0]
    before, after = (image_files.read(x) for x in (content, result))
    for old, new in zip(before.frames, after.frames, strict=True):
        np.testing.assert_array_equal(new, old)
    assert [page.duration for page in after._pages] == [40, 70, 100]
    assert Image.open(io.BytesIO(result)).info["loop"] == 2
    once = encoded(first, "GIF", save_all=True, append_images=rest)
    assert "loop" not in Image.open(io.BytesIO(once)).info
    for format in ("PNG", "WEBP"):
        assert Image.open(io.BytesIO(converted(once, format)[0])).info["loop"] == 1
    with pytest.raises(UserError, match="its 3 frames would be lost in JPEG"):
        converted(content, "JPEG")


@pytest.mark.parametrize(
    ("source", "mode", "target", "what"),
    [
        ("PNG", "RGBA", "JPEG", "transparency"),
        ("PNG", "LA", "GIF", "transparency"),
        ("PNG", "RGBA", "BMP", "transparency"),
        ("PNG", "I;16", "WEBP", "16 bits per sample"),
        ("TIFF", "CMYK", "PNG", "CMYK colours"),
    ],
)
def test_what_would_be_lost_is_refused(source, mode, target, what):
    message = f"^name: its {what} would be lost in {target}; choose another format$"
    file = image_files.read(encoded(noise_image(mode, *SIZE), source), "name")
    with pytest.raises(UserError, match=message):
        image_files.converted(file, target)


@pytest.mark.parametrize(
    ("format", "side"), [("WEBP", 16_383), ("JPEG", 65_500), ("GIF", 65_535), ("AVIF", 32_768)]
)
def test_sides_beyond_those_of_the_format_are_refused(format, side):
    """Before anything is restored, so that no work is lost."""
    file, longer = (
        image_files.read(encoded(Image.new("RGB", (width, 1)), "PNG"), "name")
        for width in (side, side + 1)
    )
    assert image_files.converted(file, format).frames[0].shape == (1, side, 3)
    message = f"^name: a side of {side + 1:,} pixels, {format} has at most {side:,}; choose"
    with pytest.raises(UserError, match=message):
        image_files.converted(longer, format)
