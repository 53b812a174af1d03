"""HEIC and AVIF: metadata, turns, bits, transparency and colour tags, and what is refused."""

import io

import av
import numpy as np
import pytest
from media import encoded, noise, noise_image
from PIL import ExifTags, Image

from manas_jax.errors import UserError
from manas_jax.inference import image_files
from manas_jax.inference.image_files import avif, heif

pillow_heif = pytest.importorskip("pillow_heif")
pillow_heif.register_heif_opener()
FORMATS = ("AVIF", "HEIF")
ICC = b"a profile that nobody looks into" * 40
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>rain</x:xmpmeta>"
P3 = (12, 13)  # primaries of Display P3, transfer function of sRGB


def smooth(mode="RGB", size=(64, 80)):
    y, x = np.mgrid[: size[0], : size[1]]
    planes = [x * 3, y * 3, x + y, 255 - (x + y) * 1.5]
    chosen = {"L": [0], "LA": [0, 3], "RGB": [0, 1, 2], "RGBA": [0, 1, 2, 3]}[mode]
    return Image.fromarray(np.stack([planes[i] for i in chosen], -1).astype(np.uint8).squeeze())


def described(format, mode="RGB", **options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Artist] = 6, "someone"
    options |= {"exif": exif.tobytes(), "icc_profile": ICC, "xmp": XMP}
    return encoded(smooth(mode), format, **options)


def written(file, change=lambda frame: frame):
    out = io.BytesIO()
    image_files.write(file, [change(frame) for frame in file.frames], out)
    return out.getvalue()


def image_of(content):
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_what_is_not_pixels_stays(format, mode):
    file = image_files.read(described(format, mode))
    assert file.format == format and file.left_out == []
    assert file.frames[0].shape == (80, 64, 3)  # upright
    result = written(file)
    after = image_files.read(result)
    assert np.abs(after.frames[0].astype(int) - file.frames[0]).max() <= 8
    image = image_of(result)
    assert image.mode == mode and image.info["icc_profile"] == ICC and image.info["xmp"] == XMP
    assert image.getexif()[ExifTags.Base.Artist] == "someone"
    if mode == "RGBA":
        alpha = [x._pages[0].samples[..., 3] for x in (file, after)]
        np.testing.assert_array_equal(*alpha)
        assert np.ptp(alpha[0]) > 100


@pytest.mark.parametrize("format", FORMATS)
def test_new_pixels_are_written(format):
    file = image_files.read(described(format))
    (after,) = image_files.read(written(file, lambda frame: 255 - frame)).frames
    assert np.abs(after.astype(int) - (255 - file.frames[0])).max() <= 12


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("other", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_conversion_to_and_from(format, other):
    if format == other:
        pytest.skip("no other format")
    source = image_files.read(described(format))
    there = image_files.converted(source, other)
    assert there.left_out == []
    content = written(there)
    back = image_files.converted(image_files.read(content), format)
    result = image_files.read(written(back))
    assert np.abs(result.frames[0].astype(int) - source.frames[0]).max() <= 12
    for made in (content, written(back)):
        image = image_of(made)
        assert image.info["icc_profile"] == ICC and image.info["xmp"] == XMP
        assert image.getexif()[ExifTags.Base.Artist] == "someone"


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_subsampling_stays(subsampling):
    content = encoded(smooth(), "AVIF", subsampling=subsampling)
    before, after = (avif._flags(x) for x in (content, written(image_files.read(content))))
    assert before == after
    chroma = int(subsampling.replace(":", ""))
    content = encoded(smooth(), "HEIF", chroma=chroma)
    assert image_of(content).info["chroma"] == chroma
    assert image_of(written(image_files.read(content))).info["chroma"] == chroma


def test_colour_tags_stay():
    tags = bytes([0, P3[0], 0, P3[1]])
    plain = encoded(smooth(), "AVIF")
    content = plain.replace(b"colrnclx" + avif._colour_tags(plain), b"colrnclx" + tags)
    assert avif._colour_tags(written(image_files.read(content))) == tags
    profile = {
        "color_primaries": P3[0], "transfer_characteristics": P3[1], "matrix_coefficients": 6,
        "full_range_flag": 1,
    }  # fmt: skip
    content = encoded(smooth(), "HEIF", nclx_profile=profile)
    result = image_of(written(image_files.read(content))).info["nclx_profile"]
    assert (result["color_primaries"], result["transfer_characteristics"]) == P3


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_deep_samples_of_heic(bits, mode):
    samples = np.asarray(smooth(mode)).astype(np.uint16) << (bits - 8)
    buffer = io.BytesIO()
    made = pillow_heif.from_bytes(f"{mode};{bits}", (80, 64), samples.tobytes())
    made.save(buffer, quality=-1, chroma=444, matrix_coefficients=0)
    file = image_files.read(buffer.getvalue())
    expected = np.rint(samples * (65535 / (2**bits - 1))).astype(int).reshape(64, 80, -1)
    assert file.frames[0].dtype == np.uint16
    assert np.abs(file.frames[0] - expected[..., :3]).max() <= 1
    result = written(file)
    assert image_of(result).info["bit_depth"] == bits
    after = image_files.read(result).frames[0].astype(int)
    assert np.abs(after - file.frames[0]).max() <= 65535 / 100
    with_16_bits = image_files.read(written(image_files.converted(file, "PNG")))
    np.testing.assert_array_equal(with_16_bits.frames[0], file.frames[0])


def test_deep_samples_that_would_be_lost_are_refused():
    deep = io.BytesIO()
    with av.open(deep, "w", format="avif") as out:
        stream = out.add_stream("libsvtav1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p10le"
        frame = av.VideoFrame.from_image(smooth()).reformat(format="yuv420p10le")
        out.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(UserError, match="AVIF of more than 8 bits"):
        image_files.read(deep.getvalue())
    png = image_files.read(encoded(noise_image("I;16", 8, 9), "PNG"), "name")
    for format in FORMATS:
        with pytest.raises(UserError, match=f"name: its 16 bits per sample .* {format}"):
            image_files.converted(png, format)


def test_animation_in_avif():
    first, *rest = (Image.fromarray(noise(16, 24, 3, seed=i)) for i in range(3))
    options = {"save_all": True, "append_images": rest, "duration": [40, 70, 100]}
    file = image_files.read(encoded(first, "AVIF", quality=100, subsampling="4:4:4", **options))
    result = image_files.read(written(file))
    assert len(file.frames) == len(result.frames) == 3
    assert [page.duration for page in result._pages] == [40, 70, 100]
    with pytest.raises(UserError, match="its 3 frames would be lost in HEIF"):
        image_files.converted(file, "HEIF")


def test_further_images_and_thumbnails_of_heic():
    first, second = smooth(), smooth(size=(32, 48))
    options = {"save_all": True, "append_images": [second], "thumbnails": [32]}
    for index in (0, 1):
        content = encoded(first, "HEIF", primary_index=index, **options)
        file = image_files.read(content)
        assert file.left_out == ["further images (1)"]
        assert file.frames[0].shape[:2] == ((64, 80), (32, 48))[index]
        result = image_of(written(file, lambda frame: 255 - frame))
        assert result.info["thumbnails"] == [32] and result.n_frames == 1
        thumbnail = np.asarray(result._heif_file[0].get_thumbnail(0).to_pillow(), int)
        small = np.asarray(result.resize(thumbnail.shape[1::-1]), int)
        assert np.abs(thumbnail - small).mean() < 10


def test_without_the_extra_it_is_named(monkeypatch, tmp_path):
    content = described("HEIF")
    path = tmp_path / "a.heic"
    assert image_files.is_image(path) and not image_files.is_other_image(path)
    monkeypatch.setattr(heif, "PACKAGE", "no_such_package")
    assert image_files.is_other_image(path) and not image_files.is_image(path)
    assert "manas_jax[heic]" in image_files.how_to_read(path)
    for use in (
        lambda: image_files.read(content),
        lambda: image_files.converted(image_files.read(described("AVIF")), "HEIF"),
    ):
        with pytest.raises(UserError, match=r"HEIF needs no_such_package; .*manas_jax\[heic\]"):
            use()


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_refused(format):
    content = described(format)
    draw = np.random.default_rng(0)
    for end in (12, 40, len(content) // 2, len(content) - 9):
        with pytest.raises(UserError):
            image_files.read(content[:end])
    for _ in range(40):
        damaged = bytearray(content)
        for at in draw.integers(0, len(content), 3):
            damaged[at] = draw.integers(256)
        try:
            file = image_files.read(bytes(damaged))
            written(file)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(("flag", "seconds", "loop"), [(1, None, 0), (1, 0.9, 3), (0, 0.3, 1)])
def test_animations_are_shown_as_often_in_another_format(flag, seconds, loop):
    """As the edit list says: for ever, three times, once."""
    first, *rest = (Image.fromarray(noise(16, 16, 3, seed=i)) for i in range(3))
    content = bytearray(encoded(first, "AVIF", save_all=True, append_images=rest, duration=100))
    edits, track = content.index(b"elst") + 4, content.index(b"tkhd") + 4
    assert content[edits] == content[track] == 1  # numbers of 64 bits
    content[edits + 3] = flag
    if seconds:
        content[track + 28 : track + 36] = round(1000 * seconds).to_bytes(8, "big")
    file = image_files.read(bytes(content))
    for format in ("WEBP", "GIF", "PNG"):
        written = io.BytesIO()
        other = image_files.converted(file, format)
        image_files.write(other, other.frames, written)
        assert Image.open(written).info["loop"] == loop
