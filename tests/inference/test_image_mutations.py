"""Damaged image files: restored or refused in one line; no traceback, no hang, no half file."""

import contextlib
import io
import signal
import struct

import numpy as np
import pytest
from media import encoded, noise, noise_image, raw_tiff
from PIL import Image, PngImagePlugin

from manas_jax.data import images
from manas_jax.errors import UserError
from manas_jax.inference import image_files

SECONDS = 20


class TooLong(BaseException):
    """No Exception, which readers turn into messages."""


def _exif():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    return exif


def _text():
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a street", zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    return text


def _still(format, mode, **options):
    return encoded(noise_image(mode, 21, 17), format, **options)


def _moving(format, mode="RGB", **options):
    first, *rest = (noise_image(mode, 21, 17, seed=i) for i in range(3))
    return encoded(first, format, save_all=True, append_images=rest, duration=40, **options)


VALID = {
    "png": _still("PNG", "RGBA", pnginfo=_text(), exif=_exif(), icc_profile=b"icc" * 50),
    "png-palette": _still("PNG", "P", transparency=bytes(range(50))),
    "png-transparent": _still("PNG", "RGB", transparency=(1, 2, 3)),
    "apng": _moving("PNG"),
    "jpeg": _still("JPEG", "RGB", exif=_exif(), icc_profile=b"icc" * 50, comment=b"dry"),
    "jpeg-progressive": _still("JPEG", "L", progressive=True),
    "mpo": _moving("MPO"),
    "tiff": _still("TIFF", "RGB", compression="tiff_lzw", exif=_exif()),
    "tiff-pages": _moving("TIFF", "L"),
    "tiff-16": raw_tiff(noise(21 * 17 * 6).tobytes(), (21, 17), (16, 16, 16), 2),
    "webp": _still("WEBP", "RGB", exif=_exif()),
    "webp-animated": _moving("WEBP", lossless=True),
    "bmp": _still("BMP", "P"),
    "gif": _moving("GIF", "P"),
    "ppm": _still("PPM", "RGB"),
}


def mutated(content, draw):
    """A copy with one to four random changes, most of them near its start, where headers are."""
    content = bytearray(content)
    for _ in range(draw.integers(1, 5)):
        size = len(content)
        start = int(size * draw.random() ** draw.integers(1, 4))
        length = int(draw.integers(1, max(2, size // draw.integers(1, 40))))
        part = slice(start, start + length)
        other = int(draw.integers(0, size + 1))
        match draw.integers(8):
            case 0 if size:
                content[min(start, size - 1)] ^= 1 << int(draw.integers(8))
            case 1:
                content[start : start + 1] = noise(1, seed=draw).tobytes()
            case 2:  # numbers that readers may trust
                number = int(draw.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]))
                packed = struct.pack(draw.choice(["<L", ">L"]), number)
                content[start : start + 4] = packed if draw.random() < 0.5 else packed[:2]
            case 3:
                del content[part]
            case 4:
                content[other:other] = content[part]
            case 5:
                content[start:start] = noise(length % 50, seed=draw).tobytes()
            case 6:
                content[part] = bytes([draw.choice([0, 255])]) * len(content[part])
            case 7:
                del content[start + size // 3 :]
    return bytes(content)


@contextlib.contextmanager
def time_limit(seconds):
    def stop(*_):
        raise TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _check(content, folder):
    """Restores a file with an identity; returns whether it was accepted."""
    source, target = folder / "in", folder / "out"
    source.write_bytes(content)
    target.unlink(missing_ok=True)
    for read in (images.read, images.size):
        with contextlib.suppress(UserError):
            read(source)
    try:
        picture = image_files.read(source)
        image_files.write(picture, picture.frames, target)
    except UserError as error:
        assert "\n" not in str(error) and str(source) in str(error)
        assert not target.exists()
        return False
    again = image_files.read(target)
    assert again.frames[0].shape == picture.frames[0].shape
    with Image.open(io.BytesIO(target.read_bytes())) as image:
        image.load()
    return True


@pytest.mark.filterwarnings("ignore")  # Pillow's, about files that it reads nevertheless
@pytest.mark.parametrize("kind", VALID)
@pytest.mark.parametrize("count", [10, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_are_restored_or_refused(kind, count, tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "TRUSTED_PIXELS", 2**20)  # larger ones only take longer
    assert _check(VALID[kind], tmp_path)
    accepted = 0
    for seed in range(count):
        content = mutated(VALID[kind], np.random.default_rng(seed))
        try:
            with time_limit(SECONDS):
                accepted += _check(content, tmp_path)
        except (Exception, TooLong) as error:
            raise AssertionError(f"mutation {seed} of {kind}") from error
    assert accepted < count
