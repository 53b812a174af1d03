"""Restoration of frames in any pixel format, of which only what it changes is changed.

A frame is converted to RGB of 16 bits, which is restored. The RGB before and after are converted to
the frame's own kind of samples, as deep as there are, and their difference is added to the samples
of the frame. So samples that the restoration leaves alone keep their values to the bit, also those
that no RGB stands for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideData
from av.video.format import names as FORMATS
from av.video.reformatter import ColorRange, ColorTrc, Interpolation, VideoReformatter

from manas_jax.errors import UserError

RestoreFrames = Callable[[np.ndarray], np.ndarray]
"""Frames or fields, uint16 (N, H, W, 3), RGB -> restored, in the same shape and type."""

_RGB = "gbrp16le"
_DEEP_GRAY = "yuv444p16le"
_PLANES_OF_RGB = (2, 0, 1)  # they lie in the order G, B, R
_DEPTHS = (8, 9, 10, 12, 14, 16)
_CHROMA = {
    (1, 1): "444", (2, 1): "422", (2, 2): "420", (1, 2): "440", (4, 1): "411", (4, 4): "410",
}  # fmt: skip
_EXACT = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


@dataclasses.dataclass(frozen=True)
class Samples:
    """What the samples of a pixel format are, however they are packed.

    Attributes:
      kind: "rgb", "yuv" or "gray".
      alpha: whether there is transparency.
      depth: bits.
      chroma: width and height in pixels that a chroma sample covers.
    """

    kind: str
    alpha: bool
    depth: int
    chroma: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, format: av.VideoFormat) -> Samples:
        """Those of a pixel format.

        Raises:
          ValueError: they are of a kind that cannot be restored, such as the mosaic of a sensor.
        """
        alpha = any(component.is_alpha for component in format.components)
        if format.has_palette:
            return cls("rgb", False, 8)
        depth = max(component.bits for component in format.components)
        if format.is_bayer or format.name.startswith("xyz") or depth > _DEPTHS[-1]:
            raise ValueError(f"pixels of the kind {format.name} cannot be restored")
        if format.is_rgb:
            return cls("rgb", alpha, depth)
        if len(format.components) - alpha == 1:
            return cls("gray", alpha, depth)
        chroma = 16 // format.chroma_width(16), 16 // format.chroma_height(16)
        return cls("yuv", alpha, depth, chroma)

    def planar(self) -> str:
        """The pixel format of a plane per component that holds them and is no deeper than needed.

        Raises:
          ValueError: there is none.
        """
        names = [name for depth, name in self._planar(self.alpha) if depth >= self.depth]
        if not names:
            raise ValueError(f"{self} fit into no planar format")
        return names[0]

    def deepest(self) -> str:
        """The deepest such format, without transparency; greys are the first plane of it."""
        return _DEEP_GRAY if self.kind == "gray" else list(self._planar(False))[-1][1]

    def _planar(self, alpha: bool) -> Iterator[tuple[int, str]]:
        if self.kind == "rgb":
            stem = "gbrap" if alpha else "gbrp"
        elif self.kind == "gray" and not alpha:
            stem = "gray"
        else:
            stem = f"yuv{'a' * alpha}{_CHROMA.get(self.chroma)}p"
        for depth in _DEPTHS:
            name = stem if depth == 8 else f"{stem}{depth}le"
            if name in FORMATS:
                yield depth, name


@dataclasses.dataclass(frozen=True)
class Orientation:
    """How stored frames become upright: axes are swapped, then flipped.

    Attributes:
      swap: whether height and width are swapped.
      vertical, horizontal: steps of the slices; -1 flips.
    """

    swap: bool = False
    vertical: int = 1
    horizontal: int = 1

    @classmethod
    def from_matrix(cls, matrix: Sequence[int] | None) -> Orientation:
        """Of FFmpeg's display matrix; identity for other than right angles, left to players."""
        if matrix is None:
            return cls()
        (a, b), (c, d) = matrix[:2], matrix[3:5]  # x' = a x + c y, y' = b x + d y
        if b == c == 0 and a and d:
            return cls(False, 1 if d > 0 else -1, 1 if a > 0 else -1)
        if a == d == 0 and b and c:
            return cls(True, 1 if b > 0 else -1, 1 if c > 0 else -1)
        return cls()

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """Stored pixels (N, H, W, 3), turned."""
        swapped = pixels.swapaxes(1, 2) if self.swap else pixels
        return np.ascontiguousarray(swapped[:, :: self.vertical, :: self.horizontal])

    def stored(self, pixels: np.ndarray) -> np.ndarray:
        """The inverse of `upright`."""
        flipped = pixels[:, :: self.vertical, :: self.horizontal]
        return flipped.swapaxes(1, 2) if self.swap else flipped


def side_data(frame: av.VideoFrame) -> dict[SideData, bytes]:
    """What a frame carries besides pixels, such as its rotation and its mastering display."""
    try:
        # Not frame.side_data, which is stale once the frame was made writable.
        return {data.type: bytes(data) for data in SideDataContainer(frame)}
    except ValueError:  # PyAV does not know the type of some, such as EXIF, and hides the others
        cosine, sine = (
            round(function(math.radians(frame.rotation))) << 16 for function in (math.cos, math.sin)
        )
        matrix = cosine, -sine, 0, sine, cosine, 0, 0, 0, 1 << 30
        return {SideData.DISPLAYMATRIX: struct.pack("=9i", *matrix)} if frame.rotation else {}


def display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    """FFmpeg's nine numbers that say how a frame is turned for display."""
    matrix = side_data(frame).get(SideData.DISPLAYMATRIX)
    return struct.unpack("=9i", matrix) if matrix else None


def has_clear_palette(frame: av.VideoFrame) -> bool:
    """Whether a frame of palette colours shows some that are not opaque."""
    if not frame.format.has_palette or len(frame.planes) < 2:
        return False
    colours = np.frombuffer(frame.planes[1], "<u4")[:256]
    return bool((colours[np.unique(plane_samples(frame, 0))] >> 24 != 255).any())


def has_own_colours(frame: av.VideoFrame) -> bool:
    """Whether a frame's colours are Dolby's own, as in profile 5, which has no tag for them."""
    is_dolby = SideData.DOVI_METADATA in side_data(frame)
    return is_dolby and frame.color_trc == ColorTrc.UNSPECIFIED


def orientation(frame: av.VideoFrame) -> Orientation:
    """How a frame is turned for display."""
    return Orientation.from_matrix(display_matrix(frame))


def restored(frames: Sequence[av.VideoFrame], restore: RestoreFrames) -> Iterator[av.VideoFrame]:
    """The frames with restored pixels, planar, with everything else that frames carry.

    The two fields of interlaced frames show different moments, so each is restored by itself.

    Args:
      frames: decoded frames of one size and pixel format.
      restore: called with upright pictures.

    Raises:
      ValueError: `restore` returns another shape or type.
      UserError: FFmpeg cannot convert the colours.
    """
    for interlaced, group in itertools.groupby(frames, lambda frame: frame.interlaced_frame):
        with ThreadPoolExecutor() as pool:  # neither FFmpeg nor NumPy holds the interpreter's lock
            originals, rgb, pixels = zip(*pool.map(_prepared, group), strict=True)
            before = np.stack(pixels)
            after = np.empty_like(before)
            turn = orientation(originals[0])
            for first in range(2 if interlaced else 1):
                rows = slice(first, None, 2 if interlaced else 1)
                seen = turn.upright(before[:, rows])
                made = restore(seen)
                if made.shape != seen.shape or made.dtype != seen.dtype:
                    raise ValueError(
                        f"expected {seen.dtype} of {seen.shape}, got {made.dtype} of {made.shape}"
                    )
                after[:, rows] = turn.stored(made)
            list(pool.map(_add_change, originals, rgb, before, after))
        yield from originals


def _prepared(frame: av.VideoFrame) -> tuple[av.VideoFrame, av.VideoFrame, np.ndarray]:
    """A planar frame of its own, the same in RGB, and that as uint16 (H, W, 3)."""
    original = planar(frame)
    rgb = in_rgb(original)
    return original, rgb, _pixels(original, rgb)


def range_of(frame: av.VideoFrame) -> ColorRange:
    """Of the samples: limited where no tag says otherwise, but full in formats such as yuvj420p."""
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return ColorRange.JPEG if full else ColorRange.MPEG


def plane_samples(frame: av.VideoFrame, index: int) -> np.ndarray:
    """A view (H, W) of a plane of a planar frame: uint8, or uint16 for more than 8 bits."""
    plane = frame.planes[index]
    dtype = np.dtype(np.uint8 if Samples.of(frame.format).depth <= 8 else "<u2")
    rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)
    return rows[: plane.height, : plane.width]


def planar(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame of its own with the same samples in planes.

    Raises:
      UserError: FFmpeg cannot convert it.
    """
    copy = reformatted(frame, Samples.of(frame.format).planar(), range_of(frame))
    copy.make_writable()  # decoders predict later frames from theirs
    is_full = range_of(frame) == ColorRange.JPEG
    copy.color_range = ColorRange.JPEG if is_full else frame.color_range
    return copy


def in_rgb(frame: av.VideoFrame) -> av.VideoFrame:
    """A planar frame as RGB of 16 bits; see `_pixels` for its scale.

    Raises:
      UserError: FFmpeg cannot convert it.
    """
    if Samples.of(frame.format).kind == "gray":  # whose range FFmpeg ignores
        frame = reformatted(frame, _DEEP_GRAY, range_of(frame))
    return reformatted(frame, _RGB, ColorRange.JPEG)


def reformatted(frame: av.VideoFrame, format: str, color_range: int) -> av.VideoFrame:
    """The frame in another pixel format and range, in the same colours.

    Raises:
      UserError: FFmpeg cannot convert it.
    """
    try:
        return VideoReformatter().reformat(
            frame,
            format=format,
            interpolation=_EXACT,
            src_color_range=None if frame.format.is_rgb else range_of(frame),
            dst_color_range=color_range,
            threads=1,  # frames are converted side by side
        )
    except av.error.FFmpegError as error:
        raise UserError(f"its colours cannot be converted ({error.strerror})") from error


def _pixels(frame: av.VideoFrame, rgb: av.VideoFrame) -> np.ndarray:
    """RGB, uint16 (H, W, 3), of a planar frame."""
    samples = Samples.of(frame.format)
    source = frame if samples.kind == "rgb" else rgb
    pixels = np.stack([plane_samples(source, i) for i in _PLANES_OF_RGB], axis=-1, dtype=np.uint16)
    if samples.kind == "rgb":  # FFmpeg's conversion is not exact
        return _rescaled(pixels, samples.depth)
    # FFmpeg shifts bits to the left, and limited ranges count as 8 bits, so white is not 65535.
    bits = samples.depth if range_of(frame) == ColorRange.JPEG else 8
    np.minimum(pixels, (1 << 16) - (1 << (16 - bits)), out=pixels)
    pixels += pixels >> bits
    return pixels


def _rescaled(pixels: np.ndarray, depth: int) -> np.ndarray:
    """Integers of some bits as uint16 of 16 bits."""
    return np.rint(pixels * np.float32(65535 / (2**depth - 1))).astype(np.uint16)


def _add_change(
    frame: av.VideoFrame, rgb: av.VideoFrame, before: np.ndarray, after: np.ndarray
) -> None:
    """Adds to the samples of a frame what changes in RGB.

    Args:
      frame: planar and writable.
      rgb: the frame in RGB, which is overwritten.
      before, after: uint16 (H, W, 3).
    """
    samples = Samples.of(frame.format)
    deep = Samples.of(av.VideoFormat(samples.deepest()))
    top, deep_top = 2**samples.depth - 1, 2**deep.depth - 1
    if samples.kind == "rgb":
        scale = top / deep_top
    else:  # FFmpeg takes 255 * 256 as white
        is_full = range_of(frame) == ColorRange.JPEG
        scale = top / deep_top if is_full else (top + 1) / (deep_top + 1)
        scale *= 255 * 256 / 65535
    old, new = (_components(rgb, pixels, samples, range_of(frame)) for pixels in (before, after))
    for index, change in enumerate(new):
        plane = plane_samples(frame, index)
        change -= old[index]
        change *= np.float32(scale)
        change += plane
        np.rint(change, out=change)
        plane[:] = np.clip(change, 0, top, out=change)


def _components(
    rgb: av.VideoFrame, pixels: np.ndarray, samples: Samples, color_range: ColorRange
) -> list[np.ndarray]:
    """RGB as deep samples of a kind, a plane (H, W) of float32 each.

    Args:
      rgb: a frame whose tags tell the matrix; its pixels are overwritten.
      pixels: uint16 (H, W, 3).
      samples: of this kind.
      color_range: of the result.
    """
    if samples.kind == "rgb":
        channels = sorted(range(3), key=_PLANES_OF_RGB.__getitem__)
        return [pixels[..., channel].astype(np.float32) for channel in channels]
    for channel, index in enumerate(_PLANES_OF_RGB):
        plane_samples(rgb, index)[:] = pixels[..., channel]
    deep = reformatted(rgb, samples.deepest(), color_range)
    count = 1 if samples.kind == "gray" else 3
    return [plane_samples(deep, i).astype(np.float32) for i in range(count)]
