"""Reads a video: its frames with times that can be written, and the packets of other streams."""

from __future__ import annotations

import collections
import heapq
import itertools
import os
from collections.abc import Iterator
from fractions import Fraction

import av
from av.format import Flags
from av.stream import Disposition

from manas_jax.errors import UserError
from manas_jax.inference.video import pixels
from manas_jax.inference.video.pixels import Samples

METADATA_ERRORS = "surrogateescape"  # titles in old encodings are copied byte for byte

# FFmpeg's own decoders leave the transparency out.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# FFmpeg decodes all 4:4:4 to 12 bits, and encodes 10.
_CODED_DEPTH = {"prores": 10}
# Files without presentation times: the first frame shown has the earliest time of those coded.
_CODED_TIMES = frozenset({"avi", "asf"})
_STEP_BACK = Fraction(1, 10)  # seconds; times that go further back belong to another recording
_UNEVEN = 0.02  # by how much the mean rate of a video may differ from that of its times


def no_protocol(path: str | os.PathLike) -> str:
    """The absolute path: in a relative one, such as 12:30.mp4, FFmpeg sees a protocol."""
    return os.path.abspath(path)


class Reader:
    """Frames of the first video stream and packets of all other streams, in file order.

    Times of recordings that were joined in one file follow each other. Frames without a time have
    None.

    Attributes:
      container: the open file.
      video: the stream of the frames.
      first: the first frame.

    Raises:
      UserError: on construction and iteration, the source is damaged or holds no video that can be
        restored.
    """

    def __init__(self, container: av.container.InputContainer, name: str | os.PathLike):
        streams = [s for s in container.streams.video if not is_cover(s)]
        if not streams:
            raise UserError(f"{name}: holds no video stream")
        self.container, self.video, self.name = container, streams[0], name
        if self.video.codec_context is None:
            raise UserError(f"{name}: its video codec is unknown; convert it first")
        self._decoder = self._make_decoder()
        self._joins = _Joins() if container.format.flags & Flags.ts_discont.value else None
        items = self._items()
        # The first frame holds the rotation, and streams are declared before packets are written.
        early = []
        for item in items:
            early.append(item)
            if isinstance(item, av.VideoFrame):
                break
        else:
            raise UserError(f"{name}: no frame can be decoded; copy it again or remove it")
        self.first: av.VideoFrame = early[-1]
        if pixels.has_clear_palette(self.first):
            raise UserError(f"{name}: a palette with transparency; convert it to RGBA first")
        if pixels.has_own_colours(self.first):
            raise UserError(
                f"{name}: Dolby Vision without a base layer of ordinary colours (profile 5); "
                "convert it first"
            )
        try:
            pixels.in_rgb(pixels.planar(self.first))
        except (ValueError, UserError) as error:
            raise UserError(f"{name}: {error}") from None
        self._rest = itertools.chain(early, items)

    def __iter__(self) -> Iterator[av.VideoFrame | av.Packet]:
        return self._rest

    @property
    def size(self) -> str:
        """Width and height of a frame, for messages."""
        return f"{self.first.width}x{self.first.height}"

    @property
    def depth(self) -> int:
        """Bits of a sample in the file, of which the decoder may make more."""
        codec = self.video.codec.canonical_name
        return min(Samples.of(self.first.format).depth, _CODED_DEPTH.get(codec, 16))

    @property
    def rate(self) -> Fraction:
        """Frames per second, guessed where the file does not say."""
        return self.video.average_rate or self.video.guessed_rate or Fraction(25)

    @property
    def is_variable(self) -> bool:
        """Whether frames are shown for different times, as in recordings of screens and phones."""
        mean, base = self.video.average_rate, self.video.base_rate
        return bool(mean and base) and not self.is_interlaced and abs(mean / base - 1) > _UNEVEN

    @property
    def is_interlaced(self) -> bool:
        """Whether frames hold two fields each, as far as the file and its first frame say."""
        return self._is_interlaced(self.first)

    def _is_interlaced(self, first: av.VideoFrame) -> bool:
        return first.interlaced_frame or self.video.codec_context.field_order > 1

    def _make_decoder(self) -> av.VideoCodecContext:
        codec = _ALPHA_DECODERS.get(self.video.codec.canonical_name)
        metadata = {key.lower(): value for key, value in self.video.metadata.items()}
        if codec and metadata.get("alpha_mode") == "1":
            return av.CodecContext.create(codec, "r")
        self.video.thread_type = "AUTO"
        return self.video.codec_context

    def _items(self) -> Iterator[av.VideoFrame | av.Packet]:
        coded = [] if self.container.format.name in _CODED_TIMES else None
        first = None
        try:
            for packet in self.container.demux():
                if self._joins:
                    self._joins.move(packet)
                if packet.stream is not self.video:
                    if packet.size:  # an empty one marks the end of its stream
                        yield packet
                    continue
                if coded is not None and packet.dts is not None:
                    heapq.heappush(coded, packet.dts)
                for frame in self._decoded(packet, is_start=first is None):
                    first = first or frame
                    self._check_like(first, frame)
                    frame.time_base = self.video.time_base
                    if coded is not None:
                        frame.pts = heapq.heappop(coded) if coded else None
                    yield frame
        except av.error.FFmpegError as error:
            raise UserError(damaged(self.name, error)) from error

    def _decoded(self, packet: av.Packet, is_start: bool) -> list[av.VideoFrame]:
        try:
            return self._decoder.decode(packet if packet.size else None)
        except av.error.InvalidDataError:
            if is_start:  # recordings of broadcasts start between key frames
                return []
            raise

    def _check_like(self, first: av.VideoFrame, frame: av.VideoFrame) -> None:
        """Refuses a video that becomes one of another kind."""
        kinds = [f"{f.width}x{f.height} {f.format.name}" for f in (first, frame)]
        if frame.interlaced_frame and not self._is_interlaced(first):
            kinds = ["progressive", "interlaced"]
        if kinds[0] != kinds[1]:
            raise UserError(
                f"{self.name}: changes midway from {kinds[0]} to {kinds[1]}; cut it there"
            )


class _Joins:
    """Moves packets of recordings that were joined in one file behind those before."""

    def __init__(self):
        self._offsets = [Fraction(0)]  # seconds, one for each recording
        self._end = Fraction(0)
        self._recording: dict[int, int] = collections.defaultdict(int)  # of each stream
        self._last: dict[int, Fraction] = {}

    def move(self, packet: av.Packet) -> None:
        """Changes the times of the next packet of the file."""
        if packet.dts is None or not packet.time_base:
            return
        index, time = packet.stream_index, packet.dts * packet.time_base
        if time < self._last.get(index, time) - _STEP_BACK:
            self._recording[index] += 1
            if self._recording[index] == len(self._offsets):
                self._offsets.append(self._end - time)
        self._last[index] = time
        offset = self._offsets[self._recording[index]]
        duration = (packet.duration or 0) * packet.time_base
        self._end = max(self._end, time + offset + duration)
        ticks = round(offset / packet.time_base)
        packet.dts += ticks
        if packet.pts is not None:
            packet.pts += ticks


def open_video(source: str | os.PathLike) -> av.container.InputContainer:
    """Opens a file.

    Raises:
      UserError: it is missing or no video.
    """
    try:
        return av.open(no_protocol(source), metadata_errors=METADATA_ERRORS)
    except av.error.FileNotFoundError:
        raise UserError(f"{source}: no such video") from None
    except av.error.FFmpegError as error:
        raise UserError(damaged(source, error)) from error


def count_frames(source: str | os.PathLike) -> int:
    """Reads all of a file, so that what is wrong with it comes out before it is restored.

    Raises:
      UserError: it is damaged, or holds no video that can be restored.
    """
    with open_video(source) as container:
        return sum(isinstance(item, av.VideoFrame) for item in Reader(container, source))


def damaged(source: str | os.PathLike, error: av.error.FFmpegError) -> str:
    """What to tell of an error of FFmpeg while reading."""
    return f"{source}: cannot be read as a video ({error.strerror}); copy it again or remove it"


def is_cover(stream: av.stream.Stream) -> bool:
    """Whether a video stream holds a cover picture."""
    return bool(stream.disposition & Disposition.attached_pic)
