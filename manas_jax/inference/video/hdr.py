"""Static metadata of HDR as options of encoders, which take no side data of frames."""

from __future__ import annotations

import struct

import av
from av.sidedata.sidedata import Type as SideData

from manas_jax.inference.video.pixels import side_data

_FORMATS = {
    # Chromaticities in 0.00002, luminances in 0.0001 cd/m2, as the bit streams hold them.
    "libx265": ("x265-params", "master-display", "max-cll", 50_000, 10_000),
    "libx264": ("x264-params", "mastering-display", "cll", 50_000, 10_000),
    "libsvtav1": ("svtav1-params", "mastering-display", "content-light", 1, 1),
}


def parameters(frame: av.VideoFrame, encoder: str) -> dict[str, str]:
    """Options that make an encoder write the mastering display and the light level of a frame."""
    if encoder not in _FORMATS:
        return {}
    option, display_key, light_key, *units = _FORMATS[encoder]
    given = {
        display_key: _mastering_display(frame, *units),
        light_key: _content_light_level(frame),
    }
    text = ":".join(f"{key}={value}" for key, value in given.items() if value)
    return {option: text} if text else {}


def _mastering_display(frame: av.VideoFrame, chromaticity: int, luminance: int) -> str:
    """G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min), or nothing; the layout is AVMasteringDisplayMetadata."""
    data = side_data(frame).get(SideData.MASTERING_DISPLAY_METADATA, b"")
    if len(data) < 88:
        return ""
    *numbers, has_primaries, has_luminance = struct.unpack_from("=22i", data)
    if not (has_primaries and has_luminance):
        return ""
    ratios = [top / (bottom or 1) for top, bottom in zip(numbers[::2], numbers[1::2], strict=True)]
    units = [chromaticity] * 8 + [luminance] * 2
    texts = [
        f"{round(ratio * unit) if unit > 1 else round(ratio, 6)}"
        for ratio, unit in zip(ratios, units, strict=True)
    ]
    red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y, low, high = texts
    return (
        f"G({green_x},{green_y})B({blue_x},{blue_y})R({red_x},{red_y})"
        f"WP({white_x},{white_y})L({high},{low})"
    )


def _content_light_level(frame: av.VideoFrame) -> str:
    """The highest level of a pixel and of a frame's mean in cd/m2, or nothing."""
    data = side_data(frame).get(SideData.CONTENT_LIGHT_LEVEL, b"")
    return "{},{}".format(*struct.unpack_from("=2I", data)) if len(data) >= 8 else ""
