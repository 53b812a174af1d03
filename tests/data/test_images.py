"""Reading and writing images: sample formats by value, damaged files by message."""

import os
import struct
import zlib

import numpy as np
import pytest
from media import UNREADABLE_TIFFS, raw_tiff
from PIL import Image

from manas_jax.data import images
from manas_jax.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def _png_16_bit_rgb(path, samples):
    """A 16-bit RGB PNG, which Pillow reads but does not write."""
    height, width, _ = samples.shape

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(images.read(path), RGB)
    assert images.read(path).dtype == np.uint8
    assert images.size(path) == (6, 9)


def test_jpeg_is_close(tmp_path):
    smooth = np.full((16, 24, 3), (200, 120, 40), np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(images.read(tmp_path / "a.jpg").astype(int) - smooth).max() <= 3


def test_gray_is_repeated(tmp_path):
    Image.fromarray(RGB[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read(tmp_path / "a.png"), RGB[..., :1].repeat(3, -1))


def test_black_and_white_spans_the_range(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read(tmp_path / "a.png")[0, :, 0], [255, 0])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_colours_kept(tmp_path, mode):
    opaque = Image.fromarray(RGB).convert(mode[:-1])
    image = opaque.convert(mode)
    image.putalpha(Image.fromarray(RGB[..., 2]))
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read(tmp_path / "a.png"), np.array(opaque.convert("RGB")))


def test_palette_is_looked_up(tmp_path):
    colours = np.array([[255, 0, 10], [3, 200, 7]], np.uint8)
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    image.putpalette(colours.ravel().tolist())
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(images.read(tmp_path / "a.png"), colours[[[0, 1], [1, 0]]])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled(tmp_path, suffix):
    samples = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(samples).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(
        images.read(tmp_path / f"a.{suffix}")[0, :, 1], [0, 0, 1, 128, 255]
    )


def test_16_bit_colour_is_scaled(tmp_path):
    samples = np.array([[[0, 255, 256], [32768, 65535, 511]]], np.uint16)
    _png_16_bit_rgb(tmp_path / "a.png", samples)
    np.testing.assert_array_equal(images.read(tmp_path / "a.png"), samples >> 8)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(images.read(path), np.rot90(RGB, -1))
    assert images.size(path) == (9, 6)


def test_exif_behind_the_pixels_of_a_png_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    pixels_end = content.index(b"IEND") - 4
    chunks = content[:start], content[end:pixels_end], content[start:end], content[pixels_end:]
    path.write_bytes(b"".join(chunks))
    assert "exif" not in Image.open(path).info
    np.testing.assert_array_equal(images.read(path), np.rot90(RGB, -1))
    assert images.size(path) == (9, 6)


@pytest.mark.parametrize("function", [images.read, images.size])
@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_files_that_are_not_images(tmp_path, function, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.png") as caught:
        function(tmp_path / "bad.png")
    assert ("empty" in str(caught.value)) == (content == b"")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_truncated_files_are_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(UserError, match=r"cut\."):
        images.read(path)


def test_missing_files_and_pipes(tmp_path):
    with pytest.raises(UserError, match="no such image"):
        images.read(tmp_path / "none.png")
    os.mkfifo(tmp_path / "pipe.png")
    for function in (images.read, images.size):
        with pytest.raises(UserError, match=r"pipe\.png: not a regular file"):
            function(tmp_path / "pipe.png")


@pytest.mark.parametrize("reason", UNREADABLE_TIFFS)
def test_samples_that_are_not_understood(tmp_path, reason):
    bits, photometric, tags = UNREADABLE_TIFFS[reason]
    path = tmp_path / "a.tif"
    path.write_bytes(raw_tiff(bytes(range(1, 97)), (4, 2), bits, photometric, tags))
    with pytest.raises(UserError, match=reason):
        images.read(path)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_tiff_where_0_is_white(tmp_path, bits):
    samples = np.array([[0, 1, 0, 0, 1, 1, 1, 0]] * 2) * (2**bits - 1)
    stored = np.packbits(samples, 1) if bits == 1 else samples.astype(f"<u{bits // 8}")
    path = tmp_path / "a.tif"
    path.write_bytes(raw_tiff(stored.tobytes(), samples.shape, (bits,), 0))
    np.testing.assert_array_equal(images.read(path)[..., 1], np.where(samples, 0, 255))


def test_formats_that_run_programs_are_not_read(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png", "EPS")
    with pytest.raises(UserError, match="no image of a known format"):
        images.read(tmp_path / "a.png")


def test_write_png_round_trip_leaves_nothing_else(tmp_path):
    images.write_png(tmp_path / "new" / "a.png", RGB)
    np.testing.assert_array_equal(images.read(tmp_path / "new" / "a.png"), RGB)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_write_png_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    images.write_png(path, RGB)

    def full(self, file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left"):
        images.write_png(path, RGB[::-1])
    np.testing.assert_array_equal(images.read(path), RGB)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_write_png_rejects_other_arrays(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        images.write_png(tmp_path / "a.png", RGB / 255)


def test_is_image():
    assert images.is_image("a.jfif") and images.is_image("a.JPE") and images.is_image("a.pnm")
    assert images.is_image("a/B.JPG") and images.is_image("x.webp")
    assert not images.is_image("Thumbs.db") and not images.is_image("a/._b.png")
