"""Videos whose frames are restored while everything else is copied.

Frames keep their timestamps, so variable frame rates stay. Audio and subtitle packets are copied,
as are metadata, chapters, rotation and colour tags. Video is encoded again, with the codec of the
input if this build of FFmpeg has an encoder and the container accepts it. Further video streams,
cover pictures, attachments and data streams are dropped.

FFmpeg hides small damage, and a truncated file without an index looks like a shorter one: what it
can decode is restored.
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
_OTHER_OPTIONS = {"qmin": "1", "qmax": "3"}  # the finest quantisers of the MPEG family
# Encoders whose timestamps count frames of a fixed rate.
_FIXED_RATE = frozenset({"mpeg1video", "mpeg2video", "mpeg4"})
_RGB = "rgb24"
_METADATA_ERRORS = "surrogateescape"  # titles in old encodings are copied byte for byte
COLOUR_TAGS = ("color_range", "colorspace", "color_primaries", "color_trc")

Restore = Callable[[np.ndarray], np.ndarray]
"""Frames, uint8 (N, H, W, 3), RGB -> restored frames in the same shape and type."""
Progress = Callable[[int, int | None], None]
"""Called with the number of frames done, and their total where it is known."""


def is_video(path: str | os.PathLike) -> bool:
    """Whether `path` has the suffix of a video and is not hidden."""
    return has_suffix(path, SUFFIXES)


def derain(
    source: str | os.PathLike,
    target: str | os.PathLike,
    restore: Restore,
    progress: Progress | None = None,
    batch: int = BATCH,
) -> None:
    """Writes `source` with restored frames to `target`, completely or not at all.

    Args:
      source: a video file, of which the first video stream is restored.
      target: the file to write, in the container that its suffix names.
      restore: called with upright frames, `batch` at a time, fewer at the end. Its exceptions pass
        unchanged.
      progress: called after each batch.
      batch: frames per call of `restore`.

    Raises:
      ValueError: `restore` returns another shape or type.
      UserError: the source is missing, no video or damaged, the target cannot be written, or its
        container cannot hold the audio.
    """
    with _open(source) as reader, replacing(target) as temporary:
        try:  # not `output_file`: it would report an OSError of `restore` as one of writing
            pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error
        frames = _Frames(reader, source)
        try:
            with av.open(_no_protocol(temporary), "w", metadata_errors=_METADATA_ERRORS) as writer:
                _transcode(frames, writer, target, restore, progress, batch)
        except av.error.FFmpegError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from error
        except ValueError as error:
            if "Could not determine output format" not in str(error):
                raise
            raise UserError(
                f"{target}: no video container has this suffix; use .mp4, .mkv or .webm"
            ) from None


@dataclasses.dataclass(frozen=True)
class _Orientation:
    """How stored frames become upright: axes are swapped, then flipped.

    Attributes:
      swap: whether height and width are swapped.
      vertical, horizontal: steps of the slices; -1 flips.
    """

    swap: bool = False
    vertical: int = 1
    horizontal: int = 1

    @classmethod
    def from_matrix(cls, matrix: Sequence[int] | None) -> _Orientation:
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
        swapped = pixels.swapaxes(0, 1) if self.swap else pixels
        return swapped[:: self.vertical, :: self.horizontal]

    def stored(self, pixels: np.ndarray) -> np.ndarray:
        flipped = pixels[:: self.vertical, :: self.horizontal]
        return np.ascontiguousarray(flipped.swapaxes(0, 1) if self.swap else flipped)


def _open(source: str | os.PathLike) -> av.container.InputContainer:
    try:
        return av.open(_no_protocol(source), metadata_errors=_METADATA_ERRORS)
    except av.error.FileNotFoundError:
        raise UserError(f"{source}: no such video") from None
    except av.error.FFmpegError as error:
        raise UserError(_damaged(source, error)) from error


def _no_protocol(path: str | os.PathLike) -> str:
    """The absolute path: in a relative one, such as 12:30.mp4, FFmpeg sees a protocol."""
    return os.path.abspath(path)


def _damaged(source: str | os.PathLike, error: av.error.FFmpegError) -> str:
    return f"{source}: cannot be read as a video ({error.strerror}); copy it again or remove it"


class _Frames:
    """Frames of the first video stream and packets of all other streams, in file order.

    Raises:
      UserError: on construction and iteration, the source is damaged or holds no video.
    """

    def __init__(self, reader: av.container.InputContainer, source: str | os.PathLike):
        streams = [s for s in reader.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise UserError(f"{source}: holds no video stream")
        self.reader, self.video, self._source = reader, streams[0], source
        self.video.thread_type = "AUTO"
        items = self._items()
        # The first frame holds the rotation, and streams are declared before packets are written.
        early = []
        for item in items:
            early.append(item)
            if isinstance(item, av.VideoFrame):
                break
        else:
            raise UserError(f"{source}: no frame can be decoded; copy it again or remove it")
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
                                f"{self._source}: the frame size changes midway; cut it there"
                            )
                        yield frame
                elif packet.size:  # an empty one marks the end of its stream
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
    orientation = _Orientation.from_matrix(matrix)
    encoder = _add_encoder(writer, frames)
    encoder.set_display_matrix(matrix)
    copies = _add_copies(writer, frames, target)
    writer.metadata.update(frames.reader.metadata)
    writer.set_chapters(frames.reader.chapters())

    waiting: list[av.VideoFrame] = []
    done = 0

    def write_waiting() -> None:
        nonlocal done
        for frame in _restore(waiting, restore, orientation, encoder.codec_context.pix_fmt):
            writer.mux(encoder.encode(frame))
        done += len(waiting)
        waiting.clear()
        if progress:
            progress(done, frames.video.frames or None)

    for item in frames:
        if isinstance(item, av.VideoFrame):
            waiting.append(item)
            if len(waiting) == batch:
                write_waiting()
        elif item.stream in copies:
            item.stream = copies[item.stream]
            writer.mux(item)
    if waiting:
        write_waiting()
    writer.mux(encoder.encode(None))


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    for data in frame.side_data:
        if data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
            return struct.unpack("=9i", bytes(data))
    return None


def _restore(
    frames: Sequence[av.VideoFrame], restore: Restore, orientation: _Orientation, pixel_format: str
) -> Iterator[av.VideoFrame]:
    before = np.stack([orientation.upright(_rgb(frame)) for frame in frames])
    after = restore(before)
    if after.shape != before.shape or after.dtype != np.uint8:
        raise ValueError(f"expected uint8 of {before.shape}, got {after.dtype} of {after.shape}")
    for frame, pixels in zip(frames, after, strict=True):
        yield _with_rgb(frame, orientation.stored(pixels), pixel_format)


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """RGB, uint8 (H, W, 3), in the stored orientation."""
    return frame.to_ndarray(
        format=_RGB,
        src_colorspace=_matrix_of(frame),
        src_color_range=frame.color_range,
        dst_color_range=ColorRange.JPEG,
    )


def _with_rgb(frame: av.VideoFrame, rgb: np.ndarray, pixel_format: str) -> av.VideoFrame:
    """A frame of new RGB with the timestamp and the tags of `frame`."""
    new = av.VideoFrame.from_ndarray(rgb, format=_RGB).reformat(
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
    """The YUV matrix; untagged, FFmpeg's default, which is the same in both directions."""
    try:
        return Colorspace(frame.colorspace)
    except ValueError:
        return Colorspace.DEFAULT


def _add_encoder(
    writer: av.container.OutputContainer, frames: _Frames
) -> av.video.stream.VideoStream:
    """Adds the video stream, in the codec of the input if possible, else in a fallback."""
    video, context = frames.video, frames.video.codec_context
    stream = _add_first_possible(writer, (video.codec.canonical_name, *_FALLBACKS), frames)
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


def _add_first_possible(
    writer: av.container.OutputContainer, codecs: Sequence[str], frames: _Frames
) -> av.video.stream.VideoStream:
    """Adds a stream in the first codec that has an encoder and that the container accepts."""
    rate = frames.video.average_rate or frames.video.guessed_rate or Fraction(25)
    for name in codecs:
        try:
            codec = av.Codec(name, "w")
            options = _ENCODER_OPTIONS.get(codec.name, _OTHER_OPTIONS)
            return writer.add_stream(codec.name, rate=rate, options=options)
        except ValueError:  # no such encoder, or not for this container
            continue
    raise UserError(f"cannot write {writer.format.long_name}: no encoder for its codecs; use .mkv")


def _pixel_format(codec: av.Codec, frame: av.VideoFrame) -> str:
    """The format of `frame` if the codec can encode it, else the one that loses least.

    Most encoders need even sizes for formats with subsampled chroma.
    """
    formats = [format.name for format in codec.video_formats or ()]
    odd = frame.width % 2 or frame.height % 2
    same = (frame.format.name,) if not odd or _is_full_chroma(frame.format) else ()
    if frame.format.is_rgb:
        others = ("rgb24", "gbrp", "bgr0", "yuv444p")
    else:
        others = ("yuv444p",) if odd else ("yuv420p", "yuv444p")
    return next((name for name in (*same, *others) if name in formats), formats[0])


def _is_full_chroma(format: av.VideoFormat) -> bool:
    return format.chroma_width(16) == 16 and format.chroma_height(16) == 16


def _add_copies(
    writer: av.container.OutputContainer, frames: _Frames, target: str | os.PathLike
) -> dict[av.stream.Stream, av.stream.Stream]:
    """Adds audio and subtitle streams; returns source stream -> target stream."""
    copies = {}
    for stream in (*frames.reader.streams.audio, *frames.reader.streams.subtitles):
        try:
            copy = writer.add_stream_from_template(stream)
        except ValueError:
            if stream.type == "subtitle":  # dropped: few formats fit several containers
                continue
            codec = stream.codec_context.name if stream.codec_context else "an unknown codec"
            raise UserError(
                f"{target}: its container cannot hold audio in {codec}; use .mkv or the suffix of "
                "the input"
            ) from None
        copy.metadata.update(stream.metadata)
        copy.disposition = stream.disposition
        copies[stream] = copy
    return copies
