"""Frames in every pixel format: what the restoration leaves alone stays, the rest is close."""

import types

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from av.video.format import names as FORMATS
from av.video.reformatter import ColorRange

from manas_jax.inference.video import hdr, pixels
from manas_jax.inference.video.pixels import Samples

LIMITED, FULL = ColorRange.MPEG, ColorRange.JPEG
KR_KB = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


def planar_formats():
    """One format for each kind of samples, from 8 to 16 bits, with and without transparency."""
    found = set()
    for name in FORMATS:
        try:
            found.add(Samples.of(av.VideoFormat(name)).planar())
        except (ValueError, TypeError):
            continue
    return sorted(found)


def frame_of(name, size=(14, 22), color_range=LIMITED, colorspace=1, low=0, high=1, seed=0):
    """A frame of noise between two shares of the highest value."""
    frame, draw = av.VideoFrame(size[1], size[0], name), np.random.default_rng(seed)
    top = 2 ** Samples.of(frame.format).depth - 1
    for plane in planes(frame):
        plane[:] = draw.integers(round(low * top), round(high * top), plane.shape, endpoint=True)
    frame.color_range, frame.colorspace = color_range, colorspace
    return frame


def planes(frame):
    return [pixels.plane_samples(frame, index) for index in range(len(frame.planes))]


def test_planar_formats_are_many():
    assert len(planar_formats()) > 50 and {"yuv420p", "gbrap16le"} <= set(planar_formats())


@pytest.mark.parametrize("size", [(14, 22), (13, 21)])
@pytest.mark.parametrize("color_range", [ColorRange.UNSPECIFIED, LIMITED, FULL])
@pytest.mark.parametrize("colorspace", [1, 2, 6, 9])
def test_an_identity_leaves_every_sample(size, color_range, colorspace):
    for name in planar_formats():
        frame = frame_of(name, size, color_range, colorspace)
        before = [plane.copy() for plane in planes(frame)]
        (after,) = pixels.restored([frame], lambda rgb: rgb)
        for old, new in zip(before, planes(after), strict=True):
            np.testing.assert_array_equal(old, new, err_msg=name)


@pytest.mark.parametrize("colorspace", KR_KB)
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize("depth", [8, 9, 10, 12, 14])
def test_a_change_is_converted_to_half_a_level(depth, color_range, colorspace):
    shift = np.array([3000, -2000, 1500])
    red, green, blue = shift / 65535
    kr, kb = KR_KB[colorspace]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    full = color_range == FULL
    luma_steps, chroma_steps = (
        ((2**depth - 1,) * 2) if full else np.array([219, 224]) * 2 ** (depth - 8)
    )
    expected = np.array(
        [
            luma * luma_steps,
            (blue - luma) / (2 - 2 * kb) * chroma_steps,
            (red - luma) / (2 - 2 * kr) * chroma_steps,
        ]
    )
    frame = frame_of(
        "yuv444p" + f"{depth}le" * (depth > 8), (16, 16), color_range, colorspace, 0.4, 0.6
    )
    before = [plane.astype(int) for plane in planes(frame)]
    (after,) = pixels.restored([frame], lambda rgb: (rgb + shift).astype(np.uint16))
    for old, new, change in zip(before, planes(after), expected, strict=True):
        assert np.abs(new - old - change).max() <= 0.5 + 2 ** (depth - 8) / 50  # 14 bits inside


@pytest.mark.parametrize("name", ["gbrp", "gbrp10le", "gbrp16le", "gbrap12le"])
def test_a_change_of_rgb_is_exact(name):
    frame = frame_of(name)
    top = 2 ** Samples.of(frame.format).depth - 1
    before = [plane.copy() for plane in planes(frame)]
    (after,) = pixels.restored([frame], lambda rgb: 65535 - rgb)
    for old, new in zip(before[:3], planes(after)[:3], strict=True):
        np.testing.assert_array_equal(new, top - old)
    if len(before) == 4:
        np.testing.assert_array_equal(planes(after)[3], before[3])


@pytest.mark.parametrize("name", ["yuv420p", "yuv422p10le", "yuv411p", "yuv440p12le", "gray10le"])
def test_a_change_of_flat_frames_is_that_of_full_chroma(name):
    frame = frame_of(name, (16, 16), low=0.5, high=0.5)
    before = [plane.astype(int) for plane in planes(frame)]
    (after,) = pixels.restored([frame], lambda rgb: rgb + np.uint16(6554))  # a tenth
    (luma, *chroma) = [new - old for old, new in zip(before, planes(after), strict=True)]
    depth = Samples.of(frame.format).depth
    assert np.abs(luma - 21.9 * 2 ** (depth - 8)).max() <= 1
    assert not any(plane.any() for plane in chroma)


def test_chroma_outside_of_rgb_survives_a_change_elsewhere():
    frame = frame_of("yuv444p", low=0, high=1)  # most of it is no colour of RGB
    before = [plane.astype(int) for plane in planes(frame)]

    def darker_at_the_left(rgb):
        rgb = rgb.copy()
        rgb[:, :, :8] //= 2
        return rgb

    (after,) = pixels.restored([frame], darker_at_the_left)
    for old, new in zip(before, planes(after), strict=True):
        np.testing.assert_array_equal(new[:, 10:], old[:, 10:])
    assert (planes(after)[0][:, :8] <= before[0][:, :8]).all()


def test_restore_gets_16_bits_in_order_of_rgb():
    frame = frame_of("gbrp")
    green, blue, red = (plane.copy() for plane in planes(frame))
    seen = []
    list(pixels.restored([frame], lambda rgb: seen.append(rgb) or rgb))
    (batch,) = seen
    assert batch.dtype == np.uint16
    np.testing.assert_array_equal(batch[0], np.stack([red, green, blue], -1) * np.uint16(257))


@pytest.mark.parametrize("name", ["bayer_rggb8", "gbrpf32le", "xyz12le", "gray32le"])
def test_other_pixels_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} cannot be restored"):
        Samples.of(av.VideoFormat(name))


def test_dolby_vision_without_tagged_colours_is_recognised(monkeypatch):
    monkeypatch.setattr(pixels, "side_data", lambda frame: {Type.DOVI_METADATA: b""})
    profile_5, profile_8 = (types.SimpleNamespace(color_trc=number) for number in (2, 18))
    assert pixels.has_own_colours(profile_5) and not pixels.has_own_colours(profile_8)


def test_no_hdr_no_parameters():
    assert hdr.parameters(frame_of("yuv420p10le"), "libx265") == {}
    assert hdr.parameters(frame_of("yuv420p10le"), "ffv1") == {}
