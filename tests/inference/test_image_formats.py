"""The kinds of image files in docs/formats.md: restored without a change, lossily, or refused."""

import io
import itertools
import struct
import zlib

import numpy as np
import PIL
import pytest
import tifffile
from media import encoded, noise, noise_image, raw_tiff
from PIL import Image

from manas_jax.errors import UserError
from manas_jax.inference import image_files

HEIGHT, WIDTH = 9, 13
SIZE = (HEIGHT, WIDTH)
PILLOW_12 = PIL.__version__.startswith("12.")


def chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png(bits, colour_type, interlaced=False, extra=b""):
    """A PNG of noise; colour types: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""

    def rows(samples):
        if not samples.size:
            return b""
        numbers = samples.reshape(len(samples), -1)
        if bits < 8:
            places = (numbers[..., None] >> np.arange(bits - 1, -1, -1)) & 1
            packed = np.packbits(places.reshape(len(numbers), -1).astype(np.uint8), 1)
        else:
            packed = numbers.astype(f">u{bits // 8}").view(np.uint8)
        return b"".join(b"\0" + row.tobytes() for row in packed)

    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    dtype = np.uint16 if bits == 16 else np.uint8
    samples = noise(*SIZE, channels, dtype=dtype) & (2**bits - 1)
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first row and column, and steps
        passes = [
            (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
            (1, 0, 2, 1),
        ]  # fmt: skip
    data = b"".join(rows(samples[top::down, left::right]) for top, left, down, right in passes)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour_type, 0, 0, interlaced)
    palette = chunk(b"PLTE", noise(2**bits, 3, seed=1).tobytes()) if colour_type == 3 else b""
    chunks = [chunk(b"IHDR", header), palette, extra, chunk(b"IDAT", zlib.compress(data))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IEND", b"")])


def tiff(mode, bits, order="<", **options):
    """A TIFF of noise in a mode, one of the keys below."""
    photometric, channels, extra = {
        "white is zero": ("miniswhite", 1, None),
        "black is zero": ("minisblack", 1, None),
        "grey and alpha": ("minisblack", 2, "unassalpha"),
        "rgb": ("rgb", 3, None),
        "rgba": ("rgb", 4, "unassalpha"),
        "premultiplied": ("rgb", 4, "assocalpha"),
        "further channel": ("rgb", 4, "unspecified"),
        "cmyk": ("separated", 4, None),
        "palette": ("palette", 1, None),
    }[mode]
    dtype = {1: bool, 8: np.uint8, 16: np.uint16}[bits]
    samples = noise(*SIZE, channels, dtype=np.uint8 if bits == 1 else dtype)
    samples = samples > 127 if bits == 1 else samples
    if options.get("planarconfig") == "separate":
        samples = np.moveaxis(samples, -1, 0)
    if mode == "palette":
        options["colormap"] = noise(3, 256).astype(np.uint16) * 257
    if extra:
        options["extrasamples"] = [extra]
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, samples.squeeze(), photometric=photometric, byteorder=order, metadata=None,
        **options,
    )  # fmt: skip
    return buffer.getvalue()


def small_bits(bits, photometric, fill_order=1):
    """A TIFF of greyscale or a palette of 1, 2 or 4 bits."""
    data = noise(HEIGHT * -(-WIDTH * bits // 8)).tobytes()
    tags = {266: (fill_order,)}
    if photometric == 3:
        tags[320] = tuple(int(x) * 257 for x in noise(3 * 2**bits))
    return raw_tiff(data, SIZE, (bits,), photometric, tags)


def bmp(bits, compression=0, masks=(), data=None, flipped=False):
    """A BMP of noise, with a palette up to 8 bits; compression 3 takes masks of channels."""
    palette = noise(2**bits, 4, seed=1).tobytes() if bits <= 8 else b""
    height = -HEIGHT if flipped else HEIGHT
    data = data or noise(HEIGHT * (-(-WIDTH * bits // 32) * 4), seed=2).tobytes()
    header = struct.pack(
        "<LllHHLLllLL", 40, WIDTH, height, 1, bits, compression, len(data), 2835, 2835,
        2**bits if bits <= 8 else 0, 0,
    ) + struct.pack(f"<{len(masks)}L", *masks)  # fmt: skip
    offset = 14 + len(header) + len(palette)
    start = b"BM" + struct.pack("<LHHL", offset + len(data), 0, 0, offset)
    return start + header + palette + data


def netpbm(kind, maximum=None, plain=False):
    samples = noise(*SIZE, 3 if kind in (3, 6) else 1).astype(int)
    samples = samples * 257 if maximum and maximum > 255 else samples
    samples %= (maximum or 1) + 1
    header = f"P{kind} {WIDTH} {HEIGHT}{'' if maximum is None else f' {maximum}'}\n"
    if plain:
        return (header + "\n".join(map(str, samples.ravel()))).encode()
    if maximum is None:
        return header.encode() + np.packbits(samples[..., 0].astype(np.uint8), 1).tobytes()
    return header.encode() + samples.astype(">u2" if maximum > 255 else "u1").tobytes()


def moving(format, mode, **options):
    first, *rest = (noise_image(mode, HEIGHT, WIDTH, seed=i) for i in range(3))
    return encoded(
        first, format, save_all=True, append_images=rest, duration=[40, 70, 90], **options
    )


def still(format, mode, **options):
    return encoded(noise_image(mode, HEIGHT, WIDTH), format, **options)


YCBCR = raw_tiff(noise(*SIZE, 3).tobytes(), SIZE, (8, 8, 8), 6, {530: (1, 1)})
RUNS = b"".join(bytes([WIDTH, i, 0, 0]) for i in range(HEIGHT)) + b"\0\1"  # RLE of 8 bits
COMPRESSIONS = ("packbits", "tiff_lzw", "tiff_adobe_deflate", "zstd", "lzma")

EXACT = {
    **{
        f"PNG {name}, {bits} bits{', interlaced' * interlaced}": png(bits, kind, interlaced)
        for name, kind, depths in [
            ("grey", 0, (1, 2, 4, 8, 16)),
            ("palette", 3, (1, 2, 4, 8)),
            ("grey and alpha", 4, (8, 16)),
            ("RGB", 2, (8, 16)),
            ("RGBA", 6, (8, 16)),
        ]
        for bits, interlaced in itertools.product(depths, (False, True))
    },
    **{
        f"TIFF {mode}, {bits} bits, {order}": tiff(mode, bits, order)
        for mode, bits in [
            ("white is zero", 1),
            ("white is zero", 8),
            ("black is zero", 1),
            ("black is zero", 8),
            ("black is zero", 16),
            ("grey and alpha", 8),
            ("rgb", 8),
            ("rgb", 16),
            ("rgba", 8),
            ("rgba", 16),
            ("premultiplied", 8),
            ("premultiplied", 16),
            ("cmyk", 8),
            ("palette", 8),
        ]
        for order in "<>"
    },
    "TIFF white is zero, 16 bits, <": tiff("white is zero", 16),
    **{
        f"TIFF {mode}, {bits} bits, fill order {fill}": small_bits(bits, photometric, fill)
        for photometric, mode, fill in [
            (0, "white is zero", 1),
            (0, "white is zero", 2),
            (1, "black is zero", 1),
            (1, "black is zero", 2),
            (3, "palette", 1),
        ]
        for bits in (1, 2, 4)
    },
    **{
        f"TIFF {mode}, {compression}": still("TIFF", mode, compression=compression)
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")
        for compression in COMPRESSIONS
    },
    **{
        f"TIFF 1, {compression}": still("TIFF", "1", compression=compression)
        for compression in ("group3", "group4", "tiff_ccitt")
    },
    **{
        f"TIFF {mode}, {bits} bits, {name}": tiff(mode, bits, **options)
        for mode, bits in [("black is zero", 16), ("rgb", 8), ("rgb", 16), ("rgba", 16)]
        for name, options in {
            "tiles": {"tile": (16, 16)},
            "strips": {"rowsperstrip": 2},
            "predictor": {"compression": "zlib", "predictor": True},
        }.items()
    },
    "TIFF rgb, 8 bits, planes": tiff("rgb", 8, planarconfig="separate"),
    "TIFF rgba, 8 bits, planes": tiff("rgba", 8, planarconfig="separate", compression="zlib"),
    **({} if PILLOW_12 else {"TIFF YCbCr": YCBCR}),
    "TIFF pages": moving("TIFF", "RGB"),
    **{f"BMP {bits} bits": bmp(bits) for bits in (1, 4, 8, 16, 24, 32)},
    "BMP 24 bits, top to bottom": bmp(24, flipped=True),
    "BMP 8 bits, RLE": bmp(8, 1, data=RUNS),
    "BMP 16 bits, 5-6-5": bmp(16, 3, (0xF800, 0x7E0, 0x1F)),
    "BMP 32 bits, masks": bmp(32, 3, (0xFF0000, 0xFF00, 0xFF)),
    "PBM": netpbm(4),
    "PBM, plain": netpbm(1, plain=True),
    **{f"PGM to {m}": netpbm(5, m) for m in (1, 100, 255, 1023, 65535)},
    **{f"PGM to {m}, plain": netpbm(2, m, plain=True) for m in (100, 255, 1023)},
    **{f"PPM to {m}": netpbm(6, m) for m in (1, 100, 255)},
    "PPM to 255, plain": netpbm(3, 255, plain=True),
    **{f"WebP {mode}, lossless": still("WEBP", mode, lossless=True) for mode in ("RGB", "RGBA")},
    "GIF": still("GIF", "P"),
    "GIF with transparency": still("GIF", "P", transparency=3),
    "GIF animation": moving("GIF", "P"),
    "APNG, RGB": moving("PNG", "RGB"),
    "APNG, RGBA": moving("PNG", "RGBA"),
    "WebP animation, lossless": moving("WEBP", "RGB", lossless=True),
}


def pixels(content):
    """Samples of all frames as another decoder than ours gives them, or as Pillow shows them."""
    with Image.open(io.BytesIO(content)) as image:
        if image.format == "TIFF" and image.tag_v2.get(258) in [(16, 16, 16), (16, 16, 16, 16)]:
            return [tifffile.imread(io.BytesIO(content))]
        if image.format == "TIFF" and image.mode == "I;16" and image.tag_v2[262] == 0:
            return [65535 - np.asarray(image)]
        frames = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            keep = image.mode == "CMYK" or image.mode.startswith("I")
            frames.append(np.asarray(image if keep else image.convert("RGBA")))
        return frames


@pytest.mark.parametrize("kind", EXACT)
def test_an_identity_leaves_every_pixel_as_it_was(kind):
    content = EXACT[kind]
    picture = image_files.read(content)
    assert picture.left_out == []
    buffer = io.BytesIO()
    image_files.write(picture, picture.frames, buffer)
    again = image_files.read(buffer.getvalue())
    assert again.format == picture.format and len(again.frames) == len(picture.frames)
    for before, after in zip(picture.frames, again.frames, strict=True):
        assert before.dtype == after.dtype and before.max() > before.min()
        np.testing.assert_array_equal(after, before)
    for before, after in zip(pixels(content), pixels(buffer.getvalue()), strict=True):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("key", [None, 1])
def test_grey_of_few_bits_gets_the_nearest_level(bits, key):
    transparency = b"" if key is None else chunk(b"tRNS", struct.pack(">H", key))
    source = png(bits, 0, extra=transparency)
    picture, new = image_files.read(source), noise(*SIZE, 1, seed=5).repeat(3, -1)
    buffer = io.BytesIO()
    image_files.write(picture, [new], buffer)
    result = buffer.getvalue()
    assert result[:33] == source[:33] and transparency in result
    (after,) = image_files.read(result).frames
    step = 255 // (2**bits - 1)
    wrong = abs(after.astype(int) - new) > step / 2
    if key is not None:
        was, now = (frame == key * step for frame in (picture.frames[0], after))
        np.testing.assert_array_equal(was, now)
        wrong &= ~was & (np.rint(new / step) != key)
    assert not wrong.any() and new.std() > 50


LOSSY = {
    **{f"JPEG {mode}": ("JPEG", mode, {"quality": 90}) for mode in ("L", "RGB", "CMYK")},
    "JPEG progressive": ("JPEG", "RGB", {"quality": 90, "progressive": True}),
    **{f"WebP {mode}": ("WEBP", mode, {"quality": 90}) for mode in ("RGB", "RGBA")},
    "TIFF with JPEG": ("TIFF", "RGB", {"compression": "jpeg", "quality": 90}),
}


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_lose_little_more(kind):
    format, mode, options = LOSSY[kind]
    ramp = np.linspace(40, 200, 24)[:, None] + np.linspace(0, 50, 32)
    image = Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1).astype(np.uint8))
    picture = image_files.read(encoded(image.convert(mode), format, **options))
    buffer = io.BytesIO()
    image_files.write(picture, picture.frames, buffer)
    (after,) = image_files.read(buffer.getvalue()).frames
    difference = np.abs(after.astype(int) - picture.frames[0])
    assert difference.mean() <= 1.5 and difference.max() <= 8


REFUSED = {
    "16-bit CMYK": tiff("cmyk", 16),
    "an extra channel": tiff("further channel", 8),
    "PPM of 16 bits": netpbm(6, 65535),
    "floating-point samples": b"Pf 2 2 -1.0\n" + bytes(16),
    "CMYK without the marker": still("JPEG", "CMYK").replace(
        b"\xff\xee\0\x0eAdobe", b"\xff\xee\0\x0eOther"
    ),
    "unusual kind of samples": tiff("grey and alpha", 16),
    "animation of 16 bits": png(16, 2, extra=chunk(b"acTL", struct.pack(">LL", 2, 0))),
    "no image of a known format": still("JPEG", "RGB").replace(
        b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"
    ),
    "unknown raw mode": small_bits(4, 3, 2),
    **({"YCbCr without compression": YCBCR} if PILLOW_12 else {}),
}
"""Part of the message -> a file. Others are in `media.UNREADABLE_TIFFS`."""


@pytest.mark.parametrize("reason", REFUSED)
def test_kinds_that_are_refused(reason):
    with pytest.raises(UserError, match=reason):
        image_files.read(REFUSED[reason])
