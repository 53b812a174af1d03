"""JPEG XL: header, metadata, losslessness, conversion, and what is refused."""

import io

import numpy as np
import pytest
from media import encoded, noise, noise_image
from PIL import ExifTags, Image

from manas_jax.errors import UserError
from manas_jax.inference import image_files
from manas_jax.inference.image_files import jxl

pytest.importorskip("pillow_jxl")
jxl.register()
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>rain</x:xmpmeta>"
SIZE = (24, 40)


def exif(orientation=1):
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation], tags[ExifTags.Base.Artist] = orientation, "someone"
    return tags.tobytes()


def written(file, change=lambda frame: frame):
    out = io.BytesIO()
    image_files.write(file, [change(frame) for frame in file.frames], out)
    return out.getvalue()


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (3, 2000)])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("lossless", [False, True])
def test_header(mode, size, lossless):
    details = {"exif": exif(), "xmp": XMP} if size[0] == 9 else {}  # in a container
    content = encoded(noise_image(mode, *size), "JXL", lossless=lossless, **details)
    assert jxl.read_header(content) == jxl.Header(
        bits=16 if mode == "I;16" else 8,
        channels=(0,) if mode.endswith("A") else (),
        is_lossy=not lossless,
    )


def header(*fields):
    """The start of a codestream of (value, bits) after the size."""
    bits = [1, *[0] * 5, 1, 0, 0]  # 8x8
    for value, count in fields:
        bits += [value >> i & 1 for i in range(count)]
    return b"\xff\x0a" + np.packbits([*bits, *[0] * 64], bitorder="little").tobytes()


def test_header_of_other_kinds():
    animation = (1, 1), *[(0, 2)] * 3, (0, 1)
    eight, ten, half = ((0, 1), (0, 2)), ((0, 1), (1, 2)), ((1, 1), (1, 2), (5, 4))
    rest = (1, 1), (0, 2), (1, 1)  # no extra channel, XYB
    none = (0, 1), (0, 3), (0, 1), (0, 1)
    plain = jxl.Header()
    assert jxl.read_header(header((1, 1))) == plain
    assert jxl.read_header(header((0, 1), (0, 1), *eight, *rest)) == plain
    moving = header((0, 1), (1, 1), (0, 3), (0, 1), (0, 1), *animation, *eight, *rest)
    assert jxl.read_header(moving) == jxl.Header(is_animation=True)
    deep = header((0, 1), (1, 1), *none[1:], (0, 1), *ten, *rest)
    assert jxl.read_header(deep) == jxl.Header(bits=10)
    floats = header((0, 1), (0, 1), *half, *rest)
    assert jxl.read_header(floats) == jxl.Header(bits=16, is_float=True)
    with pytest.raises(IndexError):
        jxl.read_header(deep[:3])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_lossless_stays_lossless(mode):
    content = encoded(noise_image(mode, *SIZE), "JXL", lossless=True, exif=exif(), xmp=XMP)
    file = image_files.read(content)
    assert file.format == "JXL" and file.left_out == []
    change = noise(*SIZE, 1, seed=3, dtype=file.frames[0].dtype).repeat(3, -1)
    result = written(file, lambda frame: change)
    after = image_files.read(result)
    np.testing.assert_array_equal(after.frames[0], change)
    if mode.endswith("A"):
        alphas = (x._pages[0].samples[..., -1] for x in (file, after))
        np.testing.assert_array_equal(*alphas)
    image = Image.open(io.BytesIO(result))
    assert image.getexif()[ExifTags.Base.Artist] == "someone" and image.info["xmp"] == XMP
    assert "icc_profile" not in image.info


def test_lossy_stays_lossy():
    smooth = np.add.outer(np.arange(24), np.arange(40))[..., None] * [3, 2, 1]
    content = encoded(Image.fromarray(smooth.astype(np.uint8)), "JXL", quality=90)
    file = image_files.read(content)
    result = written(file)
    assert jxl.read_header(result).is_lossy
    assert np.abs(image_files.read(result).frames[0].astype(int) - file.frames[0]).max() <= 8


def test_what_exif_says_of_turns_does_not_count():
    content = encoded(noise_image("RGB", *SIZE), "JXL", lossless=True, exif=exif(6))
    file = image_files.read(content)
    assert file.frames[0].shape[:2] == SIZE
    assert Image.open(io.BytesIO(written(file))).getexif()[ExifTags.Base.Orientation] == 1


def test_recompressed_jpeg(tmp_path):
    picture = tmp_path / "a.jpg"
    noise_image("RGB", *SIZE).save(picture, exif=exif(6))
    with Image.open(picture) as image:
        content = encoded(image, "JXL", lossless_jpeg=True)
        upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    file = image_files.read(content)
    np.testing.assert_array_equal(file.frames[0], upright)
    result = image_files.read(written(file))
    assert result.frames[0].shape == upright.shape
    assert result._pages[0].orientation == 1


@pytest.mark.parametrize("other", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_conversion_to_and_from(other):
    content = encoded(noise_image("RGB", *SIZE), other, exif=exif(6), lossless=True)
    file = image_files.read(content)
    there = image_files.read(written(image_files.converted(file, "JXL")))
    assert there.frames[0].shape == file.frames[0].shape == (*SIZE[::-1], 3)
    if other in ("PNG", "TIFF"):
        np.testing.assert_array_equal(there.frames[0], file.frames[0])
    back = image_files.read(written(image_files.converted(there, other)))
    assert back.format == other and back.frames[0].shape == file.frames[0].shape


def test_profiles_are_named():
    content = encoded(noise_image("RGB", *SIZE), "PNG", icc_profile=b"icc" * 50)
    assert image_files.converted(image_files.read(content), "JXL").left_out == ["ICC profile"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_animation": True}, "animation in JPEG XL"),
        ({"bits": 10}, "JPEG XL of 10 bits"),
        ({"is_float": True}, "floating-point samples"),
        ({"channels": (0, 1)}, "JPEG XL with channels beside colours"),
    ],
)
def test_what_would_be_lost_is_refused(changes, reason, monkeypatch):
    content = encoded(noise_image("RGB", *SIZE), "JXL")
    monkeypatch.setattr(jxl, "read_header", lambda _: jxl.Header(**changes))
    with pytest.raises(UserError, match=f"name: {reason}.*; convert it first"):
        image_files.read(content, "name")
