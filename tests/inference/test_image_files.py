"""Image files keep mode, bit depth, transparency, layout and metadata; only pixels change."""

import functools
import io
import os
import struct
import sys
import warnings
import zlib

import av
import numpy as np
import PIL
import pytest
import tifffile
from media import UNREADABLE_TIFFS, encoded, noise, noise_image, raw_tiff
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from manas_jax.data import images
from manas_jax.errors import UserError
from manas_jax.inference import image_files
from manas_jax.inference.image_files import encoders

HEIGHT, WIDTH = 11, 14
in_mode = functools.partial(noise_image, height=HEIGHT, width=WIDTH)
ICC = b"a profile that nobody looks into" * 40
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>rain</x:xmpmeta>"
PILLOW_12 = PIL.__version__.startswith("12.")
ORIENTATION, MAKER_NOTE = ExifTags.Base.Orientation, ExifTags.Base.MakerNote


def smooth(*channels, dtype=np.uint8):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramp = (y * 7 + x * 9) / 250 * np.iinfo(dtype).max
    return np.repeat(ramp[..., None], channels[0], -1).astype(dtype) if channels else ramp


def through(content, change=lambda frame: frame):
    """What comes back, as bytes."""
    picture = image_files.read(content)
    out = io.BytesIO()
    image_files.write(picture, [change(frame) for frame in picture.frames], out)
    return out.getvalue()


def image_of(content, frame=0):
    image = Image.open(io.BytesIO(content))
    image.seek(frame)
    return image


def deep_png(pixel_format, samples, chunks=()):
    """A PNG of 16 bits from FFmpeg, with chunks of our own after the header."""
    height, width = samples.shape[:2]
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt, context.time_base = (
        width, height, pixel_format, 1,
    )  # fmt: skip
    frame = av.VideoFrame(width, height, pixel_format)
    rows = np.zeros((height, frame.planes[0].line_size), np.uint8)
    packed = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    rows[:, : packed.shape[1]] = packed
    frame.planes[0].update(rows)
    content = b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])
    return content[:33] + b"".join(chunk(*c) for c in chunks) + content[33:]


def deep_pixels(content, pixel_format):
    """uint16 samples of a PNG, decoded by FFmpeg."""
    packet = av.Packet(content)
    (frame,) = av.CodecContext.create("png", "r").decode(packet)
    assert frame.format.name == pixel_format
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)
    channels = {"ya16be": 2, "rgb48be": 3, "rgba64be": 4}[pixel_format]
    used = np.ascontiguousarray(rows[:, : frame.width * channels * 2])
    return used.view(">u2").reshape(frame.height, frame.width, channels)


def deep_tiff(samples, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, photometric="rgb", **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks_of(content):
    position, found = 8, []
    while position < len(content):
        (length,) = struct.unpack_from(">I", content, position)
        found.append((content[position + 4 : position + 8], content[position + 8 :][:length]))
        position += 12 + length
    return found


LOSSLESS = [
    *[("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[("TIFF", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")],
    *[
        ("TIFF", "RGB", {"compression": name})
        for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd")
    ],
    ("TIFF", "1", {"compression": "group4"}),
    *[("BMP", mode, {}) for mode in ("1", "L", "P", "RGB")],
    *[("PPM", mode, {}) for mode in ("1", "L", "RGB", "I;16")],
    *[("WEBP", mode, {"lossless": True, "exact": True}) for mode in ("RGB", "RGBA")],
    ("GIF", "P", {}),
    ("GIF", "L", {}),
]


@pytest.mark.parametrize(("format", "mode", "options"), LOSSLESS)
def test_unchanged_pixels_are_lossless(format, mode, options):
    source = encoded(in_mode(mode), format, **options)
    with Image.open(io.BytesIO(source)) as image:
        before = image.copy()
        compression = image.info.get("compression")
    result = through(source)
    after = image_of(result)
    assert after.format == format and after.mode == before.mode
    if mode == "P":
        before, after = before.convert("RGBA"), after.convert("RGBA")
    np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    assert after.info.get("compression") == compression


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_keeps_mode_tables_and_subsampling(mode):
    image = Image.fromarray(smooth(3)).convert(mode)
    source = encoded(image, "JPEG", quality=83, subsampling=0 if mode == "RGB" else -1)
    result = image_of(through(source))
    assert result.mode == mode
    assert result.quantization == image_of(source).quantization
    assert [layer[1:3] for layer in result.layer] == [
        layer[1:3] for layer in image_of(source).layer
    ]
    difference = np.asarray(result, int) - np.asarray(image_of(source), int)
    assert np.abs(difference).max() <= 6


@pytest.mark.parametrize(
    ("pixel_format", "ratios"), [("yuvj444p", (1, 1)), ("yuvj422p", (2, 1)), ("yuvj420p", (2, 2))]
)
def test_jpeg_keeps_subsampling_by_factors_of_other_encoders(pixel_format, ratios):
    context = av.CodecContext.create("mjpeg", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 32, 16, pixel_format, 1
    frame = av.VideoFrame.from_ndarray(np.repeat(smooth(3)[:16, :32], 1, 0), "rgb24")
    frame = frame.reformat(format=pixel_format)
    source = b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])
    known = JpegImagePlugin.get_sampling(image_of(source))
    assert (known == -1) == (pixel_format != "yuvj420p")
    luma, *chroma = (layer[1:3] for layer in image_of(through(source)).layer)
    for width, height in chroma:
        assert (luma[0] / width, luma[1] / height) == ratios


def test_jpeg_keeps_metadata_segments():
    exif = Image.Exif()
    exif[ORIENTATION], exif[ExifTags.Base.Artist] = 6, "someone"
    source = encoded(
        Image.fromarray(smooth(3)), "JPEG", exif=exif, icc_profile=ICC, xmp=XMP, comment=b"dry",
        dpi=(72, 73), progressive=True,
    )  # fmt: skip
    source = source[:20] + b"\xff\xed\x00\x10Photoshop 3.0\0" + source[20:]
    before, after = image_of(source), image_of(through(source))
    assert after.info == before.info and after.info["progressive"] == 1
    assert dict(after.getexif()) == dict(exif)
    assert after.applist == before.applist
    assert after.size == before.size == (WIDTH, HEIGHT)


def test_webp_keeps_metadata_and_stays_lossy():
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    image = Image.fromarray(noise(HEIGHT, WIDTH, 4))
    source = encoded(image, "WEBP", quality=80, exif=exif, icc_profile=ICC, xmp=XMP)
    result = through(source)
    before, after = image_of(source), image_of(result)
    assert {k: after.info[k] for k in ("exif", "icc_profile", "xmp")} == {
        k: before.info[k] for k in ("exif", "icc_profile", "xmp")
    }
    assert b"VP8 " in result and after.size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(np.asarray(after)[..., 3], np.asarray(before)[..., 3])


@pytest.mark.parametrize(
    ("pixel_format", "channels"), [("rgb48be", 3), ("rgba64be", 4), ("ya16be", 2)]
)
def test_16_bit_png_in_colour(pixel_format, channels):
    samples = noise(HEIGHT, WIDTH, channels, dtype=np.uint16)
    extra = [(b"gAMA", struct.pack(">I", 45455)), (b"tEXt", b"Comment\0dry")]
    source = deep_png(pixel_format, samples, extra)
    (frame,) = image_files.read(source).frames
    colours = samples[..., :3] if channels > 2 else np.repeat(samples[..., :1], 3, -1)
    assert frame.dtype == np.uint16
    np.testing.assert_array_equal(frame, colours)
    result = through(source)
    np.testing.assert_array_equal(deep_pixels(result, pixel_format), samples)
    assert [c for c in chunks_of(result) if c[0] in (b"gAMA", b"tEXt")] == extra
    darker = deep_pixels(through(source, lambda x: x // 2), pixel_format)
    if channels == 4:
        np.testing.assert_array_equal(darker, np.dstack([samples[..., :3] // 2, samples[..., 3]]))
    if channels == 2:
        np.testing.assert_array_equal(darker, np.dstack([samples[..., 0] // 2, samples[..., 1]]))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "predictor": True},
        {"compression": "zlib", "rowsperstrip": 4},
        {"tile": (16, 16)},
    ],
)
def test_16_bit_tiff_in_colour(byteorder, channels, options):
    samples = noise(HEIGHT, WIDTH, channels, dtype=np.uint16)
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    source = deep_tiff(samples, byteorder=byteorder, iccprofile=ICC, **options, **extra)
    (frame,) = image_files.read(source).frames
    np.testing.assert_array_equal(frame, samples[..., :3])
    result = through(source)
    with tifffile.TiffFile(io.BytesIO(result)) as file:
        np.testing.assert_array_equal(file.asarray(), samples)
        page = file.pages[0]
        assert page.compression == (8 if "compression" in options else 1)
        assert page.predictor == (2 if options.get("predictor") else 1)
        assert page.tags[34675].value == ICC


def test_16_bit_tiff_is_turned_upright():
    samples = noise(HEIGHT, WIDTH, 3, dtype=np.uint16)
    source = deep_tiff(samples, extratags=[(274, 3, 1, 8, True)])
    np.testing.assert_array_equal(image_files.read(source).frames[0], np.rot90(samples))
    with tifffile.TiffFile(io.BytesIO(through(source))) as file:
        np.testing.assert_array_equal(file.asarray(), samples)
        assert file.pages[0].tags[274].value == 8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_keeps_premultiplied_alpha(dtype):
    samples = noise(HEIGHT, WIDTH, 4, dtype=dtype)
    source = deep_tiff(samples, extrasamples=["assocalpha"])
    with tifffile.TiffFile(io.BytesIO(through(source))) as file:
        np.testing.assert_array_equal(file.asarray(), samples)
        assert file.pages[0].extrasamples == (1,)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_with_unspecified_extra_channel_is_refused(dtype):
    source = deep_tiff(noise(HEIGHT, WIDTH, 4, dtype=dtype), extrasamples=["unspecified"])
    with pytest.raises(UserError, match="extra channel"):
        image_files.read(source)


def test_16_bit_tiff_where_0_is_white():
    samples = noise(HEIGHT, WIDTH, dtype=np.uint16)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, photometric="miniswhite")
    (frame,) = image_files.read(buffer.getvalue()).frames
    np.testing.assert_array_equal(frame[..., 1], 65535 - samples)
    with tifffile.TiffFile(io.BytesIO(through(buffer.getvalue()))) as file:
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.MINISBLACK
        np.testing.assert_array_equal(file.asarray(), 65535 - samples)


@pytest.mark.parametrize("reason", UNREADABLE_TIFFS)
def test_tiff_of_samples_that_are_not_understood_is_refused(reason):
    bits, photometric, tags = UNREADABLE_TIFFS[reason]
    with pytest.raises(UserError, match=reason):
        image_files.read(raw_tiff(bytes(range(1, 97)), (4, 2), bits, photometric, tags))


def test_greyscale_tiff_with_premultiplied_alpha_is_refused():
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, noise(HEIGHT, WIDTH, 2), photometric="minisblack", extrasamples=["assocalpha"]
    )
    with pytest.raises(UserError, match=r"premultiplied|unusual kind of samples"):
        image_files.read(buffer.getvalue())


def test_photoshop_layers_and_directories_beside_the_pages_are_left_out():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        layers = (37724, 7, 6, b"layers", True)
        writer.write(noise(HEIGHT, WIDTH, 3), photometric="rgb", subifds=1, extratags=[layers])
        writer.write(noise(4, 4, 3), photometric="rgb")
    source = buffer.getvalue()
    left_out = ["directories beside the pages (SubIFDs)", "Photoshop layers"]
    assert image_files.read(source).left_out == left_out
    result = through(source)
    assert b"layers" not in result and image_files.read(result).left_out == []


def test_tiff_keeps_jpeg_compression():
    source = encoded(Image.fromarray(smooth(3)), "TIFF", compression="jpeg")
    result = image_of(through(source))
    assert result.info["compression"] == "jpeg"
    assert np.abs(np.asarray(result, int) - np.asarray(image_of(source))).max() <= 8


def test_16_bit_tiff_keeps_lzw():
    samples = noise(HEIGHT, WIDTH, 3, dtype=np.uint16)
    lzw = encoders.with_ffmpeg("tiff", "rgb48le", samples, {"compression_algo": "lzw"})
    result = through(lzw)
    assert image_of(result).info["compression"] == "tiff_lzw"
    np.testing.assert_array_equal(image_files.read(result).frames[0], samples)


def test_tiff_keeps_tags_of_every_page():
    pages = []
    modes = ("RGB", "L", "1", "RGBA" if PILLOW_12 else "P")  # 12 refuses other pages with palettes
    for number, mode in enumerate(modes):
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[270], info[ORIENTATION] = f"page {number}", 6
        info[33432] = "nobody"
        image = in_mode(mode).resize((WIDTH + number, HEIGHT))
        pages.append((image, info))
    out = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(out) as writer:
        for image, info in pages:
            image.save(
                writer, "TIFF", tiffinfo=info, dpi=(300, 200), icc_profile=ICC,
                compression="tiff_lzw",
            )  # fmt: skip
            writer.newFrame()
    source = out.getvalue()
    picture = image_files.read(source)
    assert [f.shape for f in picture.frames] == [(WIDTH + i, HEIGHT, 3) for i in range(4)]
    result = through(source)
    assert image_of(result).n_frames == 4
    for number, (image, _) in enumerate(pages):
        after = image_of(result, number)
        kept = {tag: after.tag_v2[tag] for tag in (270, 274, 282, 283, 296, 33432, 34675)}
        assert kept == {
            270: f"page {number}", 274: 6, 282: 300, 283: 200, 296: 2, 33432: "nobody", 34675: ICC,
        }  # fmt: skip
        assert after.mode == image.mode
        upright = image.transpose(Image.Transpose.ROTATE_270).convert("RGB")
        np.testing.assert_array_equal(np.asarray(after.convert("RGB")), np.asarray(upright))


def test_tiff_keeps_exif():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ExifTags.Base.Make] = "maker"
    exposure = TiffImagePlugin.IFDRational(1, 60)
    tags[ExifTags.IFD.Exif] = {ExifTags.Base.ExposureTime: exposure, MAKER_NOTE: b"\1\2note"}
    tags[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    source = encoded(in_mode("RGB"), "TIFF", tiffinfo=tags)
    assert image_of(source).getexif().get_ifd(ExifTags.IFD.Exif)[MAKER_NOTE] == b"\1\2note"
    after = image_of(through(source)).getexif()
    assert after.get_ifd(ExifTags.IFD.Exif)[MAKER_NOTE] == b"\1\2note"
    assert after[ExifTags.Base.Make] == "maker"
    assert after.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] == 1 / 60
    assert after.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_frames_are_upright_and_files_keep_orientation(format, orientation):
    stored = smooth(3)
    stored[:5, :6] = (250, 20, 20)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    source = encoded(Image.fromarray(stored), format, exif=exif, **options.get(format, {}))
    (frame,) = image_files.read(source).frames
    turned = Image.fromarray(stored)
    turned.getexif()[ORIENTATION] = orientation
    tolerance = 60 if format == "JPEG" else 0
    upright = np.asarray(ImageOps.exif_transpose(turned), int)
    assert frame.shape == upright.shape
    assert np.abs(frame - upright).mean() <= tolerance / 10
    after = image_of(through(source))
    assert (after.tag_v2 if format == "TIFF" else after.getexif())[ORIENTATION] == orientation
    if format != "TIFF":  # Pillow turns TIFF by itself
        assert np.abs(np.asarray(after, int) - stored).mean() <= tolerance / 10
    (again,) = image_files.read(through(source)).frames
    assert np.abs(again.astype(int) - frame).max() <= tolerance


def test_png_orientation_after_the_pixels():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    source = encoded(in_mode("RGB"), "PNG")
    source = source[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + source[-12:]
    (frame,) = image_files.read(source).frames
    np.testing.assert_array_equal(frame, np.rot90(np.asarray(in_mode("RGB")), -1))
    assert chunks_of(through(source))[-2:] == chunks_of(source)[-2:]


def test_png_keeps_metadata_chunks():
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a street")
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "maker"
    source = encoded(
        in_mode("RGB"), "PNG", pnginfo=text, icc_profile=ICC, exif=exif, dpi=(300, 200)
    )
    last = chunk(b"tEXt", b"Late\0yes") + source[-12:]
    source = (
        source[:33] + chunk(b"sBIT", b"\5\6\7") + chunk(b"prVt", b"own") + source[33:-12] + last
    )
    others = [c for c in chunks_of(source) if c[0] != b"IDAT"]
    result = through(source, lambda x: 255 - x)
    assert [c for c in chunks_of(result) if c[0] != b"IDAT"] == others
    np.testing.assert_array_equal(np.asarray(image_of(result)), 255 - noise(HEIGHT, WIDTH, 3))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_keeps_low_bit_depths(bits):
    levels = 2**bits - 1
    grey = noise(HEIGHT, WIDTH) % (levels + 1)
    source = encoded(Image.fromarray((grey * (255 // levels)).astype(np.uint8)), "PNG", bits=bits) \
        if bits > 1 else encoded(Image.fromarray(grey > 0), "PNG")  # fmt: skip
    result = through(source)
    assert chunks_of(result)[0] == chunks_of(source)[0]
    np.testing.assert_array_equal(np.asarray(image_of(result)), np.asarray(image_of(source)))


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 250, 5))])
def test_palette_keeps_transparency(transparency):
    source = encoded(in_mode("P"), "PNG", transparency=transparency)
    before = np.asarray(image_of(source).convert("RGBA"))
    np.testing.assert_array_equal(np.asarray(image_of(through(source)).convert("RGBA")), before)
    result = image_of(through(source, lambda x: x // 2))
    assert result.mode == "P"
    after = np.asarray(result.convert("RGBA"))
    np.testing.assert_array_equal(after[..., 3], before[..., 3])
    np.testing.assert_array_equal(after[..., :3], before[..., :3] // 2)


def test_palette_is_fitted_to_new_colours():
    source = encoded(in_mode("P"), "PNG")
    (before,) = image_files.read(source).frames
    new = before // 2 + noise(HEIGHT, WIDTH, 1, seed=3) % 8
    result = image_of(through(source, lambda x: new))
    assert dict(chunks_of(through(source, lambda x: new)))[b"PLTE"] == bytes(
        result.getpalette("RGB")[:150]
    )
    assert np.abs(np.asarray(result.convert("RGB"), int) - new).max() <= 7


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 8, 9))])
def test_transparent_colour_stays_where_it_was(mode, key):
    samples = np.array(in_mode(mode))
    samples[2:4, 3:5] = key
    samples[5, 5] = 100
    source = encoded(Image.fromarray(samples), "PNG", transparency=key)
    before = np.asarray(image_of(source).convert("RGBA"))
    np.testing.assert_array_equal(np.asarray(image_of(through(source)).convert("RGBA")), before)

    def hostile(frame):
        new = np.full_like(frame, 0) + np.uint8(key)
        new[2:4, 3:5] = 50
        return new

    after = np.asarray(image_of(through(source, hostile)).convert("RGBA"))
    np.testing.assert_array_equal(after[..., 3], before[..., 3])
    assert after[..., 3].min() == 0


def test_transparent_colour_at_other_bit_depths():
    one = encoded(in_mode("1"), "PNG", transparency=1)
    deep = encoded(in_mode("I;16"), "PNG", transparency=int(noise(1, dtype=np.uint16)[0]))
    for source, key in ((one, 255), (deep, int(noise(1, dtype=np.uint16)[0]))):
        was = np.asarray(image_of(source)) == (key != 0 if source is one else key)
        assert was.any()
        for new in (0, key):
            result = through(source, lambda x, new=new: np.full_like(x, new))
            after = np.asarray(image_of(result))
            np.testing.assert_array_equal(after == (key != 0 if source is one else key), was)
        assert chunks_of(result)[:2] == chunks_of(source)[:2]


def test_transparent_colour_of_16_bit_rgb():
    samples = noise(HEIGHT, WIDTH, 3, dtype=np.uint16)
    key = (b"tRNS", samples[3, 4].astype(">u2").tobytes())
    source = deep_png("rgb48be", samples, [key])
    result = through(source, lambda x: x // 2)
    assert key in chunks_of(result)
    (after,) = image_files.read(result).frames
    expected = samples // 2
    expected[3, 4] = samples[3, 4]
    np.testing.assert_array_equal(after, expected)


def test_higher_bits_of_a_transparent_colour_are_ignored():
    source = encoded(in_mode("L"), "PNG", transparency=5)
    odd = source.replace(chunk(b"tRNS", b"\0\5"), chunk(b"tRNS", b"\1\5"))
    assert odd != source
    result = through(odd, lambda x: np.full_like(x, 5))
    assert (b"tRNS", b"\1\5") in chunks_of(result)
    np.testing.assert_array_equal(
        np.asarray(image_of(result)) == 5, np.asarray(image_of(source)) == 5
    )


def test_png_with_texts_and_profiles_of_megabytes():
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "dry " * 2**19, zip=True)
    text.add_itxt("Long", "wet " * 2**19, zip=True)
    source = encoded(in_mode("RGB"), "PNG", pnginfo=text, icc_profile=bytes(2**21))
    others = [c for c in chunks_of(source) if c[0] != b"IDAT"]
    assert [c for c in chunks_of(through(source)) if c[0] != b"IDAT"] == others


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_unchanged(mode):
    source = encoded(in_mode(mode), "PNG")
    after = np.asarray(image_of(through(source, lambda x: 255 - x)))
    before = np.asarray(in_mode(mode))
    np.testing.assert_array_equal(after[..., -1], before[..., -1])
    np.testing.assert_array_equal(after[..., :-1], 255 - before[..., :-1])


def test_greyscale_becomes_luma():
    colours = noise(HEIGHT, WIDTH, 3, seed=5)
    result = image_of(through(encoded(in_mode("L"), "PNG"), lambda x: colours))
    np.testing.assert_array_equal(np.asarray(result), Image.fromarray(colours).convert("L"))
    deep = noise(HEIGHT, WIDTH, 3, seed=5, dtype=np.uint16)
    result = image_of(through(encoded(in_mode("I;16"), "PNG"), lambda x: deep))
    expected = deep.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(np.asarray(result) - expected).max() <= 1.5


def test_cmyk_keeps_black():
    samples = noise(HEIGHT, WIDTH, 4) // 4 + 40
    source = encoded(Image.fromarray(samples, "CMYK"), "TIFF")
    (before,) = image_files.read(source).frames
    result = image_of(through(source, lambda x: x - np.uint8(10)))
    after = np.asarray(result)
    np.testing.assert_array_equal(after[..., 3], samples[..., 3])
    assert np.abs(np.asarray(result.convert("RGB"), int) - (before.astype(int) - 10)).max() <= 1


def bmp_with_alpha(samples):
    height, width = samples.shape[:2]
    header = struct.pack(
        "<LllHHLLllLLLLLL", 108, width, height, 1, 32, 3, 0, 2835, 2835, 0, 0,
        0xFF0000, 0xFF00, 0xFF, 0xFF000000,
    ) + b"BGRs" + bytes(48)  # fmt: skip
    pixels = samples[::-1, :, [2, 1, 0, 3]].tobytes()
    offset = 14 + len(header)
    return b"BM" + struct.pack("<LHHL", offset + len(pixels), 0, 0, offset) + header + pixels


def test_bmp_keeps_alpha():
    source = bmp_with_alpha(noise(HEIGHT, WIDTH, 4))
    assert image_of(source).mode == "RGBA"
    assert through(source + b"a profile") == source + b"a profile"
    assert image_files.read(source).left_out == []


def with_profile(bmp):
    """A BMP with the longer header of version 5 that announces a profile."""
    longer = bytearray(bmp[:54] + bytes(84) + bmp[54:] + b"profile")
    longer[10:14], longer[14], longer[70:74] = struct.pack("<L", 54 + 84), 124, b"DEBM"
    return bytes(longer)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (with_profile(encoded(in_mode("RGB"), "BMP")), "ICC profile"),
        (encoded(in_mode("P"), "GIF")[:-1] + b"!\xff\x0bXMP DataXMP\0;", "XMP"),
        (encoded(in_mode("P"), "GIF")[:-1] + b"!\xff\x0bICCRGBG1012\0;", "ICC profile"),
    ],
)
def test_metadata_that_cannot_be_written_is_named(source, name):
    assert image_files.read(source).left_out == [name]
    assert image_files.read(through(source)).left_out == []


DURATIONS = [40, 70, 100, 40]


def moving(mode="RGB"):
    frames = []
    for i in range(4):
        pixels = smooth(4)
        pixels[..., 3] = 255
        pixels[i : i + 5, i : i + 6, :3] = (200, 30 * i, 10)
        if mode == "RGBA":
            pixels[6:, i : i + 4] = 0
        frames.append(Image.fromarray(pixels).convert(mode))
    return frames


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_animations_keep_frames_durations_and_loop(format, mode):
    frames = moving(mode)
    options = {"GIF": {"disposal": 2}, "WEBP": {"lossless": True}}.get(format, {})
    source = encoded(
        frames[0], format, save_all=True, append_images=frames[1:], duration=DURATIONS, loop=3,
        **options,
    )  # fmt: skip
    assert len(image_files.read(source).frames) == 4
    result = through(source)
    assert image_of(result).info["loop"] == 3
    assert image_of(result).n_frames == 4
    for i in range(4):
        before, after = image_of(source, i), image_of(result, i)
        before, after = before.convert("RGBA"), after.convert("RGBA")
        assert image_of(result, i).format == format
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    times = [image_files.read(result)._pages[i].duration for i in range(4)]
    assert times == DURATIONS
    darker = through(source, lambda x: x // 2)
    for i in range(4):
        before = np.asarray(image_of(source, i).convert("RGBA"))
        after = np.asarray(image_of(darker, i).convert("RGBA"))
        np.testing.assert_array_equal(after[..., 3], before[..., 3])
        seen = before[..., 3] > 0
        np.testing.assert_array_equal(after[seen][:, :3], before[seen][:, :3] // 2)


def test_gif_palette_is_fitted_to_many_colours():
    source = encoded(in_mode("P"), "GIF", comment=b"dry")
    new = noise(HEIGHT, WIDTH, 3, seed=9)
    new = np.repeat(np.repeat(new, 2, 0), 2, 1)[:HEIGHT, :WIDTH] // 2
    result = image_of(through(source, lambda x: new))
    assert result.info["comment"] == b"dry"
    assert np.abs(np.asarray(result.convert("RGB"), int) - new).mean() < 1
    assert "loop" not in result.info


def test_apng_keeps_its_default_image():
    frames = moving()
    source = encoded(
        frames[0], "PNG", save_all=True, default_image=True, append_images=frames[1:],
        duration=DURATIONS[1:],
    )  # fmt: skip
    result = image_of(through(source))
    assert result.info["default_image"] and result.n_frames == 4
    result.seek(2)
    assert result.info["duration"] == DURATIONS[2]
    np.testing.assert_array_equal(np.asarray(result.convert("RGB")), np.asarray(frames[2]))


def test_mpo_keeps_the_first_image():
    frames = [Image.fromarray(smooth(3)), Image.fromarray(noise(HEIGHT, WIDTH, 3))]
    source = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    picture = image_files.read(source)
    assert picture.format == "JPEG" and len(picture.frames) == 1
    assert picture.left_out == ["further images (1)"]
    result = through(source)
    assert b"MPF\0" not in result and image_of(result).format == "JPEG"


def jpeg_with_xmp(properties, behind=b"", **options):
    xmp = f"<rdf:Description xmlns:dc='http://purl.org/dc/elements/1.1/' {properties}"
    return encoded(Image.fromarray(smooth(3)), "JPEG", xmp=xmp.encode(), **options) + behind


GAIN_MAP = (
    "xmlns:Container='http://ns.google.com/photos/1.0/container/' "
    "xmlns:Item='http://ns.google.com/photos/1.0/container/item/' "
    "xmlns:hdrgm='http://ns.adobe.com/hdr-gain-map/1.0/' hdrgm:Version='1.0' dc:title='rain'>"
    "<Container:Directory><rdf:Seq><Container:Item Item:Semantic='GainMap'/></rdf:Seq>"
    "</Container:Directory></rdf:Description>"
)
FILM = (
    "xmlns:GCamera='http://ns.google.com/photos/1.0/camera/' GCamera:MotionPhoto='1' "
    'GCamera:MicroVideoOffset="28" GCamera:BurstID="7" dc:title=\'rain\'>'
    "<GCamera:MicroVideo>1</GCamera:MicroVideo><GCamera:MotionPhotoVersion /></rdf:Description>"
)
SMALL_JPEG = encoded(Image.new("L", (4, 4)), "JPEG")
SMALL_FILM = b"\0\0\0\x1cftypisom" + bytes(16)


@pytest.mark.parametrize(
    ("properties", "behind", "left_out"),
    [
        (GAIN_MAP, SMALL_JPEG, ["HDR gain map"]),
        (FILM, SMALL_FILM, ["film"]),
        (GAIN_MAP + FILM, SMALL_JPEG + SMALL_FILM, ["HDR gain map", "film"]),
        ("/>", SMALL_JPEG * 2, ["further images (2)"]),
        ("/>", b"notes", ["5 bytes behind the image"]),
        ("/>", bytes(99), []),
        (GAIN_MAP, b"", []),
    ],
)
def test_what_lies_behind_a_jpeg_goes_with_all_claims_to_it(properties, behind, left_out):
    source = jpeg_with_xmp(properties, behind, progressive=True)
    assert image_files.read(source).left_out == left_out
    result = through(source)
    xmp = image_of(result).info["xmp"]
    for claim in (b"hdrgm:", b"GainMap", b"MicroVideo", b"MotionPhoto", b"Container:"):
        assert claim not in xmp
    for name in (b"dc:title='rain'", b'BurstID="7"'):
        assert (name in xmp) == (name in source)
    assert result.endswith(b"\xff\xd9") and result.count(b"\xff\xd9") == 1


def test_jpeg_with_junk_between_segments():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    source = encoded(
        Image.fromarray(smooth(3)), "JPEG", exif=exif, icc_profile=ICC, comment=b"dry", quality=95
    )
    clean = image_of(through(source))
    parts = [source[:2], source[2:20], source[20:]]  # SOI, JFIF, EXIF and all others
    assert parts[2].startswith(b"\xff\xe1")
    after = image_of(through(parts[0] + parts[1] + b"junk\xff\xff\0\xff" + parts[2]))
    assert after.info == clean.info and after.getexif()[ORIENTATION] == 6
    np.testing.assert_array_equal(np.asarray(after), np.asarray(clean))


def test_an_encoded_image_that_nothing_reads_is_refused(monkeypatch, tmp_path):
    picture = image_files.read(encoded(in_mode("RGB"), "PNG"), "a.png")
    encode = image_files.png.encode
    monkeypatch.setattr(image_files.png, "encode", lambda *x: encode(*x)[:-30])
    with pytest.raises(UserError, match=r"a\.png: cannot be stored as PNG"):
        image_files.write(picture, picture.frames, tmp_path / "b.png")
    assert not list(tmp_path.iterdir())


def test_write_respects_umask_and_refuses_other_frames(tmp_path):
    source = tmp_path / "in.png"
    source.write_bytes(encoded(in_mode("RGB"), "PNG"))
    picture = image_files.read(source)
    target = tmp_path / "new" / "folder" / "out.png"
    old = os.umask(0o027)
    try:
        image_files.write(picture, picture.frames, target)
    finally:
        os.umask(old)
    assert target.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in target.parent.iterdir()] == ["out.png"]
    (again,) = image_files.read(target).frames
    np.testing.assert_array_equal(again, picture.frames[0])
    with pytest.raises(ValueError):
        image_files.write(picture, [], target)
    with pytest.raises(ValueError):
        image_files.write(picture, [again[:-1]], target)
    with pytest.raises(ValueError):
        image_files.write(picture, [again.astype(np.uint16)], target)
    with pytest.raises(ValueError):
        picture.frames[0][0] = 0
    with pytest.raises(UserError, match="cannot write"):
        image_files.write(picture, picture.frames, source / "below.png")


def test_outputs_are_no_more_readable_than_inputs(tmp_path):
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    source.write_bytes(encoded(in_mode("RGB"), "PNG"))
    picture = image_files.read(source)
    for mode, expected in ((0o600, 0o600), (0o400, 0o600), (0o640, 0o640), (0o777, 0o644)):
        source.chmod(mode)
        image_files.write(picture, picture.frames, target, like=source)
        assert target.stat().st_mode & 0o777 == expected


def test_pictures_of_one_row(tmp_path):
    wide = encoded(Image.fromarray(np.resize(noise(1, 999, 3), (1, 2_200_000, 3))), "PNG")
    np.testing.assert_array_equal(
        image_files.read(through(wide)).frames[0], image_files.read(wide).frames[0]
    )
    header = struct.pack(">IIBBBBB", 2_200_000, 1, 16, 2, 0, 0, 0)
    data = zlib.compress(bytes(2_200_000 * 6 + 1))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    with pytest.raises(UserError, match="too many pixels for colours of 16 bits"):
        image_files.read(b"\x89PNG\r\n\x1a\n" + chunks)


def test_is_image():
    for format in images.FORMATS:
        suffixes = [k for k, v in Image.registered_extensions().items() if v == format]
        assert all(image_files.is_image(f"a{suffix}") for suffix in suffixes)
    assert image_files.is_image("a/B.PNG") and image_files.is_image("a.gif")
    assert not image_files.is_image(".a.png") and not image_files.is_image("a.mp4")


def test_errors_name_the_file_and_the_problem(tmp_path):
    def complaint(content):
        path = tmp_path / "bad.png"
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            image_files.read(path)
        message = str(caught.value)
        assert str(path) in message and "\n" not in message and "object at" not in message
        return message

    with pytest.raises(UserError, match="no such image"):
        image_files.read(tmp_path / "none.png")
    with pytest.raises(UserError, match="a folder, and no image"):
        image_files.read(tmp_path)
    with pytest.raises(UserError, match=r"upload\.png: the file is empty"):
        image_files.read(b"", "upload.png")
    assert "empty" in complaint(b"")
    assert "no image" in complaint(b"not a picture at all, but long enough to be one")
    for format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"):
        content = encoded(Image.fromarray(noise(40, 40, 3)), format)
        complaint(content[: len(content) // 2])
    deep = deep_png("rgb48be", noise(HEIGHT, WIDTH, 3, dtype=np.uint16))
    complaint(deep[: len(deep) // 2])
    assert "floating" in complaint(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))
    assert "16 bits" in complaint(encoded(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"))
    assert "16 bits" in complaint(b"P6 2 2 65535\n" + bytes(24))


def test_decompression_bombs_are_refused_and_large_images_are_not(monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    header = struct.pack(">IIBBBBB", 40000, 25001, 1, 0, 0, 0, 0)
    with pytest.raises(UserError, match="40000x25001, more than 3,000"):
        image_files.read(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(20)))
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "MAX_BYTES", HEIGHT * WIDTH * 3 * 3)
        frames = moving()
        source = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match="in 4 frames, more than"):
            image_files.read(source)
    small = [Image.new("L", (1, 1), 20 * i) for i in range(11)]
    bomb = encoded(small[0], "GIF", save_all=True, append_images=small[1:])
    assert bomb[6:10] == b"\1\0\1\0"
    bomb = bomb[:6] + struct.pack("<HH", 9459, 9459) + bomb[10:]
    monkeypatch.setattr(image_files.decode, "read_page", None)  # nothing is decoded
    with pytest.raises(UserError, match=r"984,199,491 pixels in 11 frames, more than \d+ bytes"):
        image_files.read(bomb)
    monkeypatch.undo()
    # What Pillow would refuse, in small: its limit is twice this.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("PNG", "TIFF", "GIF", "WEBP"):
            content = encoded(Image.fromarray(noise(30, 40)).convert("RGB"), format)
            (frame,) = image_files.read(content).frames
            assert frame.shape == (30, 40, 3)
            through(content)
    assert Image.MAX_IMAGE_PIXELS == 100 < limit


def test_gif_frames_beyond_the_canvas_are_refused():
    frames = moving()
    source = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    last = source.rindex(b"!\xf9\4") + 13  # its width, after a graphic control and a corner
    assert source[last - 5 : last - 4] == b","
    source = source[:last] + b"\xff\xff\xff\xff" + source[last + 4 :]
    with pytest.raises(UserError, match="frame 4 is larger than the canvas"):
        image_files.read(source)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_reported(tmp_path):
    path = tmp_path / "closed.png"
    path.write_bytes(encoded(in_mode("L"), "PNG"))
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        image_files.read(path)
