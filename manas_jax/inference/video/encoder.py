"""Chooses how a video is encoded, by trying it out.

Encoders of the input's codec come first, then others. Each encodes the first frame a few times in
memory, and what is read back tells what the encoder and the container do not keep.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import av
from av.codec.context import Flags
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorRange, Colorspace

from manas_jax.errors import UserError
from manas_jax.inference.video import chroma, hdr, pixels
from manas_jax.inference.video.pixels import Samples
from manas_jax.inference.video.reader import Reader

COLOUR_TAGS = ("color_range", "colorspace", "color_primaries", "color_trc")

_CONTAINERS = {".m4v": "mp4"}  # FFmpeg's own choice holds no HEVC
_FALLBACKS = ("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "ffv1")
_ENCODERS = {"h264": ("libx264", "libx264rgb"), "prores": ("prores_ks",)}  # else FFmpeg's choice
_FORMATS_TRIED = 3  # of each codec
_FRAMES_TRIED = 4  # enough for frames to be reordered

_CRF = "18"  # visually close to the input
# Else its bits differ from run to run: the fastest code for macroblock trees is not exact.
_X264 = {"crf": _CRF, "x264-params": "cpu-independent=1"}
_OPTIONS = {
    "libx264": _X264,
    "libx264rgb": _X264,
    "libx265": {"crf": _CRF, "x265-params": "log-level=error"},
    "libvpx": {"crf": _CRF, "b": "100M", "deadline": "good", "cpu-used": "4", "auto-alt-ref": "0"},
    "libvpx-vp9": {"crf": _CRF, "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
    "libsvtav1": {"crf": _CRF, "preset": "8"},
    "dnxhd": {},  # of a fixed rate
}
_OTHER_OPTIONS = {"qmin": "1", "qmax": "3"}  # the finest quantisers of the MPEG family
# Profiles that take any size and rate of frames.
_DNXHD_PROFILES = {"yuv422p": "dnxhr_hq", "yuv422p10le": "dnxhr_hqx"}
_PRORES_PROFILES = {
    "apco": "proxy", "apcs": "lt", "apcn": "standard", "apch": "hq", "ap4h": "4444",
    "ap4x": "4444xq",
}  # fmt: skip
# Codecs and containers whose times count frames of a fixed rate.
_FIXED_RATE = frozenset({"mpeg1video", "mpeg2video", "mpeg4", "avi"})
# Containers without presentation times, or with few.
_NOT_REORDERED = frozenset({"avi", "asf", "mpeg"})
_NO_TAG = (0, 2)  # of RGB, and unspecified
# Metadata of a stream that are no longer true once it is encoded again, with any language behind.
_STATISTICS = ("BPS", "DURATION", "ENCODER", "NUMBER_OF_", "_STATISTICS_")
_SIDE_DATA = {
    SideData.MASTERING_DISPLAY_METADATA: "mastering display",
    SideData.CONTENT_LIGHT_LEVEL: "content light level",
    SideData.DYNAMIC_HDR_PLUS: "HDR10+ metadata",
    SideData.DYNAMIC_HDR_VIVID: "HDR Vivid metadata",
    SideData.DOVI_METADATA: "Dolby Vision metadata",
    SideData.AMBIENT_VIEWING_ENVIRONMENT: "ambient viewing environment",
    SideData.SPHERICAL: "spherical projection",
    SideData.STEREO3D: "stereo 3D layout",
    SideData.ICC_PROFILE: "ICC profile",
    SideData.A53_CC: "closed captions",
    SideData.S12M_TIMECODE: "timecode",
    SideData.GOP_TIMECODE: "timecode",
}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How a video is encoded.

    Attributes:
      encoder: FFmpeg's name of it.
      pixel_format: of the frames that it is given.
      container: FFmpeg's name of the output's format.
      tick: seconds; times of frames are multiples of it.
      losses: what the output does not keep, in words.
    """

    encoder: str
    pixel_format: str
    container: str
    tick: Fraction
    losses: tuple[str, ...] = ()

    def add_stream(
        self, writer: av.container.OutputContainer, reader: Reader
    ) -> av.video.stream.VideoStream:
        """Adds the video stream to an output.

        Raises:
          ValueError: the container does not take the codec.
        """
        codec, source, first = av.Codec(self.encoder, "w"), reader.video.codec_context, reader.first
        rate = min(codec.frame_rates or [reader.rate], key=lambda rate: abs(rate - reader.rate))
        stream = writer.add_stream(self.encoder, rate=rate, options=self._options(reader))
        context = stream.codec_context
        stream.width, stream.height = first.width, first.height
        stream.pix_fmt = self.pixel_format
        context.time_base = stream.time_base = self.tick
        if source.sample_aspect_ratio:
            context.sample_aspect_ratio = source.sample_aspect_ratio
        for tag, value in self._tags(first).items():
            setattr(context, tag, value)
        if reader.is_interlaced:
            context.flags |= int(Flags.interlaced_dct | Flags.interlaced_me)
            context.field_order = source.field_order
        # Reordered frames end earlier in decoding order: the lengths of MP4 would be too short.
        if self.container in _NOT_REORDERED or reader.is_variable:
            context.max_b_frames = 0
        context.flags |= int(Flags.frame_duration)
        if codec.canonical_name == "hevc" and self.container in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # Apple's players know no other
        for key, value in titled(reader.video.metadata).items():
            if not key.upper().startswith(_STATISTICS):
                stream.metadata[key] = value
        stream.disposition = reader.video.disposition
        stream.set_display_matrix(pixels.display_matrix(first))
        return stream

    @contextlib.contextmanager
    def context(self, reader: Reader) -> Iterator[av.VideoCodecContext]:
        """An encoder like that of `add_stream`, for a segment."""
        with av.open(io.BytesIO(), "w", format=self.container) as unwritten:
            yield self.add_stream(unwritten, reader).codec_context

    def keeps_packets(self) -> bool:
        """Whether the bytes of a packet are all of it, other than in WebM with transparency."""
        has_alpha = Samples.of(av.VideoFormat(self.pixel_format)).alpha
        return not (has_alpha and self.encoder.startswith("libvpx"))

    def frame(self, planar: av.VideoFrame, time: int, duration: int) -> av.VideoFrame:
        """A restored frame as the encoder takes it; `time` and `duration` are in ticks."""
        tags = self._tags(planar)
        color_range = tags["color_range"] or ColorRange.MPEG
        frame = pixels.reformatted(planar, self.pixel_format, color_range)
        for tag, value in tags.items():
            setattr(frame, tag, value)
        frame.pict_type = 0  # the encoder is free
        frame.pts, frame.duration, frame.time_base = time, duration, self.tick
        return frame

    def _tags(self, frame: av.VideoFrame) -> dict[str, int]:
        """The colour tags of the output."""
        tags = {tag: getattr(frame, tag) for tag in COLOUR_TAGS}
        if frame.format.is_rgb and not av.VideoFormat(self.pixel_format).is_rgb:
            tags |= {"colorspace": Colorspace.ITU709, "color_range": ColorRange.MPEG}
        elif pixels.range_of(frame) == ColorRange.JPEG:
            tags["color_range"] = ColorRange.JPEG
        return tags

    def _options(self, reader: Reader) -> dict[str, str]:
        """Of the encoder."""
        options = dict(_OPTIONS.get(self.encoder, _OTHER_OPTIONS))
        for key, value in hdr.parameters(reader.first, self.encoder).items():
            options[key] = ":".join(filter(None, [options.get(key), value]))
        if self.encoder == "dnxhd":
            options["profile"] = _DNXHD_PROFILES.get(self.pixel_format, "dnxhr_444")
        if self.encoder == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # it prints its settings otherwise
        profile = _PRORES_PROFILES.get(reader.video.codec_context.codec_tag)
        if self.encoder == "prores_ks" and profile:
            options["profile"] = profile
        if place := chroma.location(reader.video):
            options["chroma_sample_location"] = place
        return options


def choose(reader: Reader, target: str | os.PathLike) -> Encoding:
    """The first way to encode the video that loses nothing essential.

    Raises:
      UserError: the suffix of `target` names no container, or one for which there is no such way.
    """
    container, suffix = container_of(target), pathlib.Path(target).suffix
    source_codec = reader.video.codec.canonical_name
    missing: list[str] = []
    for encoder, pixel_format in _candidates(reader):
        codec = av.Codec(encoder, "w").canonical_name
        tick = reader.video.time_base
        if not tick or _FIXED_RATE & {codec, container}:
            tick = 1 / reader.rate
        encoding = Encoding(encoder, pixel_format, container, tick)
        try:
            frames, container_tick, place = _tried(encoding, reader)
        except (av.error.FFmpegError, ValueError, UserError):  # not of this size or container
            continue
        lost = _essential_losses(reader, frames)
        if not lost:
            losses = _other_losses(reader, frames[0], place)
            if codec != source_codec:
                losses.append(f"codec {source_codec} (now {codec})")
            tick = max(tick, container_tick)
            return dataclasses.replace(encoding, tick=tick, losses=tuple(losses))
        missing = missing or lost
    what = " and ".join(missing) or f"frames of {reader.size} {reader.first.format.name}"
    what_to_do = "convert it first" if suffix == ".mkv" else "name an output that ends in .mkv"
    raise UserError(f"{reader.name}: no encoder for {suffix} keeps its {what}; {what_to_do}")


def container_of(target: str | os.PathLike) -> str:
    """FFmpeg's name of the format that the suffix stands for.

    Raises:
      UserError: it stands for none.
    """
    suffix = pathlib.Path(target).suffix.lower()
    try:
        return _CONTAINERS.get(suffix) or av.open(f"x{suffix}", "w").format.name
    except ValueError:
        raise UserError(
            f"{target}: no video container has this suffix; use .mp4, .mkv or .webm"
        ) from None


def _candidates(reader: Reader) -> Iterator[tuple[str, str]]:
    """Encoders and pixel formats that can hold the samples, in the order of preference."""
    source = reader.first.format
    wanted = dataclasses.replace(Samples.of(source), depth=reader.depth)
    raw = [source, *map(av.VideoFormat, ("rgb24", "bgr24"))]  # where an encoder takes all
    found = []
    names = dict.fromkeys((reader.video.codec.canonical_name, *_FALLBACKS))
    for order, name in enumerate(names):
        ranked = []
        for encoder in _ENCODERS.get(name, (name,)):
            with contextlib.suppress(ValueError):  # no such encoder in this build
                codec = av.Codec(encoder, "w")
                for format in codec.video_formats or raw:
                    ranked.append((_distance(source, wanted, format), codec.name, format.name))
        usable = sorted(entry for entry in ranked if entry[0] is not None)
        found += [(distance[0], order, *rest) for distance, *rest in usable[:_FORMATS_TRIED]]
    # RGB becomes YUV, which rounds it, where no codec takes RGB.
    for *_, encoder, format in sorted(found, key=lambda entry: entry[:2]):
        yield encoder, format


def _distance(source: av.VideoFormat, wanted: Samples, format: av.VideoFormat) -> tuple | None:
    """How far a pixel format is from the source's; None if it cannot hold the wanted samples."""
    try:
        samples = Samples.of(format)
    except ValueError:
        return None
    kinds = {"rgb": ("rgb", "yuv"), "yuv": ("yuv",), "gray": ("gray", "yuv", "rgb")}
    if (
        samples.kind not in kinds[wanted.kind]
        or samples.alpha < wanted.alpha
        or samples.depth < max(wanted.depth, 8)  # FFmpeg dithers to fewer
        or (wanted.kind != "gray" and any(map(int.__gt__, samples.chroma, wanted.chroma)))
        or format.has_palette
        or (format.name.startswith("yuvj") and format.name != source.name)
    ):
        return None
    chroma = tuple(-n for n in samples.chroma)
    is_plain = format.name in (wanted.planar(), source.name)
    converts = wanted.kind == "rgb" and samples.kind != "rgb"
    same_kind = samples.kind == wanted.kind
    return converts, not same_kind, samples.depth, samples.alpha, chroma, not is_plain


def _tried(encoding: Encoding, reader: Reader) -> tuple[list[av.VideoFrame], Fraction, str | None]:
    """Encodes the first frame a few times.

    Returns:
      The frames that are read back, the container's tick, and the place of chroma samples.

    Raises:
      FFmpegError, ValueError, UserError: it cannot be encoded or read.
    """
    file, first = io.BytesIO(), reader.first
    own = first.pts, first.duration, first.time_base
    duration = max(1, round(1 / reader.rate / encoding.tick))
    try:
        with av.open(file, "w", format=encoding.container) as writer:
            stream = encoding.add_stream(writer, reader)
            planar = pixels.planar(first)
            for index in range(_FRAMES_TRIED):
                writer.mux(stream.encode(encoding.frame(planar, index * duration, duration)))
            writer.mux(stream.encode(None))
            tick = stream.time_base
    finally:  # where the frame is planar already, it was that frame
        first.pts, first.duration, first.time_base = own
    file.seek(0)
    with av.open(file) as container:
        again = Reader(container, "the output")
        frames = [item for item in again if isinstance(item, av.VideoFrame)]
        return frames, tick, chroma.location(again.video)


def _essential_losses(reader: Reader, after: Sequence[av.VideoFrame]) -> list[str]:
    """What an output has to keep and does not, in words."""
    before, first = reader.first, after[0]
    wanted, samples = Samples.of(before.format), Samples.of(first.format)
    ranges, turns = (
        {function(frame) for frame in (before, first)}
        for function in (pixels.range_of, pixels.orientation)
    )
    times = [frame.pts for frame in after if frame.pts is not None]
    kept = {
        "frame size": (first.width, first.height) == (before.width, before.height),
        "transparency": samples.alpha >= wanted.alpha,
        f"{reader.depth} bits": samples.depth >= reader.depth,
        "full range of values": wanted.kind == "rgb" or len(ranges) == 1,
        "interlaced frames": first.interlaced_frame >= before.interlaced_frame,
        "rotation": len(turns) == 1,
        "times of frames": len(after) == _FRAMES_TRIED and times == sorted(set(times)),
    }
    return [what for what, is_kept in kept.items() if not is_kept]


def _other_losses(reader: Reader, after: av.VideoFrame, place: str | None) -> list[str]:
    """What else an output with such frames and chroma samples does not keep, in words."""
    before = reader.first
    types = pixels.side_data(before).keys() - pixels.side_data(after).keys()
    lost = {word for type, word in _SIDE_DATA.items() if type in types}
    tags = ((getattr(before, tag), getattr(after, tag)) for tag in COLOUR_TAGS[1:])
    if any(old not in _NO_TAG and old != new for old, new in tags):
        lost.add("colour tags")
    if chroma.location(reader.video) not in (None, place):
        lost.add("place of chroma samples")
    return sorted(lost)


def titled(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata of a stream whose name is found by any muxer.

    FFmpeg reads the name of a track in MP4 as 'name', and writes it from 'title'.
    """
    others = {key: value for key, value in metadata.items() if key != "name"}
    return {"title": metadata["name"], **others} if "name" in metadata else others
