"""Writes restored frames, and copies of everything else that the output's container takes."""

from __future__ import annotations

import collections
import io
import itertools
import logging
import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

import av
from av.format import Flags

from manas_jax.errors import UserError
from manas_jax.inference.video import pixels
from manas_jax.inference.video.encoder import Encoding, titled
from manas_jax.inference.video.reader import METADATA_ERRORS, Reader, is_cover, open_video
from manas_jax.inference.video.segments import Segments

Progress = Callable[[int, int, int], None]
"""Called with the number of frames done, of all, and of those that an earlier start has done."""
Note = Callable[[str], None]
"""Called with a line on what an output does not keep."""

_log = logging.getLogger(__name__)
# Of the file rather than of what it shows: the muxer writes its own.
_OWN_METADATA = {
    "compatible_brands", "duration", "encoder", "major_brand", "minor_version", "software",
}  # fmt: skip
_PACKETS_TRIED = 500
# Keys of phones, such as com.apple.quicktime.make, which the muxer else leaves out.
_ANY_KEYS = {"movflags": "use_metadata_tags"}


def container_options(reader: Reader, encoding: Encoding) -> dict[str, str]:
    """Options of the muxer."""
    has_own_keys = any("." in key for key in reader.container.metadata)
    return _ANY_KEYS if has_own_keys and encoding.container in ("mp4", "mov", "3gp") else {}


def note_losses(reader: Reader, losses: Sequence[str], note: Note | None) -> None:
    """Tells of what the output does not keep, by a warning without `note`."""
    if losses:
        (note or _log.warning)(f"{reader.name}: written without its {' and '.join(losses)}")


def lost_metadata(reader: Reader, output: str | os.PathLike) -> list[str]:
    """Keys of the source's metadata that a written file does not have, in words.

    Raises:
      FFmpegError: the file cannot be read.
    """
    with av.open(output, metadata_errors=METADATA_ERRORS) as made:
        kept = {key.lower() for key in made.metadata} | _OWN_METADATA
    return [f"metadata {key}" for key in reader.container.metadata if key.lower() not in kept]


def segment_count(frames: int, length: int) -> int:
    """The number of segments; the last one is not shorter, as encoders need several frames."""
    return max(1, frames // length)


def transcode(
    reader: Reader,
    count: int,
    encoding: Encoding,
    writer: av.container.OutputContainer,
    target: str | os.PathLike,
    restore: pixels.RestoreFrames,
    progress: Progress | None,
    batch: int,
    length: int,
    segments: Segments | None,
    note: Note | None,
) -> None:
    """Writes restored frames and copies of the other streams, metadata and chapters.

    Frames are encoded in segments of `length`, each with an encoder of its own, so that an output
    does not depend on where a start went on.

    Args:
      reader: the source.
      count: the number of its frames.
      encoding: of the frames.
      writer: the output.
      target: its name, for messages.
      restore: called with `batch` frames at a time, fewer at the end of a segment.
      progress: called after each batch.
      batch: frames.
      length: frames of a segment; the last one has the rest as well.
      segments: where finished ones are, and are written to; None to keep none.
      note: see `note_losses`.

    Raises:
      ValueError: `restore` returns another shape or type.
      UserError: the source is damaged, or the container cannot hold the audio.
    """
    _check_copies(reader, encoding, target)
    stream = encoding.add_stream(writer, reader)
    copies, dropped = _add_copies(writer, reader.container, reader.video.index, target)
    writer.metadata.update(reader.container.metadata)
    writer.set_chapters(reader.container.chapters())
    note_losses(reader, [*encoding.losses, *dropped], note)

    source, time_of = _Source(reader, copies), _Clock(encoding.tick, 1 / reader.rate)
    output = _Output(writer, stream, copies, source.others)
    done = resumed = 0

    def time(frame: av.VideoFrame) -> int:
        return time_of(None if frame.pts is None else frame.pts * reader.video.time_base)

    def advance(frames: int) -> None:
        nonlocal done
        done += frames
        if progress:
            progress(done, count, resumed)

    def encoded(frames: Iterator[av.VideoFrame]) -> Iterator[av.Packet]:
        with encoding.context(reader) as encoder:
            while group := list(itertools.islice(frames, batch)):
                for frame in pixels.restored(group, restore):
                    duration = round(frame.duration * reader.video.time_base / encoding.tick)
                    yield from encoder.encode(encoding.frame(frame, time(frame), duration))
                advance(len(group))
            yield from encoder.encode(None)

    number = segment_count(count, length)
    for index in range(number):
        frames = source.frames(length if index + 1 < number else None)
        if segments is None:
            output.write(encoded(frames))
            continue
        if index in segments:
            skipped = sum(time(frame) is not None for frame in frames)
            resumed += skipped
            advance(skipped)
        else:
            segments.write(index, encoded(frames))
        output.write(segments.read(index))
    output.finish()


class _Source:
    """Frames of a reader, and the packets of other streams that were read on the way.

    Attributes:
      others: packets that are copied and not written yet.
    """

    def __init__(self, reader: Reader, copied: Container[int]):
        self._items, self._copied = iter(reader), copied
        self.others: collections.deque[av.Packet] = collections.deque()

    def frames(self, number: int | None) -> Iterator[av.VideoFrame]:
        """The next frames; None for all that are left."""
        found = 0
        while found != number and (item := next(self._items, None)) is not None:
            if isinstance(item, av.VideoFrame):
                found += 1
                yield item
            elif item.stream_index in self._copied:
                self.others.append(item)


class _Output:
    """An output that gets packets of the restored stream and of copies in the order of times."""

    def __init__(
        self,
        writer: av.container.OutputContainer,
        stream: av.video.stream.VideoStream,
        copies: Mapping[int, _Copy],
        others: collections.deque[av.Packet],
    ):
        self._writer, self._stream, self._copies, self._others = writer, stream, copies, others
        self._earliest: int | None = None

    def write(self, packets: Iterable[av.Packet]) -> None:
        """Writes packets of an encoder, and the others that are no later."""
        for packet in packets:
            # Decoding of a segment may have to start before the end of the last one.
            if packet.dts is not None and self._earliest is not None:
                packet.dts = max(packet.dts, self._earliest)
            self._earliest = None if packet.dts is None else packet.dts + 1
            self._write_others(_time(packet))
            packet.stream = self._stream
            self._writer.mux(packet)

    def finish(self) -> None:
        """Writes the others that are left."""
        self._write_others(math.inf)

    def _write_others(self, latest: Fraction | float) -> None:
        while self._others and _time(self._others[0]) <= latest:
            packet = self._others.popleft()
            self._copies[packet.stream_index].mux(packet, self._writer)


def _time(packet: av.Packet) -> Fraction | float:
    """Seconds at which a packet is decoded; those without a time come first."""
    given = packet.pts if packet.dts is None else packet.dts
    return -math.inf if given is None else given * packet.time_base


class _Clock:
    """Times in ticks, each later than the one before.

    A missing time is one frame after the one before; one that repeats or goes back is a tick later.
    """

    def __init__(self, tick: Fraction, frame: Fraction):
        """`tick` and the usual time between two frames, in seconds."""
        self._tick, self._frame = tick, max(1, round(frame / tick))
        self._last: int | None = None

    def __call__(self, seconds: Fraction | None) -> int:
        if self._last is None:
            self._last = round((seconds or 0) / self._tick)
        elif seconds is None:
            self._last += self._frame
        else:
            self._last = max(self._last + 1, round(seconds / self._tick))
        return self._last


class _Copy:
    """A stream whose packets are copied, with decoding times that the container takes."""

    def __init__(self, stream: av.stream.Stream):
        self._stream = stream
        may_repeat = stream.container.format.flags & Flags.ts_nonstrict.value
        self._step = 0 if may_repeat else 1
        self._earliest: int | None = None
        self._end = 0

    def mux(self, packet: av.Packet, writer: av.container.OutputContainer) -> None:
        """Writes the next packet."""
        given = (time for time in (packet.dts, packet.pts, self._end) if time is not None)
        time = next(given)
        if self._earliest is not None:
            time = max(time, self._earliest)
        packet.dts = time
        packet.pts = time if packet.pts is None else max(packet.pts, time)
        self._earliest, self._end = time + self._step, time + (packet.duration or 1)
        packet.stream = self._stream
        writer.mux(packet)


def _check_copies(reader: Reader, encoding: Encoding, target: str | os.PathLike) -> None:
    """Writes the first packet of each copied stream in memory: some fail when a file is closed.

    Raises:
      UserError: the container cannot hold them.
    """
    try:
        with (
            open_video(reader.name) as again,
            av.open(io.BytesIO(), "w", format=encoding.container) as output,
        ):
            copies, _ = _add_copies(output, again, reader.video.index, target)
            for packet in itertools.islice(again.demux() if copies else (), _PACKETS_TRIED):
                if packet.size and packet.stream_index in copies:
                    copies.pop(packet.stream_index).mux(packet, output)
                if not copies:
                    break
    except av.error.FFmpegError as error:
        raise UserError(
            f"{target}: its container cannot hold the sound or the subtitles of {reader.name} "
            f"({error.strerror}); use .mkv"
        ) from error


def _add_copies(
    writer: av.container.OutputContainer,
    container: av.container.InputContainer,
    video: int,
    target: str | os.PathLike,
) -> tuple[dict[int, _Copy], list[str]]:
    """Adds all streams but the one that is encoded.

    Args:
      writer: the output.
      container: the source.
      video: index of the stream that is encoded.
      target: name of the output, for messages.

    Returns:
      The copies by the index in the source, and what is dropped, in words.
    """
    copies: dict[int, _Copy] = {}
    dropped: list[str] = []
    for stream in container.streams:
        if stream.index == video:
            continue
        if not _is_copied(stream, writer):
            if not _holds_chapters(stream, writer):
                dropped.append(_name(stream))
            continue
        try:
            copy = writer.add_stream_from_template(stream, opaque=True)
        except ValueError:
            if stream.type == "audio":
                raise UserError(
                    f"{target}: its container cannot hold {_name(stream)}; use .mkv or the suffix "
                    "of the input"
                ) from None
            dropped.append(_name(stream))
            continue
        copy.metadata.update(titled(stream.metadata))
        copy.disposition = stream.disposition
        copies[stream.index] = _Copy(copy)
    return copies, dropped


def _holds_chapters(stream: av.stream.Stream, writer: av.container.OutputContainer) -> bool:
    """Whether it is MP4's text track of chapters, which the output gets as its own kind of them."""
    return (
        stream.type == "data"
        and stream.metadata.get("handler_name") == "SubtitleHandler"
        and bool(stream.container.chapters())
        and writer.format.name in ("matroska", "mp4", "mov")
    )


def _is_copied(stream: av.stream.Stream, writer: av.container.OutputContainer) -> bool:
    """Whether the container may take a stream besides the restored one."""
    if stream.type == "attachment":
        return writer.format.name == "matroska"
    if stream.type == "video":
        return is_cover(stream) and writer.format.name in ("matroska", "mp4", "mov")
    return stream.type in ("audio", "subtitle")


def _name(stream: av.stream.Stream) -> str:
    """What a stream is, in words."""
    if stream.type == "video":
        return "cover picture" if is_cover(stream) else "further video stream"
    if stream.type == "attachment":
        return f"attachment {stream.metadata.get('filename', '')}".strip()
    kind = {"subtitle": "subtitles"}.get(stream.type, stream.type)
    codec = stream.codec_context.name if stream.codec_context else None
    if stream.type == "data":
        codec = stream.name
    return f"{kind} in {codec or 'an unknown codec'}"
