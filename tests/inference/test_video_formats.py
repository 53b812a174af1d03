"""Kinds of videos, with an identity as network: kept, named as lost, or refused."""

import io
import itertools
import random
import re
import signal
from fractions import Fraction

import av
import numpy as np
import pytest
from av.codec.context import Flags
from av.sidedata.sidedata import Type
from PIL import ExifTags, Image

from manas_jax.errors import UserError
from manas_jax.inference import video
from manas_jax.inference.video import chroma, encoder, pixels, reader

RATE, COUNT = 25, 3
LIMITED, FULL = 1, 2
LOSSLESS = {  # with key frames alone, as predicted frames of noise are not always lossless
    "libx264": {"qp": "0", "g": "1"},
    "libx264rgb": {"qp": "0", "g": "1"},
    "libx265": {"x265-params": "lossless=1:keyint=1:log-level=error"},
    "libvpx-vp9": {"lossless": "1", "deadline": "realtime", "cpu-used": "8"},
}
HDR = {
    "x265-params": "log-level=error:hdr10=1:max-cll=1000,400:master-display="
    "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
}


@pytest.fixture(autouse=True)
def lossless(monkeypatch):
    """Encoders that can are lossless, so that what is measured is not theirs."""
    monkeypatch.setattr(encoder, "_OPTIONS", encoder._OPTIONS | LOSSLESS)


def identity(frames):
    return frames


def noise(index, pixel_format, size, color_range=0):
    """A frame in which every value of the pixel format may occur."""
    height, width = size
    planar = pixels.Samples.of(av.VideoFormat(pixel_format)).planar()
    frame, draw = av.VideoFrame(width, height, planar), np.random.default_rng(index)
    top = 2 ** pixels.Samples.of(frame.format).depth - 1
    for number in range(len(frame.planes)):
        plane = pixels.plane_samples(frame, number)
        plane[:] = draw.integers(0, top, plane.shape, endpoint=True)
    frame.color_range = color_range
    return pixels.reformatted(frame, pixel_format, color_range or LIMITED)


def film(
    path, codec, pixel_format="yuv420p", *, size=(64, 64), color_range=0, frames=None, times=None,
    options=None, flags=0, metadata=None, container=None, prepare=None,
):  # fmt: skip
    """Writes a video of noise, or of given frames; returns its path."""
    frames = frames or [noise(i, pixel_format, size, color_range) for i in range(COUNT)]
    with av.open(str(path), "w", options=container or {}) as out:
        out.metadata.update(metadata or {})
        stream = out.add_stream(codec, rate=RATE, options=options or LOSSLESS.get(codec, {}))
        stream.height, stream.width = frames[0].height, frames[0].width
        stream.pix_fmt = pixel_format
        stream.codec_context.color_range = color_range
        if flags:
            stream.codec_context.flags |= flags
            stream.codec_context.field_order = 2
        if prepare:
            prepare(out, stream)
        for index, frame in enumerate(frames):
            frame.pict_type = 0
            frame.pts = times[index] if times else index
            frame.time_base = Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def decoded(path):
    """All frames as the program reads them."""
    with reader.open_video(path) as container:
        items = list(reader.Reader(container, path))
    return [item for item in items if isinstance(item, av.VideoFrame)]


def times(path):
    """Seconds of all frames, as the program reads them."""
    return [None if f.pts is None else float(f.pts * f.time_base) for f in decoded(path)]


def samples(frame):
    """The planes of a frame."""
    frame = pixels.planar(frame)
    return [pixels.plane_samples(frame, i).astype(int) for i in range(len(frame.planes))]


def assert_same(before, after):
    assert len(after) == len(before) > 0
    for old, new in zip(before, after, strict=True):
        kinds = [pixels.Samples.of(frame.format) for frame in (old, new)]
        assert kinds[0].planar() == kinds[1].planar()
        assert pixels.range_of(old) == pixels.range_of(new)
        assert old.interlaced_frame == new.interlaced_frame
        for one, other in zip(samples(old), samples(new), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def interlaced(tmp_path_factory):
    """Frames that are marked as interlaced: nothing but a decoder marks them."""
    path = tmp_path_factory.mktemp("interlaced") / "in.mp4"
    flags = int(Flags.interlaced_dct | Flags.interlaced_me)
    return decoded(film(path, "libx264", size=(64, 96), flags=flags))


@pytest.mark.parametrize(
    ("codec", "suffix", "pixel_format"),
    [
        *[("libx264", "mp4", f) for f in ("yuv420p", "yuv422p", "yuv444p10le")],
        *[("libx264", s, "yuv420p") for s in (
            "avi", "ts", "m2ts", "mkv", "flv", "3gp", "mpg", "wmv",
        )],
        ("libx264rgb", "mkv", "rgb24"),
        *[("libx265", "mov", f) for f in ("yuv420p", "yuv422p10le", "yuv444p12le", "gbrp")],
        *[("libvpx-vp9", "webm", f) for f in ("yuv420p", "yuv444p", "yuv440p", "gbrp")],
        *[("ffv1", "mkv", f) for f in (
            "yuv420p", "yuva420p", "yuv411p", "yuv410p", "yuv440p", "yuv422p9le", "yuv420p10le",
            "yuv444p12le", "yuv444p14le", "yuv420p16le", "yuva444p16le", "gray", "gray10le",
            "gray16le", "bgr0", "bgra", "gbrp10le", "gbrp16le", "gbrap12le", "rgb48le",
        )],
        *[("rawvideo", "avi", f) for f in (
            "yuv420p", "bgr24", "yuyv422", "uyvy422", "bgra", "rgb555le", "gray", "nv12",
        )],
        *[("rawvideo", "mov", f) for f in ("rgb24", "argb", "uyvy422")],
        ("v210", "mov", "yuv422p10le"),
        *[("png", "mov", f) for f in ("rgb24", "rgba", "gray", "rgb48be", "rgba64be")],
        *[("qtrle", "mov", f) for f in ("rgb24", "argb", "rgb555be")],
        *[("utvideo", "avi", f) for f in ("yuv420p", "yuv444p", "gbrp", "gbrap")],
        *[("magicyuv", "avi", f) for f in ("yuv422p", "gray", "yuva444p")],
        *[("huffyuv", "avi", f) for f in ("yuv422p", "rgb24", "bgra")],
        *[("ffvhuff", "avi", f) for f in ("yuv420p", "gbrp10le", "gray16le")],
    ],
)  # fmt: skip
def test_an_identity_leaves_every_sample(tmp_path, codec, suffix, pixel_format, caplog):
    source = film(tmp_path / f"in.{suffix}", codec, pixel_format)
    target = tmp_path / f"out.{suffix}"
    video.derain(source, target, identity)
    assert_same(decoded(source), decoded(target))
    assert not caplog.records


@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize(
    ("codec", "suffix", "pixel_format"),
    [
        ("libx264", "mp4", "yuv420p"),
        ("libx264", "mkv", "yuv420p10le"),
        ("libx265", "mp4", "yuv420p"),
        ("libvpx-vp9", "webm", "yuv420p"),
        ("ffv1", "mkv", "yuv420p"),
        ("utvideo", "avi", "yuv420p"),
    ],
)
def test_ranges_are_kept(tmp_path, codec, suffix, pixel_format, color_range):
    source = film(tmp_path / f"in.{suffix}", codec, pixel_format, color_range=color_range)
    video.derain(source, tmp_path / f"out.{suffix}", identity)
    assert_same(decoded(source), decoded(tmp_path / f"out.{suffix}"))


@pytest.mark.parametrize(
    ("codec", "suffix", "pixel_format"),
    [
        ("libx264", "mp4", "yuv420p"),
        ("libx264", "ts", "yuv422p10le"),
        ("ffv1", "mkv", "yuv420p"),
        ("v210", "mov", "yuv422p10le"),
        ("rawvideo", "mov", "uyvy422"),
    ],
)
def test_interlaced_videos_stay_interlaced(tmp_path, codec, suffix, pixel_format, interlaced):
    frames = [pixels.reformatted(frame, pixel_format, LIMITED) for frame in interlaced]
    flags = int(Flags.interlaced_dct | Flags.interlaced_me)
    source = film(tmp_path / f"in.{suffix}", codec, pixel_format, frames=frames, flags=flags)
    shapes = []
    target = tmp_path / f"out.{suffix}"
    video.derain(source, target, lambda fields: shapes.append(fields.shape) or fields)
    assert_same(decoded(source), decoded(target))
    assert decoded(target)[0].interlaced_frame
    assert shapes == [(COUNT, 32, 96, 3)] * 2


def test_fields_are_restored_each_for_itself(interlaced):
    (before, *_) = samples(interlaced[0])
    calls = itertools.count()

    def first_field_black(fields):
        return fields * 0 if next(calls) == 0 else fields

    (after, *_) = samples(next(pixels.restored(interlaced[:1], first_field_black)))
    np.testing.assert_array_equal(after[1::2], before[1::2])
    assert after[::2].mean() < before[::2].mean() / 2 and next(calls) == 2


@pytest.mark.parametrize(
    ("codec", "suffix", "odd"),
    [("ffv1", "mkv", "yuv420p"), ("libvpx-vp9", "webm", "yuv420p"), ("rawvideo", "avi", "yuv420p")],
)
def test_odd_sizes_keep_subsampling(tmp_path, codec, suffix, odd):
    source = film(tmp_path / f"in.{suffix}", codec, odd, size=(35, 33))
    video.derain(source, tmp_path / f"out.{suffix}", identity)
    assert_same(decoded(source), decoded(tmp_path / f"out.{suffix}"))


@pytest.mark.parametrize(
    ("codec", "suffix", "pixel_format", "size"),
    [
        ("libvpx-vp9", "webm", "yuva420p", (64, 64)),
        ("prores_ks", "mov", "yuva444p10le", (64, 64)),
        ("prores_ks", "mov", "yuv422p10le", (64, 64)),
        ("dnxhd", "mov", "yuv422p10le", (120, 256)),
        ("dnxhd", "mov", "gbrp10le", (120, 256)),
        ("cfhd", "mov", "gbrap12le", (64, 64)),
        ("jpeg2000", "mov", "yuv420p10le", (64, 64)),
        ("libsvtav1", "mp4", "yuv420p10le", (64, 64)),
        ("dvvideo", "avi", "yuv420p", (576, 720)),
        ("mpeg2video", "ts", "yuv422p", (64, 64)),
        ("mpeg1video", "mpg", "yuv420p", (64, 64)),
        ("mpeg4", "mp4", "yuv420p", (35, 33)),
        ("msmpeg4", "avi", "yuv420p", (64, 64)),
        ("wmv2", "wmv", "yuv420p", (64, 64)),
        ("flv", "flv", "yuv420p", (64, 64)),
        ("libvpx", "ogv", "yuv420p", (64, 64)),
        ("svq1", "mov", "yuv410p", (64, 64)),
    ],
)
def test_lossy_codecs_keep_their_kind(tmp_path, codec, suffix, pixel_format, size, caplog):
    profile = {"yuv422p10le": "dnxhr_hqx", "gbrp10le": "dnxhr_444"}.get(pixel_format)
    options = {"profile": profile} if codec == "dnxhd" else {}
    source = film(tmp_path / f"in.{suffix}", codec, pixel_format, size=size, options=options)
    target = tmp_path / f"out.{suffix}"
    video.derain(source, target, identity)
    before, after = decoded(source), decoded(target)
    assert [f.format.name for f in after] == [f.format.name for f in before]
    assert (after[0].width, after[0].height) == size[::-1] and not caplog.records
    with av.open(str(source)) as one, av.open(str(target)) as other:
        names = {file.streams.video[0].codec.canonical_name for file in (one, other)}
    assert len(names) == 1


@pytest.mark.parametrize(
    ("pixel_format", "target", "missing"),
    [
        ("yuva420p", "out.flv", "transparency"),
        ("yuva420p", "out.ts", "frames of 64x64 yuva420p"),
        ("yuv420p12le", "out.webm", "frames of 64x64 yuv420p12le"),
        ("gbrp16le", "out.mpg", "frames of 64x64 gbrp16le"),
    ],
)
def test_what_a_container_cannot_hold_is_refused(tmp_path, pixel_format, target, missing):
    source, target, calls = film(tmp_path / "in.mkv", "ffv1", pixel_format), tmp_path / target, []
    with pytest.raises(UserError, match=f"keeps its {missing}; name an output that ends in .mkv"):
        video.derain(source, target, calls.append)
    assert not calls and not target.exists()


@pytest.mark.parametrize(
    ("pixel_format", "target", "codec"),
    [
        ("yuv420p10le", "out.ts", "h264"),
        ("yuv420p12le", "out.mov", "hevc"),
        ("bgr0", "out.mov", "h264"),
        ("yuva420p", "out.webm", "vp9"),
        ("gbrp10le", "out.mov", "hevc"),
    ],
)
def test_another_codec_keeps_every_sample_too(tmp_path, pixel_format, target, codec, caplog):
    source = film(tmp_path / "in.mkv", "ffv1", pixel_format)
    video.derain(source, tmp_path / target, identity)
    for old, new in zip(decoded(source), decoded(tmp_path / target), strict=True):
        for one, other in zip(samples(old), samples(new), strict=True):
            np.testing.assert_array_equal(one, other)
    assert f"written without its codec ffv1 (now {codec})" in caplog.text


def test_interlaced_frames_and_rotation_are_refused_where_they_would_be_lost(tmp_path, interlaced):
    flags = int(Flags.interlaced_dct | Flags.interlaced_me)
    fields = film(tmp_path / "fields.mkv", "ffv1", frames=list(interlaced), flags=flags)
    turned = film(
        tmp_path / "turned.mp4", "libx264", prepare=lambda _, s: s.set_display_rotation(90)
    )
    for source, target, what in [
        (fields, "out.webm", "interlaced frames"),
        (turned, "out.avi", "rotation"),
    ]:
        with pytest.raises(UserError, match=f"keeps its {what}"):
            video.derain(source, tmp_path / target, identity)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("suffix", ["mp4", "mov", "m4v"])
def test_hevc_is_hvc1(tmp_path, suffix):
    source = film(tmp_path / "in.mp4", "libx265")
    video.derain(source, tmp_path / f"out.{suffix}", identity)
    with av.open(str(tmp_path / f"out.{suffix}")) as file:
        assert file.streams.video[0].codec_context.codec_tag == "hvc1"


@pytest.mark.parametrize("suffix", ["mov", "mp4"])
def test_metadata_of_phones_are_kept(tmp_path, suffix, caplog):
    metadata = {
        "com.apple.quicktime.creationdate": "2024-05-01T10:11:12+0200",
        "com.apple.quicktime.location.ISO6709": "+48.1-011.5+500/",
        "com.android.version": "14",
        "creation_time": "2024-05-01T08:11:12.000000Z",
        "title": "a street",
    }
    source = film(
        tmp_path / f"in.{suffix}", "libx264", metadata=metadata,
        container={"movflags": "use_metadata_tags"},
    )  # fmt: skip
    video.derain(source, tmp_path / f"out.{suffix}", identity)
    with av.open(str(tmp_path / f"out.{suffix}")) as file:
        assert metadata.items() <= file.metadata.items()
    assert not caplog.records
    video.derain(source, tmp_path / "out.avi", identity)
    assert "metadata com.apple.quicktime.creationdate" in caplog.text


def test_frames_of_different_length_keep_it(tmp_path):
    """Also where a reader adds up the lengths of what MP4 lists, and with it the last frame's."""
    times = [0, 1, 2, 30, 31, 32, 45, 90]
    frames = [noise(i, "yuv420p", (64, 64)) for i in range(len(times))]

    def shown(path):
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            packets = [packet for packet in file.demux(stream) if packet.size]
            return (
                sorted(round(float(p.pts * p.time_base), 3) for p in packets),
                round(float(packets[-1].duration * packets[-1].time_base), 3),
                round(float(stream.duration * stream.time_base), 3),
            )

    source = film(
        tmp_path / "in.mp4", "libx264", frames=frames, times=times, options={"bf": "0", "crf": "0"}
    )
    video.derain(source, tmp_path / "out.mp4", identity)
    assert shown(tmp_path / "out.mp4") == shown(source)
    assert shown(source)[2] == pytest.approx((times[-1] + 1) / RATE, abs=0.01)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_names_of_tracks_and_chapters_stay(tmp_path, suffix, caplog):
    """FFmpeg reads the names of MP4's tracks under another key than it writes them from."""
    chapters = [
        {"id": i, "start": 100 * i, "end": 100 * i + 100, "time_base": Fraction(1, 1000),
         "metadata": {"title": f"Part {i}"}}
        for i in (0, 1)
    ]  # fmt: skip

    def prepare(out, stream):
        stream.metadata["title"] = "Front camera"
        out.set_chapters(chapters)

    source = film(tmp_path / "in.mp4", "libx264", prepare=prepare)
    video.derain(source, tmp_path / f"out.{suffix}", identity)
    with av.open(str(tmp_path / f"out.{suffix}")) as file:
        metadata = {key.lower(): text for key, text in file.streams.video[0].metadata.items()}
        assert "Front camera" in (metadata.get("name"), metadata.get("title"))
        titles = [chapter["metadata"]["title"] for chapter in file.chapters()]
        assert titles == ["Part 0", "Part 1"]
    assert "data in" not in caplog.text


def test_statistics_of_the_old_stream_are_not_kept(tmp_path):
    old = {"BPS-eng": "1000", "NUMBER_OF_FRAMES": "7", "_STATISTICS_TAGS": "BPS", "COMMENT": "wet"}
    source = film(tmp_path / "in.mkv", "ffv1", prepare=lambda _, s: s.metadata.update(old))
    video.derain(source, tmp_path / "out.mkv", identity)
    with av.open(str(source)) as one, av.open(str(tmp_path / "out.mkv")) as other:
        before, after = (file.streams.video[0].metadata for file in (one, other))
    assert old.items() <= before.items()
    assert after.keys() & old.keys() == {"COMMENT"}


@pytest.mark.parametrize("target", ["out.mkv", "out.mp4"])
def test_mastering_display_and_light_level_are_kept(tmp_path, target, caplog):
    source = film(
        tmp_path / "in.mkv", "libx265", "yuv420p10le", options=HDR,
        prepare=lambda _, s: setattr(s.codec_context, "color_trc", 16),
    )  # fmt: skip
    video.derain(source, tmp_path / target, identity)
    before, after = (pixels.side_data(decoded(path)[0]) for path in (source, tmp_path / target))
    for kind in (Type.MASTERING_DISPLAY_METADATA, Type.CONTENT_LIGHT_LEVEL):
        assert after[kind] == before[kind]
    assert decoded(tmp_path / target)[0].color_trc == 16 and not caplog.records


def test_other_codecs_get_the_mastering_display_or_it_is_named(tmp_path, caplog):
    source = film(tmp_path / "in.mkv", "libx265", "yuv420p10le", options=HDR)
    video.derain(source, tmp_path / "out.webm", identity)  # AV1
    after = pixels.side_data(decoded(tmp_path / "out.webm")[0])
    before = pixels.side_data(decoded(source)[0])
    assert after[Type.CONTENT_LIGHT_LEVEL] == before[Type.CONTENT_LIGHT_LEVEL]
    assert Type.MASTERING_DISPLAY_METADATA in after
    assert "written without its codec hevc (now av1)" in caplog.text


def _place_of_chroma(path):
    with reader.open_video(path) as container:
        return chroma.location(container.streams.video[0])


@pytest.mark.parametrize("place", ["left", "center", "topleft", "top"])
@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("libx264", "mp4"), ("libx264", "avi"), ("libx265", "mp4"), ("ffv1", "mkv")],
)
def test_the_place_of_chroma_samples_is_kept(tmp_path, codec, suffix, place, caplog):
    options = LOSSLESS.get(codec, {}) | {"chroma_sample_location": place}
    source = film(tmp_path / f"in.{suffix}", codec, options=options)
    assert _place_of_chroma(source) == place
    video.derain(source, tmp_path / f"out.{suffix}", identity)
    assert _place_of_chroma(tmp_path / f"out.{suffix}") == place
    assert caplog.text == ""


def test_the_place_of_chroma_samples_is_named_where_it_is_lost(tmp_path, caplog):
    options = {"chroma_sample_location": "topleft"}
    source = film(tmp_path / "in.mkv", "ffv1", options=options)
    video.derain(source, tmp_path / "out.avi", identity)
    assert "written without its place of chroma samples" in caplog.text


def test_repeated_times_are_a_tick_later(tmp_path):
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as out:
        stream = out.add_stream("mjpeg", rate=RATE)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        for index, time in enumerate([0, 40, 80, 80, 80, 120, 120]):
            (packet,) = stream.encode(noise(index, "yuvj420p", (64, 64), FULL))
            packet.pts = packet.dts = time
            packet.time_base = Fraction(1, 1000)
            out.mux(packet)
    for suffix in ("mkv", "mp4"):
        video.derain(source, tmp_path / f"out.{suffix}", identity)
        assert times(tmp_path / f"out.{suffix}") == pytest.approx(
            [0, 0.04, 0.08, 0.081, 0.082, 0.12, 0.121], abs=1e-4
        )
    video.derain(source, tmp_path / "out.avi", identity)
    assert len(times(tmp_path / "out.avi")) == 7


def test_joined_recordings_follow_each_other(tmp_path):
    one, joined = film(tmp_path / "one.ts", "libx264"), tmp_path / "joined.ts"
    joined.write_bytes(one.read_bytes() * 3)
    video.derain(joined, tmp_path / "out.ts", identity)
    made = np.array(times(tmp_path / "out.ts"))
    assert len(made) == 3 * COUNT
    assert np.diff(made) == pytest.approx([1 / RATE] * (3 * COUNT - 1), abs=0.09)
    assert (np.diff(made) > 0).all()
    assert_same(decoded(joined), decoded(tmp_path / "out.ts"))


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("libx264", "avi"), ("libx264", "wmv"), ("libx264", "mpg"), ("mpeg4", "avi")],
)
def test_reordered_frames_without_presentation_times(tmp_path, codec, suffix):
    frames = [noise(0, "yuv420p", (64, 64)) for _ in range(12)]
    for index, frame in enumerate(frames):
        pixels.plane_samples(frame, 0)[:, : 4 * index + 4] = 0
    options = {"bf": "2", "b_strategy": "0"}
    options |= (
        {"qp": "0", "b-pyramid": "none"} if codec == "libx264" else {"qmin": "1", "qmax": "1"}
    )
    source = film(tmp_path / f"in.{suffix}", codec, frames=frames, options=options)
    once, twice = tmp_path / f"once.{suffix}", tmp_path / f"twice.{suffix}"
    video.derain(source, once, identity)
    video.derain(once, twice, identity)
    for path in (source, once, twice):
        bars = [np.count_nonzero(samples(frame)[0].mean(axis=0) < 20) for frame in decoded(path)]
        assert len(bars) == 12 and bars == sorted(bars)
    for path in (once, twice):
        known = [time for time in times(path) if time is not None]
        assert known == sorted(set(known))


def test_missing_times_are_one_frame_later():
    from manas_jax.inference.video.writer import _Clock

    clock = _Clock(Fraction(1, 1000), Fraction(1, 25))
    given = [None, None, Fraction(1, 10), Fraction(1, 10), Fraction(0), None]
    assert [clock(time) for time in given] == [0, 40, 100, 101, 102, 142]


def test_everything_in_a_matroska_file_is_kept(tmp_path, caplog):
    words, source = tmp_path / "words.srt", tmp_path / "in.mkv"
    cues = [("00:00:00,120", "It rains."), ("00:00:00,050", "Still.")]  # both begin at one time
    words.write_text(
        "\n".join(f"{n}\n00:00:00,020 --> {end}\n{text}\n" for n, (end, text) in enumerate(cues))
    )
    cover = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(cover, "JPEG")
    with av.open(str(words)) as subtitles, av.open(str(source), "w") as out:
        stream = out.add_stream("ffv1", rate=RATE)
        stream.width = stream.height = 64
        tones = [out.add_stream(name, rate=48000) for name in ("pcm_s16le", "pcm_s24le")]
        for tone, language in zip(tones, ("deu", "eng"), strict=True):
            tone.metadata["language"], tone.layout = language, "mono"
        copy = out.add_stream_from_template(subtitles.streams[0])
        out.add_attachment("rain.ttf", "font/ttf", b"a font" * 20)
        out.add_attachment("cover.jpg", "image/jpeg", cover.getvalue())
        out.set_chapters(
            [{"id": 1, "start": 0, "end": 100, "time_base": Fraction(1, 1000),
              "metadata": {"title": "Rain"}}]
        )  # fmt: skip
        for index in range(COUNT):
            out.mux(stream.encode(noise(index, "yuv420p", (64, 64))))
        out.mux(stream.encode(None))
        for tone, (kind, dtype) in zip(
            tones, {"s16": np.int16, "s32": np.int32}.items(), strict=True
        ):
            frame = av.AudioFrame.from_ndarray(np.ones((1, 9600), dtype), kind, "mono")
            frame.sample_rate, frame.pts = 48000, 0
            out.mux([*tone.encode(frame), *tone.encode(None)])
        for packet in subtitles.demux():
            if packet.size:
                packet.stream = copy
                out.mux(packet)

    def contents(path):
        with av.open(str(path)) as file:
            streams = sorted(
                (s.type, s.codec_context.name if s.codec_context else "", s.language or "")
                for s in file.streams
            )
            attachments = [(s.name, s.data) for s in file.streams if s.type == "attachment"]
            chapters = [(c["start"], c["end"], c["metadata"]) for c in file.chapters()]
            packets = sorted(
                (p.stream.type, bytes(p), p.pts or 0)
                for p in file.demux()
                if p.size and p.stream.index
            )
        return streams, attachments, chapters, packets

    video.derain(source, tmp_path / "out.mkv", identity)
    assert contents(tmp_path / "out.mkv") == contents(source)
    assert len(contents(source)[0]) == 6 and not caplog.records
    video.derain(source, tmp_path / "out.mp4", identity)
    assert "written without its subtitles in " in caplog.text
    assert "attachment rain.ttf" in caplog.text


def test_dropped_streams_are_named(tmp_path, caplog):
    def add_data(out, _):
        out.add_data_stream("klv")

    source = film(tmp_path / "in.ts", "libx264", prepare=add_data)
    video.derain(source, tmp_path / "out.mp4", identity)
    assert f"{source}: written without its data in klv" in caplog.text


def film_of_images(path, codec, pixel_format, images, **options):
    """Writes a video whose packets are images that Pillow encodes."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=RATE)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = pixel_format
        for index, image in enumerate(images):
            content = io.BytesIO()
            image.save(content, {"mjpeg": "JPEG", "png": "PNG"}[codec], **options)
            packet = av.Packet(content.getvalue())
            packet.pts = packet.dts = index
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, RATE), stream, True
            out.mux(packet)
    return path


@pytest.mark.parametrize(("suffix", "orientation"), [("avi", 1), ("mov", 6), ("mkv", 3)])
def test_motion_jpeg_with_exif(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = orientation, "someone"
    images = [Image.linear_gradient("L").resize((64, 48)).convert("RGB")] * 3
    source = tmp_path / f"in.{suffix}"
    film_of_images(source, "mjpeg", "yuvj420p", images, exif=exif, quality=95)
    shapes = []
    target = tmp_path / f"out.{suffix}"
    video.derain(source, target, lambda frames: shapes.append(frames.shape) or frames)
    assert shapes == [(3, 64, 48, 3) if orientation == 6 else (3, 48, 64, 3)]
    before, after = decoded(source), decoded(target)
    assert pixels.orientation(after[0]) == pixels.orientation(before[0])
    for old, new in zip(samples(before[0]), samples(after[0]), strict=True):
        assert np.abs(old - new).mean() < 1


def test_palettes_become_rgb_unless_they_have_transparency(tmp_path):
    image = Image.linear_gradient("L").resize((64, 64)).convert("P")
    image.putpalette(bytes(range(256)) * 3)
    solid = film_of_images(tmp_path / "solid.mov", "png", "rgb24", [image] * 2)
    clear = film_of_images(tmp_path / "clear.mov", "png", "rgb24", [image] * 2, transparency=10)
    video.derain(solid, tmp_path / "out.mov", identity)
    assert decoded(solid)[0].format.name == "pal8"
    assert_same(decoded(solid), decoded(tmp_path / "out.mov"))
    with pytest.raises(UserError, match="palette with transparency"):
        video.derain(clear, tmp_path / "other.mov", identity)


def test_side_data_that_no_encoder_writes_are_named(tmp_path, monkeypatch):
    source = film(tmp_path / "in.mkv", "ffv1")
    with reader.open_video(source) as container:
        film_read = reader.Reader(container, source)
        monkeypatch.setattr(
            pixels, "side_data",
            lambda frame: {Type.SPHERICAL: b""} if frame is film_read.first else {},
        )  # fmt: skip
        found = encoder.choose(film_read, tmp_path / "out.mkv")
    assert found.losses == ("spherical projection",)


def test_a_change_midway_is_refused_before_anything_is_restored(tmp_path, interlaced):
    flags = int(Flags.interlaced_dct | Flags.interlaced_me)
    parts = {
        "small": film(tmp_path / "small.ts", "mpeg2video", size=(64, 96)),
        "large": film(tmp_path / "large.ts", "mpeg2video", size=(80, 96)),
        "fields": film(tmp_path / "f.ts", "mpeg2video", frames=list(interlaced), flags=flags),
    }
    calls = []
    for names, change in [
        (("small", "large"), "96x64 yuv420p to 96x80"),
        (("small", "fields"), "progressive to interlaced"),
    ]:
        joined = tmp_path / "joined.ts"
        joined.write_bytes(b"".join(parts[name].read_bytes() for name in names))
        with pytest.raises(UserError, match=f"changes midway from {change}"):
            video.derain(joined, tmp_path / "out.ts", calls.append)
    assert not calls and not (tmp_path / "out.ts").exists()


def test_damage_comes_out_before_anything_is_restored(tmp_path):
    images, calls = [Image.linear_gradient("L").resize((64, 64))] * 9, []
    source = film_of_images(tmp_path / "in.mov", "png", "gray", images)
    content = source.read_bytes()
    fifth = [match.start() for match in re.finditer(b"PNG", content)][4]
    source.write_bytes(content[:fifth] + bytes(3) + content[fifth + 3 :])
    with pytest.raises(UserError, match="cannot be read as a video"):
        video.derain(source, tmp_path / "out.mov", calls.append)
    assert not calls


def test_a_recording_that_starts_between_key_frames(tmp_path):
    options = {"g": "4", "bf": "0", "qp": "0"}
    frames = [noise(index, "yuv420p", (64, 64)) for index in range(8)]
    whole = film(tmp_path / "whole.ts", "libx264", frames=frames, options=options)
    content = whole.read_bytes()
    packets = [content[i : i + 188] for i in range(0, len(content), 188)]
    starts = [i for i, p in enumerate(packets) if p[1] & 0x40 and (p[1] & 0x1F) << 8 | p[2] == 256]
    part = tmp_path / "part.ts"
    part.write_bytes(b"".join(packets[: starts[0]] + packets[starts[1] :]))
    video.derain(part, tmp_path / "out.ts", identity)
    assert_same(decoded(part), decoded(tmp_path / "out.ts"))
    assert 4 <= len(decoded(part)) < 8


def mutated(content, draw):
    """Content with bytes changed, cut out, or missing at the end."""
    content = bytearray(content)
    kind, start = draw.randrange(4), draw.randrange(len(content))
    if kind == 0:
        del content[start:]
    elif kind == 1:
        del content[start : start + draw.randrange(1, 200)]
    else:
        first = len(content) if kind == 2 else min(len(content), 1500)  # headers come first
        for _ in range(draw.choice([1, 3, 20])):
            content[draw.randrange(first)] = draw.randrange(256)
    return bytes(content)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 16))]
)
def test_damaged_videos_are_restored_or_refused(tmp_path, seed):
    kinds = [
        ("libx264", "mp4", "yuv420p"), ("libx265", "mkv", "yuv420p10le"), ("ffv1", "mkv", "bgra"),
        ("mpeg2video", "ts", "yuv420p"), ("mjpeg", "mov", "yuvj420p"), ("mpeg4", "avi", "yuv420p"),
        ("libvpx-vp9", "webm", "yuva420p"), ("wmv2", "wmv", "yuv420p"), ("flv", "flv", "yuv420p"),
        ("libx264", "mpg", "yuv420p"),
    ]  # fmt: skip
    draw = random.Random(seed)

    def hangs(*_):
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, hangs)
    try:
        for (codec, suffix, pixel_format), _ in itertools.product(kinds, range(2)):
            good = film(tmp_path / f"good.{suffix}", codec, pixel_format)
            source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
            source.write_bytes(mutated(good.read_bytes(), draw))
            signal.alarm(30)
            try:
                video.derain(source, target, identity)
            except UserError as error:
                assert "\n" not in str(error) and str(source) in str(error)
                assert not target.exists()
            else:
                assert len(decoded(target)) > 0
                target.unlink()
            assert not list(tmp_path.glob(".*"))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
