"""Videos: every frame restored, all else passed on.

Frames keep their times (so variable frame rates stay), sound and subtitles are copied packet for
packet, and metadata, chapters, rotation and the tags of colour go along. Video is encoded anew
with the codec it came in where this build of FFmpeg has an encoder and the container takes it.
Further video streams, cover pictures, attachments and data streams are left out.

FFmpeg hides small damage, and a file without an index that ends early looks like a shorter one:
what it can decode is restored.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace

from manas_jax.errors import UserError
from manas_jax.files import has_suffix, replacing

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"}
    | {".wmv", ".flv", ".3gp", ".ogv"}
)
BATCH = 8

_FALLBACKS = ("h264", "vp9", "mpeg4")
_CRF = "18"  # visually close to the input
_ENCODER_OPTIONS = {
    "libx264": {"crf": _CRF},
    "libx265": {"crf": _CRF, "x265-params": "log-level=error"},
    "libvpx": {"crf": _CRF, "b": "100M", "deadline": "good", "cpu-used": "4"},
    "libvpx-vp9": {"crf": _CRF, "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
    "libsvtav1": {"crf": _CRF, "preset": "8"},
}
_OTHER_OPTIONS = {"qmin": "1", "qmax": "3"}  # the finest steps of the MPEG family
# Encoders whose streams say the time in frames of a fixed rate.
_FIXED_RATE = frozenset({"mpeg1video", "mpeg2video", "mpeg4"})
_RGB = "rgb24"
_METADATA_ERRORS = "surrogateescape"  # old files have titles in other encodings: kept byte for byte
COLOUR_TAGS = ("color_range", "colorspace", "color_primaries", "color_trc")

Restore = Callable[[np.ndarray], np.ndarray]
Progress = Callable[[int, int | None], None]


def is_video(path: str | os.PathLike) -> bool:
    """Whether the name of `path` ends like that of a video (hidden files never do)."""
    return has_suffix(path, SUFFIXES)


def derain(
    source: str | os.PathLike,
    target: str | os.PathLike,
    restore: Restore,
    progress: Progress | None = None,
    batch: int = BATCH,
) -> None:
    """Writes the video `source` with its frames restored to `target`, whole or not at all.

    Args:
      source: a video file; its first video stream is the one restored.
      target: the file to write, in the container that its suffix names.
      restore: maps frames, uint8 (N, H, W, 3) RGB, to as many of the same shape. They are upright
        as a player shows them; N is `batch`, and less at the end.
      progress: called after each batch with the frames done and their total, where it is known.
      batch: frames given to `restore` at a time.

    Raises:
      ValueError: `restore` gives another shape or type.
      UserError: the source is missing, no video or damaged; the target's container cannot hold
        its sound, or the target cannot be written to. What `restore` raises passes as it is.
    """
    with _opened(source) as reader, replacing(target) as temporary:
        try:  # not `output_file`, which would take an OSError of `restore` for one of writing
            pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error
        frames = _Frames(reader, source)
        try:
            with av.open(_plain(temporary), "w", metadata_errors=_METADATA_ERRORS) as writer:
                _transcode(frames, writer, target, restore, progress, batch)
        except av.error.FFmpegError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from error
        except ValueError as error:
            if "Could not determine output format" not in str(error):
                raise
            raise UserError(
                f"{target}: no video container of this name; use .mp4, .mkv or .webm"
            ) from None


@dataclasses.dataclass(frozen=True)
class _Turn:
    """How stored frames become upright ones: axes swapped or not, then flipped or not."""

    swap: bool = False
    vertical: int = 1  # steps of the slices
    horizontal: int = 1

    @classmethod
    def of(cls, matrix: Sequence[int] | None) -> _Turn:
        """From FFmpeg's display matrix; turns by anything but right angles are left to players."""
        if matrix is None:
            return cls()
        (a, b), (c, d) = matrix[:2], matrix[3:5]  # x' = a x + c y, y' = b x + d y
        if b == c == 0 and a and d:
            return cls(False, 1 if d > 0 else -1, 1 if a > 0 else -1)
        if a == d == 0 and b and c:
            return cls(True, 1 if b > 0 else -1, 1 if c > 0 else -1)
        return cls()

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        turned = pixels.swapaxes(0, 1) if self.swap else pixels
        return turned[:: self.vertical, :: self.horizontal]

    def stored(self, pixels: np.ndarray) -> np.ndarray:
        flipped = pixels[:: self.vertical, :: self.horizontal]
        return np.ascontiguousarray(flipped.swapaxes(0, 1) if self.swap else flipped)


def _opened(source: str | os.PathLike) -> av.container.InputContainer:
    try:
        return av.open(_plain(source), metadata_errors=_METADATA_ERRORS)
    except av.error.FileNotFoundError:
        raise UserError(f"{source}: no such video") from None
    except av.error.FFmpegError as error:
        raise UserError(_damaged(source, error)) from error


def _plain(path: str | os.PathLike) -> str:
    """The path so that FFmpeg takes no part of it for a protocol, as in 12:30.mp4."""
    return os.path.abspath(path)


def _damaged(source: str | os.PathLike, error: av.error.FFmpegError) -> str:
    return f"{source}: cannot be read as a video ({error.strerror}); copy it again or remove it"


class _Frames:
    """The source as frames of its first video stream and packets of all others, in their order.

    Raises:
      UserError: here and while iterating, the source is damaged or holds no video.
    """

    def __init__(self, reader: av.container.InputContainer, source: str | os.PathLike):
        films = [s for s in reader.streams.video if not s.disposition & Disposition.attached_pic]
        if not films:
            raise UserError(f"{source}: holds no video stream")
        self.reader, self.video, self._source = reader, films[0], source
        self.video.thread_type = "AUTO"
        items = self._items()
        # Rotation stands in the first frame, and streams are declared before anything is written.
        early = []
        for item in items:
            early.append(item)
            if isinstance(item, av.VideoFrame):
                break
        else:
            raise UserError(f"{source}: no frame of it can be decoded; copy it again or remove it")
        self.first: av.VideoFrame = early[-1]
        self._rest = itertools.chain(early, items)

    def __iter__(self) -> Iterator[av.VideoFrame | av.Packet]:
        return self._rest

    def _items(self) -> Iterator[av.VideoFrame | av.Packet]:
        size = None
        try:
            for packet in self.reader.demux():
                if packet.stream is self.video:
                    for frame in packet.decode():
                        size = size or (frame.width, frame.height)
                        if size != (frame.width, frame.height):
                            raise UserError(
                                f"{self._source}: its size changes midway; cut it there"
                            )
                        yield frame
                elif packet.size:  # else it only says that the stream ends
                    yield packet
        except av.error.FFmpegError as error:
            raise UserError(_damaged(self._source, error)) from error


def _transcode(
    frames: _Frames,
    writer: av.container.OutputContainer,
    target: str | os.PathLike,
    restore: Restore,
    progress: Progress | None,
    batch: int,
) -> None:
    matrix = _display_matrix(frames.first)
    turn = _Turn.of(matrix)
    encoder = _add_encoder(writer, frames)
    encoder.set_display_matrix(matrix)
    copies = _add_copies(writer, frames, target)
    writer.metadata.update(frames.reader.metadata)
    writer.set_chapters(frames.reader.chapters())

    waiting: list[av.VideoFrame] = []
    done = 0

    def finish() -> None:
        nonlocal done
        for frame in _restored(waiting, restore, turn, encoder.codec_context.pix_fmt):
            writer.mux(encoder.encode(frame))
        done += len(waiting)
        waiting.clear()
        if progress:
            progress(done, frames.video.frames or None)

    for item in frames:
        if isinstance(item, av.VideoFrame):
            waiting.append(item)
            if len(waiting) == batch:
                finish()
        elif item.stream in copies:
            item.stream = copies[item.stream]
            writer.mux(item)
    if waiting:
        finish()
    writer.mux(encoder.encode(None))


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    for data in frame.side_data:
        if data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
            return struct.unpack("=9i", bytes(data))
    return None


def _restored(
    frames: Sequence[av.VideoFrame], restore: Restore, turn: _Turn, pixel_format: str
) -> Iterator[av.VideoFrame]:
    before = np.stack([turn.upright(_pixels(frame)) for frame in frames])
    after = restore(before)
    if after.shape != before.shape or after.dtype != np.uint8:
        raise ValueError(f"expected uint8 of {before.shape}, got {after.dtype} of {after.shape}")
    for frame, pixels in zip(frames, after, strict=True):
        yield _like(frame, turn.stored(pixels), pixel_format)


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    """RGB of shape (H, W, 3) in the file's layout."""
    return frame.to_ndarray(
        format=_RGB,
        src_colorspace=_matrix_of(frame),
        src_color_range=frame.color_range,
        dst_color_range=ColorRange.JPEG,
    )


def _like(frame: av.VideoFrame, pixels: np.ndarray, pixel_format: str) -> av.VideoFrame:
    """A frame of these pixels with the time and the tags of `frame`."""
    new = av.VideoFrame.from_ndarray(pixels, format=_RGB).reformat(
        format=pixel_format,
        dst_colorspace=_matrix_of(frame),
        src_color_range=ColorRange.JPEG,
        dst_color_range=frame.color_range,
    )
    for tag in COLOUR_TAGS:
        setattr(new, tag, getattr(frame, tag))
    new.pts, new.time_base, new.duration = frame.pts, frame.time_base, frame.duration
    return new


def _matrix_of(frame: av.VideoFrame) -> Colorspace:
    """The matrix between YUV and RGB; where none is said, one that is the same there and back."""
    try:
        return Colorspace(frame.colorspace)
    except ValueError:
        return Colorspace.DEFAULT


def _add_encoder(
    writer: av.container.OutputContainer, frames: _Frames
) -> av.video.stream.VideoStream:
    """A video stream in the codec of the input where that can be written, else in another one."""
    video, context = frames.video, frames.video.codec_context
    stream = _first_possible(writer, (video.codec.canonical_name, *_FALLBACKS), frames)
    codec = stream.codec
    stream.width, stream.height = frames.first.width, frames.first.height
    stream.pix_fmt = _pixel_format(codec, frames.first)
    if codec.canonical_name not in _FIXED_RATE:
        stream.codec_context.time_base = video.time_base
    stream.time_base = video.time_base
    if context.sample_aspect_ratio:
        stream.codec_context.sample_aspect_ratio = context.sample_aspect_ratio
    for tag in COLOUR_TAGS:
        setattr(stream.codec_context, tag, getattr(frames.first, tag))
    stream.metadata.update(video.metadata)
    stream.disposition = video.disposition
    return stream


def _first_possible(
    writer: av.container.OutputContainer, codecs: Sequence[str], frames: _Frames
) -> av.video.stream.VideoStream:
    """A stream in the first of the codecs that can be encoded and that the container takes."""
    rate = frames.video.average_rate or frames.video.guessed_rate or Fraction(25)
    for name in codecs:
        try:
            codec = av.Codec(name, "w")
            options = _ENCODER_OPTIONS.get(codec.name, _OTHER_OPTIONS)
            return writer.add_stream(codec.name, rate=rate, options=options)
        except ValueError:  # no such encoder, or not in this container
            continue
    raise UserError(
        f"cannot write {writer.format.long_name}: no encoder for what it can hold; use .mkv"
    )


def _pixel_format(codec: av.Codec, frame: av.VideoFrame) -> str:
    """The format of `frame`, or the one that loses least of those that can be encoded.

    Formats with fewer samples of colour than of brightness want even sizes of most encoders.
    """
    formats = [format.name for format in codec.video_formats or ()]
    odd = frame.width % 2 or frame.height % 2
    wanted = (frame.format.name,) if not odd or _is_full(frame.format) else ()
    if frame.format.is_rgb:
        others = ("rgb24", "gbrp", "bgr0", "yuv444p")
    else:
        others = ("yuv444p",) if odd else ("yuv420p", "yuv444p")
    return next((name for name in (*wanted, *others) if name in formats), formats[0])


def _is_full(format: av.VideoFormat) -> bool:
    return format.chroma_width(16) == 16 and format.chroma_height(16) == 16


def _add_copies(
    writer: av.container.OutputContainer, frames: _Frames, target: str | os.PathLike
) -> dict[av.stream.Stream, av.stream.Stream]:
    """For each stream of sound or subtitles one of the same kind in the target."""
    copies = {}
    for stream in (*frames.reader.streams.audio, *frames.reader.streams.subtitles):
        try:
            copy = writer.add_stream_from_template(stream)
        except ValueError:
            if stream.type == "subtitle":  # containers agree on few kinds
                continue
            codec = stream.codec_context.name if stream.codec_context else "an unknown codec"
            raise UserError(
                f"{target}: its container cannot hold sound in {codec}; use .mkv or the suffix of "
                "the input"
            ) from None
        copy.metadata.update(stream.metadata)
        copy.disposition = stream.disposition
        copies[stream] = copy
    return copies
