"""The command on folders, files and streams, good and hostile ones."""

import collections
import functools
import io
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction

import av
import jax
import numpy as np
import pytest
import tifffile
from media import encoded, look, noise, noise_image
from PIL import ExifTags, Image, PngImagePlugin

from manas_jax import buckets, derain
from manas_jax.errors import UserError
from manas_jax.inference import image_files, jobs, processing
from manas_jax.inference.derainer import Derainer
from manas_jax.runtime import signals

open_once = functools.cache(Derainer.from_pretrained)

INTERRUPTIBLE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from manas_jax.derain import main; sys.exit(main())"
)
"""Runs the command; shells may have set background processes to ignore SIGINT."""


@pytest.fixture(scope="module")
def network(weights):
    return open_once(str(weights), tile=None)


@pytest.fixture
def opened_once(monkeypatch):
    """Shares networks between the commands in this process."""
    monkeypatch.setattr(
        derain.Derainer, "from_pretrained", lambda name, *, tile, **_: open_once(name, tile=tile)
    )


@pytest.fixture
def command(weights, capsys, opened_once):
    """Runs the command in this process; returns its exit status and lines on stderr."""

    def run(*arguments):
        status = derain.main([*map(str, arguments), "--weights", str(weights)])
        return status, capsys.readouterr().err.splitlines()

    return run


class Identity:
    """In place of a derainer."""

    tile, engine, platform, source = 512, "onnx", "cpu", __file__

    def __call__(self, pixels, **_):
        return pixels


@pytest.fixture
def identity(capsys, monkeypatch):
    """Runs the command in this process without a network; returns its status and lines."""
    monkeypatch.setattr(derain.Derainer, "from_pretrained", lambda *_, **__: Identity())

    def run(*arguments):
        status = derain.main([*map(str, arguments)])
        return status, capsys.readouterr().err.splitlines()

    return run


def of_random_size(mode, draw):
    return noise_image(mode, *draw.integers(1, 40, 2), seed=draw)


def still(format, mode, **options):
    return lambda draw: encoded(of_random_size(mode, draw), format, **options)


def turned(format, **options):
    """A file with EXIF orientation and an ICC profile."""

    def make(draw):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = int(draw.integers(1, 9))
        exif[ExifTags.Base.Artist] = "someone"
        image = of_random_size("RGB", draw)
        return encoded(image, format, exif=exif, icc_profile=b"icc" * 50, **options)

    return make


def moving(format, **options):
    def make(draw):
        first, *rest = (Image.fromarray(noise(9, 13, 3, seed=draw)) for _ in range(3))
        return encoded(
            first, format, save_all=True, append_images=rest, duration=[40, 70, 100], **options
        )

    return make


def deep_tiff(draw):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, noise(11, 17, 3, dtype=np.uint16, seed=draw), photometric="rgb")
    return buffer.getvalue()


def with_text(draw):
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a street")
    return encoded(of_random_size("RGB", draw), "PNG", pnginfo=text, dpi=(300, 200))


GOOD = [
    *[("png", still("PNG", mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[("tif", still("TIFF", mode)) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16")],
    *[("jpg", still("JPEG", mode)) for mode in ("L", "RGB", "CMYK")],
    *[("webp", still("WEBP", mode, lossless=True)) for mode in ("RGB", "RGBA")],
    *[("bmp", still("BMP", mode)) for mode in ("1", "P", "RGB")],
    ("JPEG", still("JPEG", "RGB", progressive=True, comment=b"dry")),
    ("jpeg", turned("JPEG")),
    ("png", turned("PNG")),
    ("tiff", turned("TIFF", compression="tiff_lzw")),
    ("webp", turned("WEBP")),
    ("tiff", deep_tiff),
    ("tiff", moving("TIFF")),
    ("gif", moving("GIF", loop=0)),
    ("apng", moving("PNG", loop=2)),
    ("webp", moving("WEBP", loop=3)),
    ("png", with_text),
    ("gif", still("GIF", "P")),
    ("ppm", still("PPM", "RGB")),
    ("pgm", still("PPM", "L")),
    ("jpg", still("PNG", "RGB")),  # endings that are not the format's
    ("png", still("JPEG", "RGB")),
    ("webp", still("GIF", "P")),
]
FOLDERS = ["", "a folder", "größe/雨 rain", "looks like.png"]
NAMES = ["{}", "two  spaces {}", "Größe-雨-{}", "-o {}", "new\nline {}", "%d {}", "{}" + "x" * 247]


def claiming(format, width, height):
    """A small valid file, but for a header that claims that many pixels."""
    content = encoded(Image.new("RGB", (8, 8)), format)
    old, order = ((8, 8), {"PNG": ">II", "JPEG": ">HH", "GIF": "<HH", "BMP": "<ii"}[format])
    content = content.replace(struct.pack(order, *old), struct.pack(order, width, height), 1)
    if format == "GIF":  # so does its frame
        content = content.replace(struct.pack(order, *old), struct.pack(order, width, height))
    if format == "PNG":
        content = content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:]
    return content


def bad_files(draw):
    """(name, content, part of the error message) of files that cannot be de-rained."""
    for suffix in ("png", "jpg", "tiff", "mp4"):
        yield f"empty.{suffix}", b"", "empty" if suffix != "mp4" else "cannot be read"
    for format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"):
        whole = encoded(Image.fromarray(noise(40, 40, 3, seed=draw)), format)
        suffix = "tif" if format == "TIFF" else format.lower()
        yield f"half ä.{suffix}", whole[: len(whole) // 2], ""
        known = format in ("JPEG", "PPM")  # by fewer bytes than these
        reason = "cannot be read as an image" if known else "no image"
        yield f"head.{suffix}", whole[:7], reason
    for format in ("PNG", "JPEG", "GIF", "BMP"):
        content = claiming(format, 30_000, 30_000)
        yield f"huge.{format.lower()}", content, "30000x30000, more than"
        content = claiming(format, 32_000, 32_000)
        yield f"beyond.{format.lower()}", content, "32000x32000, more than"
    yield "text\nin lines.png", b"not an image, " * 19, "no image"
    yield "archive.webp", b"PK\3\4" + noise(99, seed=draw).tobytes(), "no image"
    yield "text.mp4", b"not a video, " * 19, "cannot be read as a video"
    yield "noise.mkv", noise(999, seed=draw).tobytes(), "cannot be read as a video"
    yield "floats.tiff", encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating"
    yield "wide.tiff", encoded(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"), "16 bits"
    yield "wide.ppm", b"P6 2 2 65535\n" + bytes(24), "PPM of 16 bits"


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A folder of about 200 files: good ones, bad ones with the error message, and others."""
    root = tmp_path / "in put"
    draw = np.random.default_rng(7)
    good, bad = [], {}
    for i in range(130):
        suffix, make = GOOD[i % len(GOOD)]
        path = root / FOLDERS[i % len(FOLDERS)] / f"{NAMES[i % len(NAMES)].format(i)}.{suffix}"
        path = path.with_stem(path.stem[: 255 - len(path.suffix)])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make(draw))
        good.append(path)
    for folder in ("", "größe"):
        for name, content, reason in bad_files(draw):
            path = root / folder / name
            path.write_bytes(content)
            bad[path] = reason
    (root / "link.png").symlink_to(root / "0.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "seen.png").write_bytes(still("PNG", "RGB")(draw))
    (root / "link out.png").symlink_to(tmp_path / "elsewhere" / "seen.png")
    good += [root / "link.png", root / "link out.png"]
    (root / "dangling.png").symlink_to("nowhere.png")
    (root / "itself.png").symlink_to("itself.png")
    (root / "to.gif").symlink_to("fro.gif")
    (root / "fro.gif").symlink_to("to.gif")
    (root / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.jpg")
    os.mkfifo(root / "pipe.mp4")
    monkeypatch.chdir(root)  # names of sockets must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
    special = ("dangling.png", "itself.png", "to.gif", "fro.gif", "endless.png", "pipe.jpg")
    bad |= {root / name: "no file" for name in (*special, "pipe.mp4", "socket.png")}
    (root / "up").symlink_to("..")
    (root / "around.png").symlink_to(".")
    (root / ".thumbnails").mkdir()
    shutil.copy(next(iter(good)), root / ".thumbnails")
    others = [root / name for name in ("notes.txt", ".hidden.png", "Makefile", "film.mp4.part")]
    for path in others:
        path.write_bytes(b"left alone")
    return root, good, bad, others


def state(root):
    """Mode, time of change and content of everything below a folder."""

    def of(path):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else None
        content = path.read_bytes() if content is None and path.is_file() else content
        return status.st_mode, status.st_mtime_ns, content

    return {path: of(path) for path in [root, *root.rglob("*")]}


def assert_derained(source, target, network):
    """Checks that `target` is `source` with the pixels of the derainer."""
    before = image_files.read(source)
    restored = [network(frame) for frame in before.frames]
    expected = io.BytesIO()
    image_files.write(before, restored, expected)
    assert target.read_bytes() == expected.getvalue()
    with Image.open(source) as a, Image.open(target) as b:
        assert (b.format, b.size, b.mode) == (a.format, a.size, a.mode)
        assert getattr(b, "n_frames", 1) == getattr(a, "n_frames", 1)
        for tag in (ExifTags.Base.Orientation, ExifTags.Base.Artist):
            assert b.getexif().get(tag) == a.getexif().get(tag)
        for key in ("icc_profile", "comment", "dpi", "loop", "Title", "duration", "compression"):
            assert b.info.get(key) == a.info.get(key)
        if a.mode == "RGBA":
            np.testing.assert_array_equal(b.getchannel("A"), a.getchannel("A"))
        exact = a.format in ("PNG", "TIFF", "BMP", "PPM") and a.mode in ("RGB", "RGBA")
        if exact and before.frames[0].dtype == np.uint8 and not a.getexif():
            colours = network(np.array(a.convert("RGB")))
            np.testing.assert_array_equal(np.asarray(b.convert("RGB")), colours)
            assert colours.size < 50 or (colours != np.asarray(a.convert("RGB"))).any()
    after = image_files.read(target).frames
    assert [(x.shape, x.dtype) for x in after] == [(x.shape, x.dtype) for x in before.frames]


def test_folder_of_good_and_hostile_files(hostile, tmp_path, weights, network, command):
    root, good, bad, others = hostile
    out = tmp_path / "new" / "out"
    before = state(root)
    assert len(before) > 200
    arguments = [root, "-o", out, "--weights", weights]
    finished = subprocess.run(
        [sys.executable, "-m", "manas_jax.derain", *map(str, arguments)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (finished.returncode, finished.stdout) == (1, "")
    *lines, summary = finished.stderr.splitlines()
    assert summary == (
        f"{len(good)} of {len(good) + len(bad)} de-rained; {len(bad)} failed, see above; "
        f"{len(others) + 2} of other kinds ignored (.part, .txt, hidden, linked folders, no suffix)"
    )
    found_lines = collections.Counter()
    for path, reason in bad.items():
        name = str(path).replace("\n", "\\n")
        found = [line for line in lines if line.startswith(f"{name}: ") and reason in line]
        assert len(found) == 1, f"{path}: {found}"
        found_lines.update(found)
    assert found_lines == collections.Counter(lines)
    assert state(root) == before
    outputs = state(out)
    assert {path for path in outputs if path.is_file()} == {out / p.relative_to(root) for p in good}
    for source in good:
        assert_derained(source, out / source.relative_to(root), network)

    status, again = command(root, "-o", out)
    assert (status, again[:-1]) == (1, lines)
    assert again[-1].startswith(f"0 of {len(good) + len(bad)} de-rained; {len(bad)} failed")
    assert f"{len(good)} existing skipped (--overwrite replaces them)" in again[-1]
    assert state(out) == outputs


@pytest.fixture
def street(tmp_path):
    """A folder of three small pictures, one of them in a subfolder."""
    root = tmp_path / "street"
    (root / "below").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("a.png", "b.png", "below/c.png"):
        (root / name).write_bytes(still("PNG", "RGB")(draw))
    return root


def names(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def test_existing_outputs_are_skipped_unless_overwritten(street, tmp_path, command):
    out = tmp_path / "out"
    (out / "below").mkdir(parents=True)
    (out / "below" / "c.png").write_bytes(b"from before")
    status, (summary,) = command(street, "-o", out)
    assert status == 0
    assert summary == "2 of 3 de-rained; 1 existing skipped (--overwrite replaces them)"
    assert (out / "below" / "c.png").read_bytes() == b"from before"
    assert command(street, "-o", out, "--overwrite") == (0, ["3 of 3 de-rained"])
    assert Image.open(out / "below" / "c.png").format == "PNG"


def test_single_existing_output_is_an_error(street, tmp_path, command):
    target = tmp_path / "out.png"
    target.symlink_to("nowhere")
    status, (line,) = command(street / "a.png", "-o", target)
    assert (status, line) == (
        2, f"error: {target} exists; --overwrite replaces it",
    )  # fmt: skip
    assert os.readlink(target) == "nowhere"
    assert command(street / "a.png", "-o", target, "--overwrite") == (0, ["1 of 1 de-rained"])
    assert not target.is_symlink()


def test_one_file_to_a_file_or_into_a_folder(street, tmp_path, command, network):
    assert command(street / "a.png", "-o", tmp_path / "new" / "x.PNG")[0] == 0
    assert_derained(street / "a.png", tmp_path / "new" / "x.PNG", network)
    for folder in ("new", "newer"):
        assert command(street / "a.png", "-o", tmp_path / folder)[0] == 0
        assert_derained(street / "a.png", tmp_path / folder / "a.png", network)
    assert names(tmp_path / "newer") == ["a.png"]


def test_several_inputs_keep_their_folders(street, tmp_path, command, monkeypatch):
    monkeypatch.chdir(street)
    status, lines = command(".", "a.png", "below/c.png", "-o", "../out")
    assert (status, lines) == (0, ["5 of 5 de-rained"])
    assert names(tmp_path / "out") == [
        "a.png", "c.png", "street/a.png", "street/b.png", "street/below/c.png",
    ]  # fmt: skip


def test_outputs_below_an_input_are_not_inputs(street, command):
    out = street / "below" / "out"
    assert command(street, "-o", out) == (0, ["3 of 3 de-rained"])
    outputs = names(street)
    status, (summary,) = command(street, "-o", out)
    assert status == 0 and summary.startswith("0 of 3 de-rained; 3 existing")
    assert names(street) == outputs


@pytest.mark.parametrize("size", [(1, 1), (1, 67), (3, 2), (65, 64)])
def test_sizes_that_need_padding(size, tmp_path, command, network):
    source = tmp_path / "in.png"
    Image.fromarray(noise(*size, 3, seed=1)).save(source)
    assert command(source, "-o", tmp_path / "out.png")[0] == 0
    assert_derained(source, tmp_path / "out.png", network)


def test_comparisons_show_before_and_after(tmp_path, command):
    draw = np.random.default_rng(2)
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(9, 7, 3, seed=draw)).save(tmp_path / "in" / "a.png")
    Image.fromarray(noise(9, 7, dtype=np.uint16, seed=draw)).save(tmp_path / "in" / "deep.png")
    assert command(tmp_path / "in", "-o", tmp_path / "out", "--compare")[0] == 0
    assert names(tmp_path / "out") == [
        "a.png", "a.png.compare.png", "deep.png", "deep.png.compare.png",
    ]  # fmt: skip
    both = [Image.open(tmp_path / folder / "a.png") for folder in ("in", "out")]
    shown = np.asarray(Image.open(tmp_path / "out" / "a.png.compare.png"))
    np.testing.assert_array_equal(shown, np.hstack([np.asarray(image) for image in both]))
    shown = np.asarray(Image.open(tmp_path / "out" / "deep.png.compare.png"))
    deep = np.asarray(Image.open(tmp_path / "in" / "deep.png")).astype(float)
    assert shown.shape == (9, 14, 3)
    np.testing.assert_array_equal(shown[:, :7, 0], np.floor(deep / 257 + 0.5))


def test_tile_and_self_ensemble_options(tmp_path, command, weights):
    source = tmp_path / "in.png"
    pixels = noise(60, 700, 3, seed=3)
    Image.fromarray(pixels).save(source)
    for number, (options, expected) in enumerate(
        {
            ("--tile", "512"): open_once(str(weights), tile=512)(pixels),
            ("--self-ensemble",): open_once(str(weights), tile=None)(pixels, self_ensemble=True),
        }.items()
    ):
        target = tmp_path / f"{number}.png"
        assert command(source, "-o", target, *options)[0] == 0
        np.testing.assert_array_equal(np.asarray(Image.open(target)), expected)


def test_quiet_prints_errors_only(street, tmp_path, command):
    assert command(street, "-o", tmp_path / "out", "--quiet") == (0, [])
    (street / "bad.png").write_bytes(b"")
    status, (line,) = command(street, "-o", tmp_path / "out", "--quiet")
    assert status == 1 and line.startswith(f"{street / 'bad.png'}: the file is empty")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("none.png -o out", "none.png: no such file or folder"),
        ("notes.txt -o out", "notes.txt: has the suffix of neither"),
        ("empty -o out", "empty: holds no images or videos"),
        ("a.png -o a.png", "a.png is an input"),
        ("a.png -o .", "a.png is an input"),
        ("link.png -o a.png", "a.png is an input"),
        (". -o .", "is an input"),
        ("a.png below/../a.png -o out", "would both be written to out/a.png"),
        ("below/c.png other/c.png -o out", "would both be written to out/c.png"),
        ("same -o out --compare", "would both be written to out/a.png.compare.png"),
        ("a.png below/c.png -o notes.txt", "notes.txt is a file, but a folder is needed"),
        ("a.png below/c.png -o b.png", "b.png is a file, but a folder is needed"),
        ("below -o b.png", "b.png is a file, but a folder is needed"),
        ("a.png -o notes.txt", "notes.txt is a file, but a folder is needed"),
        ("below -o -", "below is a folder: give -o a folder"),
        ("a.png b.png -o -", "standard output takes a single image"),
        ("clip.mp4 -o -", "standard output takes a single image"),
        ("clip.mp4 -o frame.png", "images stay images"),
        ("a.png - -o out", "standard input cannot be combined"),
        ("- -o below", "below is a folder: give -o a file"),
        ("- -o new.mp4", "standard input and new.mp4: videos are read from files only"),
        ("a.png -o out --tile 5", "tile = 5: give more than"),
        ("{} -o out".format("x" * 5000 + ".png"), "cannot be read (File name too long)"),
    ],
)
def test_wrong_usage_is_refused(arguments, reason, street, command, monkeypatch):
    monkeypatch.chdir(street)
    for folder in ("empty", "other", "same"):
        (street / folder).mkdir()
    (street / "notes.txt").write_text("left alone")
    (street / "clip.mp4").write_bytes(b"")
    (street / "link.png").symlink_to("a.png")
    for copy in ("other/c.png", "same/a.png", "same/a.png.compare.png"):
        shutil.copy("a.png", copy)
    before = state(street)
    status, lines = command(*arguments.split())
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("error: ") and reason in lines[0]
    assert state(street) == before


@pytest.mark.parametrize("wrong", ["no_such", "a.png", "."])
def test_unknown_weights_are_refused(wrong, street, capsys, monkeypatch):
    monkeypatch.chdir(street)
    assert derain.main(["a.png", "-o", "out", "--weights", wrong]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and wrong in line
    assert not os.path.exists("out")


def test_what_is_left_out_is_said_also_quietly(tmp_path, identity):
    source = tmp_path / "motion.jpg"
    source.write_bytes(still("JPEG", "RGB")(np.random.default_rng(0)) + b"\0\0\0\x18ftypmp42")
    status, lines = identity(source, "-o", tmp_path / "out.jpg", "--quiet")
    assert (status, lines) == (0, [f"{source}: warning: written without its film"])


def test_outputs_that_cannot_be_written_are_named_before_anything_is_read(
    street, tmp_path, identity, monkeypatch
):
    closed = tmp_path / "closed"
    closed.mkdir()
    access = os.access
    # Not by its mode, as root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    monkeypatch.setattr(image_files, "read", None)
    assert identity(street, "-o", closed) == (
        1, [f"cannot write to the folder {closed}", "0 of 3 de-rained; 3 failed, see above"],
    )  # fmt: skip
    (tmp_path / "full" / "a.png").mkdir(parents=True)
    assert identity(street / "a.png", "-o", tmp_path / "full", "--overwrite") == (
        1, [f"cannot write {tmp_path}/full/a.png: it is a folder"],
    )  # fmt: skip
    (tmp_path / "link").symlink_to("nowhere")
    assert identity(street / "a.png", "-o", tmp_path / "link" / "out") == (
        1, [f"cannot write to the folder {tmp_path}/link: a link to nothing"],
    )  # fmt: skip
    long = street / f"{'x' * 250}.png"
    shutil.copy(street / "a.png", long)
    assert identity(long, "-o", tmp_path / "out", "--compare") == (
        1, [f"cannot write {tmp_path}/out/{long.name}.compare.png: File name too long"],
    )  # fmt: skip


def test_whatever_a_file_makes_a_library_raise_concerns_that_file_alone(
    street, tmp_path, identity, monkeypatch
):
    encode = image_files.png.encode

    def fail(content, pages):
        if content == (street / "a.png").read_bytes():
            raise ZeroDivisionError("division\nby zero")
        return encode(content, pages)

    monkeypatch.setattr(image_files.png, "encode", fail)
    status, (line, summary) = identity(street, "-o", tmp_path / "out")
    assert status == 1 and summary == "2 of 3 de-rained; 1 failed, see above"
    assert line == (
        f"{street / 'a.png'}: cannot be stored as PNG (division by zero); convert it first"
    )
    assert names(tmp_path / "out") == ["b.png", "below/c.png"]


def test_damaged_tiff_has_one_line(tmp_path, monkeypatch, capfd):
    """libtiff prints lines of its own, by file descriptor."""
    content = bytearray(still("TIFF", "RGB", compression="tiff_lzw")(np.random.default_rng(0)))
    with Image.open(io.BytesIO(content)) as image:
        start = image.tag_v2[273][0]
    content[start : start + 8] = b"\xff" * 8
    (tmp_path / "a.tif").write_bytes(content)
    job = jobs.Job(tmp_path / "a.tif", tmp_path / "b.tif")
    (outcome,) = processing.run([job], lambda pixels: pixels, progress=False)
    assert capfd.readouterr().err.splitlines() == [outcome.problem]


def test_private_pictures_stay_private(street, tmp_path, identity):
    (street / "a.png").chmod(0o600)
    assert identity(street / "a.png", "-o", tmp_path / "out", "--compare")[0] == 0
    written = list((tmp_path / "out").iterdir())
    assert len(written) == 2 and all(path.stat().st_mode & 0o777 == 0o600 for path in written)


def test_suffixes_of_ignored_files_are_named(street, tmp_path, identity, monkeypatch):
    monkeypatch.setattr(image_files.heif, "PACKAGE", "no_such_package")
    for name in ("a.cr2", "b.CR2", "c.psd", "d.heic", ".DS_Store", "notes"):
        (street / name).write_bytes(b"")
    shutil.copy(street / "a.png", street / "d.jfif")
    heic = ".heic (pip install 'manas_jax[heic]', or -r requirements-heic.txt in a checkout)"
    skipped = (
        f"images skipped (4): .cr2, {heic}, .psd; 2 of other kinds ignored (hidden, no suffix)"
    )
    assert identity(street, "-o", tmp_path / "out") == (0, [f"4 of 4 de-rained; {skipped}"])
    status, (line,) = identity(street / "a.cr2", "-o", tmp_path / "out")
    assert status == 2
    assert line == f"error: {street / 'a.cr2'}: images of this kind are not read; convert it first"


@pytest.mark.parametrize(
    ("name", "hint"), [("x.heic", "pip install 'manas_jax[heic]'"), ("x.psd", "another suffix")]
)
def test_a_target_that_cannot_be_written_is_no_folder(
    street, tmp_path, identity, monkeypatch, name, hint
):
    monkeypatch.setattr(image_files.heif, "PACKAGE", "no_such_package")
    status, (line,) = identity(street / "a.png", "-o", tmp_path / name)
    assert status == 2 and f"{name}: images of this kind are not written; " in line and hint in line
    assert not (tmp_path / name).exists()


def test_the_suffix_of_the_target_converts(street, tmp_path, identity):
    assert identity(street / "a.png", "-o", tmp_path / "x.jpg") == (0, ["1 of 1 de-rained"])
    assert Image.open(tmp_path / "x.jpg").format == "JPEG"
    (street / "really.jpg").write_bytes((street / "a.png").read_bytes())
    assert identity(street / "really.jpg", "-o", tmp_path / "x.png")[0] == 0
    assert Image.open(tmp_path / "x.png").format == "PNG"
    assert identity(street / "really.jpg", "-o", tmp_path / "y.jpg")[0] == 0
    assert Image.open(tmp_path / "y.jpg").format == "PNG"  # as it came


def test_what_another_format_cannot_hold_is_refused(tmp_path, identity):
    noise_image("RGBA", 9, 13).save(tmp_path / "clear.png")
    status, (line,) = identity(tmp_path / "clear.png", "-o", tmp_path / "x.jpg")
    assert status == 1 and line == (
        f"{tmp_path / 'clear.png'}: its transparency would be lost in JPEG; choose another format"
    )
    assert not (tmp_path / "x.jpg").exists()


def test_suffixes_of_grey_pictures_are_not_those_of_colours(tmp_path, identity):
    for mode, suffix in (("RGB", ".ppm"), ("L", ".pgm"), ("1", ".pbm")):
        noise_image(mode, 9, 13).save(tmp_path / f"{mode}.png")
        written = tmp_path / f"x{suffix}"
        assert identity(tmp_path / f"{mode}.png", "-o", written)[0] == 0 and written.exists()
    for suffix in (".pgm", ".pbm", ".pfm"):
        status, (line,) = identity(tmp_path / "RGB.png", "-o", tmp_path / f"y{suffix}")
        assert status == 1 and line.endswith("only; name it .ppm")
        assert not (tmp_path / f"y{suffix}").exists()


def test_format_and_suffix_name_the_outputs_of_a_folder(street, identity):
    shutil.copy(street / "a.png", street / "d.jpeg")
    options = ("--format", "JPG", "--suffix", "_dry")
    assert identity(street, "-o", street, *options) == (0, ["4 of 4 de-rained"])
    made = ["a_dry.jpg", "b_dry.jpg", "below/c_dry.jpg", "d_dry.jpeg"]
    assert [name for name in names(street) if "_dry" in name] == made
    assert {Image.open(street / name).format for name in made} == {"JPEG"}
    status, (line,) = identity(street, "-o", street, *options)  # outputs are no inputs
    assert status == 0 and line.startswith("0 of 4 de-rained; 4 existing")
    assert line.endswith("; 4 named like outputs skipped")
    compared = ("-o", street, "--suffix", "_dry", "--compare", "--overwrite")
    for _ in range(2):  # comparisons are no inputs either
        status, (line,) = identity(street, *compared)
        assert status == 0 and line.startswith("4 of 4 de-rained; ")


def test_pictures_that_end_in_the_suffix_are_de_rained_into_another_folder(
    street, tmp_path, identity
):
    shutil.copy(street / "a.png", street / "a1.png")
    out = tmp_path / "out"
    assert identity(street, "-o", out, "--suffix", "1") == (0, ["4 of 4 de-rained"])
    assert names(out) == ["a1.png", "a11.png", "b1.png", "below/c1.png"]


def test_the_comparison_is_there_before_the_output(street, identity, monkeypatch):
    """An output that exists says that a picture is done."""
    monkeypatch.setattr(image_files, "write", _raise_full)
    assert identity(street / "a.png", "-o", street / "out.png", "--compare")[0] == 1
    assert (street / "out.png.compare.png").exists() and not (street / "out.png").exists()


def _raise_full(*_, **__):
    raise OSError(28, "No space left on device")


def test_report_in_json(street, tmp_path, identity):
    (street / "bad.png").write_bytes(b"")
    (street / "raw.dng").write_bytes(b"")
    out, report = tmp_path / "out", tmp_path / "new" / "report.json"
    (out / "below").mkdir(parents=True)
    (out / "below" / "c.png").write_bytes(b"from before")
    assert identity(street, "-o", out, "--json", report)[0] == 1
    records = {record["file"]: record for record in json.loads(report.read_text())}
    assert [record["status"] for record in records.values()] == [
        "de-rained", "de-rained", "failed", "existing", "skipped",
    ]  # fmt: skip
    done = records[str(street / "a.png")]
    width, height = Image.open(street / "a.png").size
    assert done["seconds"] > 0 and done["size"] == [width, height]
    assert done["output"] == str(out / "a.png") and done["weights"] == "general"
    assert "the file is empty" in records[str(street / "bad.png")]["error"]
    assert all(record.keys() == done.keys() for record in records.values())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("a.png -o x.jpg --format png", "x.jpg: its suffix is not that of --format png"),
        ("a.png -o x.png --suffix _dry", "x.png is the output's name"),
        ("a.png -o out --json a.png", "--json a.png is an input or an output"),
        ("a.png -o out --json out/a.png", "--json out/a.png is an input or an output"),
        ("below -o out --suffix /../../up", "--suffix /../../up: give a part of a file name"),
        ("a.png -o out --json below", "--json below is a folder"),
        ("a.png -o out --json out", "--json out is a folder"),
        ("a.png -o out/ --json report/", "--json report/ is a folder"),
        (
            "a.png -o out --json out/a.png/report",
            "--json out/a.png/report is an input or an output",
        ),
        ("a.png -o out --json -", "--json -: standard output is not supported; give a file"),
        ("a.png -o - --compare", "--compare: neither videos nor standard output have one"),
        ("- -o new/", "new/ is a folder: give -o a file"),
        ("- -o x.png --suffix _dry", "--suffix is for outputs in a folder"),
        ("a.png b.png -o clean.jpg", "clean.jpg: a folder is needed; give -o another name, or"),
        ("below -o clean.mp4", "clean.mp4: a folder is needed"),
        ("a.png -o clean.pgn", "clean.pgn: a folder is needed"),
        ("--serve 65536", "--serve 65536: give [HOST:]PORT"),
        ("--serve 7860 -o out", "--out: the page of --serve has none; leave it out"),
        ("--serve --format png", "--format: the page of --serve has none"),
        ("--serve --compare", "--compare: the page of --serve has none"),
        ("--serve --suffix _dry", "--suffix: the page of --serve has none"),
        ("--serve --json x.json", "--json: the page of --serve has none"),
        ("--serve --overwrite", "--overwrite: the page of --serve has none"),
        ("--serve --quiet", "--quiet: the page of --serve has none"),
        ("a.png -o out --device tpu:0", "--device tpu:0: this machine has none"),
        ("a.png -o out --device cpu:9999", "--device cpu:9999: there are"),
        ("a.png -o out --device disk", "--device disk: give cpu, gpu or tpu"),
    ],
)
def test_options_that_contradict_are_refused(arguments, reason, street, identity, monkeypatch):
    monkeypatch.chdir(street)
    before = state(street)
    status, lines = identity(*arguments.split())
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("error: ") and reason in lines[0]
    assert state(street) == before


def test_linked_folders_are_named(street, tmp_path, identity):
    (street / "linked").symlink_to(street / "below")
    status, (line,) = identity(street, "-o", tmp_path / "out")
    assert status == 0 and line.endswith("1 of other kinds ignored (linked folders)")


def test_comparisons_that_are_missing_are_counted(street, tmp_path, identity):
    assert identity(street, "-o", tmp_path / "out")[0] == 0
    _, (line,) = identity(street, "-o", tmp_path / "out", "--compare")
    assert "3 existing skipped" in line and line.endswith("3 of them without a comparison")


def test_hidden_files_can_be_named(street, identity):
    hidden = street / ".hidden.png"
    shutil.copy(street / "a.png", hidden)
    assert identity(hidden, "-o", street / ".made.png") == (0, ["1 of 1 de-rained"])
    assert (street / ".made.png").is_file()


def test_a_folder_may_be_called_like_a_file(street, tmp_path, identity):
    assert identity(street / "a.png", "-o", f"{tmp_path}/v1.2/") == (0, ["1 of 1 de-rained"])
    assert (tmp_path / "v1.2" / "a.png").is_file()


def test_formats_may_have_a_dot(street, tmp_path, identity, capsys):
    assert identity(street / "a.png", "-o", tmp_path / "x", "--format", ".webp")[0] == 0
    assert (tmp_path / "x" / "a.webp").is_file()
    with pytest.raises(SystemExit):
        derain.main(["a.png", "-o", "x", "--format", "wepb"])
    assert "'wepb' is none of apng, avif" in capsys.readouterr().err


def test_a_mistake_leaves_the_report_of_an_earlier_start(street, tmp_path, monkeypatch):
    monkeypatch.chdir(street)
    (street / "report.json").write_text("from before")
    arguments = ["a.png", "-o", str(tmp_path / "x.png"), "--json", "report.json"]
    assert derain.main([*arguments, "--weights", "nope"]) == 2
    assert (street / "report.json").read_text() == "from before"


def test_comparisons_have_the_profile_of_the_picture(street, tmp_path, identity):
    profiles = {name: bytes(16) + name.encode() + bytes(16) for name in ("RGB ", "GRAY")}
    for name, mode in (("RGB ", "RGB"), ("GRAY", "L")):
        Image.open(street / "a.png").convert(mode).save(
            street / f"{mode}.png", icc_profile=profiles[name]
        )
        out = tmp_path / f"{mode}.png"
        assert identity(street / f"{mode}.png", "-o", out, "--compare")[0] == 0
        compared = Image.open(f"{out}.compare.png").info.get("icc_profile")
        assert compared == (profiles[name] if mode == "RGB" else None)


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_closed_streams_are_named(street, identity, monkeypatch, stream):
    monkeypatch.setattr(sys, stream, None)
    source, out = ("-", street / "x.png") if stream == "stdin" else (street / "a.png", "-")
    status, lines = identity(source, "-o", out)
    assert status == 1 and len(lines) == 1 and "closed" in lines[0]


def test_platform_that_is_absent_is_one_line(street, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "manas_jax.derain", street / "a.png", "-o", tmp_path / "x.png"],
        env={**os.environ, "JAX_PLATFORMS": "cuda"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode == 0:
        pytest.skip("there is a GPU")
    assert done.returncode == 2 and not (tmp_path / "x.png").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: JAX_PLATFORMS=cuda: this machine has none that JAX can use")


@pytest.mark.usefixtures("opened_once")
def test_standard_input_and_output(street, capfdbinary, weights, monkeypatch, network):
    content = (street / "a.png").read_bytes()
    expected = io.BytesIO()
    picture = image_files.read(content)
    image_files.write(picture, [network(frame) for frame in picture.frames], expected)

    def feed(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    for source in (str(street / "a.png"), "-"):
        feed(content)
        assert derain.main([source, "-o", "-", "--weights", str(weights), "--quiet"]) == 0
        assert capfdbinary.readouterr() == (expected.getvalue(), b"")
    feed(content)
    target = street / "made.png"
    assert derain.main(["-", "-o", str(target), "--weights", str(weights), "--quiet"]) == 0
    assert target.read_bytes() == expected.getvalue()
    feed(b"")
    assert derain.main(["-", "-o", "-", "--weights", str(weights)]) == 1
    out, stderr = capfdbinary.readouterr()
    assert out == b"" and stderr.startswith(b"standard input: the file is empty")


def test_closed_standard_output_is_reported_in_one_line(street, weights):
    reader, writer = os.pipe()
    os.close(reader)
    source = str(street / "a.png")
    finished = subprocess.run(
        [sys.executable, "-m", "manas_jax.derain", source, "-o", "-", "--weights", str(weights)],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    os.close(writer)
    assert finished.returncode == 1
    assert finished.stderr.splitlines() == [
        f"{source}: cannot write to standard output (Broken pipe)"
    ]


def test_interrupted_command_leaves_whole_files_and_resumes(tmp_path, weights, command, network):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.fromarray(noise(64, 64, 3, seed=4)).save(source / "0.png")
    for i in range(1, 300):
        shutil.copy(source / "0.png", source / f"{i}.png")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, source, "-o", out, "--weights", weights],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not out.exists() or len(os.listdir(out)) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines() == ["interrupted; all files written are complete, rerun to resume"]
    outputs = state(out)
    assert 2 <= len(names(out)) < 300  # one of the three may have been a temporary file
    for name in names(out):
        assert_derained(source / name, out / name, network)
    status, (summary,) = command(source, "-o", out)
    assert status == 0
    assert summary.startswith(
        f"{300 - len(outputs) + 1} of 300 de-rained; {len(outputs) - 1} existing"
    )
    assert names(out) == names(source)
    assert {k: v for k, v in state(out).items() if k in outputs and k != out} == {
        k: v for k, v in outputs.items() if k != out
    }


RATE = 25


def record(path, seconds):
    """A tiny clip of a dark bar that crosses a ramp, with a tone."""
    y, x = np.mgrid[:18, :34]
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "Strasse"
        film = out.add_stream("libx264", rate=RATE, options={"crf": "10"})
        film.width, film.height, film.pix_fmt = 34, 18, "yuv420p"
        tone = out.add_stream("aac", rate=48000)
        for index in range(RATE * seconds):
            pixels = np.stack([x * 4 + 60, y * 5 + 60, x * 2 + y + 60], -1).astype(np.uint8)
            pixels[-6:, index % 34 : index % 34 + 4] = 20
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            out.mux(film.encode(frame))
        out.mux(film.encode(None))
        wave = np.sin(np.arange(960) * 2 * np.pi * 450 / 48000).astype(np.float32)
        for start in range(0, 48000 * seconds, 960):
            frame = av.AudioFrame.from_ndarray(wave[None], "flt", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            out.mux(tone.encode(frame))
        out.mux(tone.encode(None))
    return path


def test_ten_seconds_of_video(tmp_path, command, network, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "12:30.mp4", 10)  # not a protocol
    assert command("12:30.mp4", "-o", "out.mp4") == (0, ["1 of 1 de-rained"])
    before, after = look(tmp_path / "12:30.mp4"), look(tmp_path / "out.mp4")
    assert len(before["times"]) == 10 * RATE and len(before["sound"]) > 400
    for key in ("times", "rate", "sound", "size", "codec", "format"):
        assert after[key] == before[key]
    assert after["duration"] == pytest.approx(before["duration"], abs=1000)
    likeness = []
    for index in (0, 100, 249):
        # Chroma is subsampled in the file, so luma is compared.
        frames = before["frames"][index], after["frames"][index], network(before["frames"][index])
        rainy, written, expected = (Image.fromarray(frame).convert("L") for frame in frames)
        change, expected_change = (
            np.asarray(image, int) - np.asarray(rainy) for image in (written, expected)
        )
        likeness.append(np.corrcoef(change.ravel(), expected_change.ravel())[0, 1])
    assert np.mean(likeness) > 0.8  # the quality of single frames varies
    assert names(tmp_path) == ["12:30.mp4", "out.mp4"]


RESUMABLE = """
import os, signal, sys
from manas_jax import derain
from manas_jax.inference import video
video.SEGMENT = video._MIN_LENGTH = 8
restored = []
class Negative:
    tile, engine, platform, source = 512, "onnx", "cpu", sys.executable
    def __call__(self, pixels, **_):
        restored.append(len(pixels))
        if sum(restored) > int(os.environ["KILLED_AFTER"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return 65535 - pixels
derain.Derainer.from_pretrained = lambda *_, **__: Negative()
status = derain.main()
print(sum(restored))
sys.exit(status)
"""


def test_a_killed_video_goes_on_where_it_was(tmp_path):
    source, out = record(tmp_path / "in.mp4", 2), tmp_path / "out"

    def run(target, killed_after=999, *options):
        return subprocess.run(
            [sys.executable, "-c", RESUMABLE, source, "-o", out / target, *options],
            env={**os.environ, "KILLED_AFTER": str(killed_after)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    whole = run("whole.mp4")
    assert (whole.stdout, whole.stderr) == ("50\n", "1 of 1 de-rained\n")
    killed = run("x.mp4", 20)
    assert killed.returncode == -signal.SIGKILL
    (folder,) = (path for path in out.iterdir() if path.name.endswith(".segments"))
    assert sorted(folder.glob("0*.msgpack")) == [folder / f"00000{i}.msgpack" for i in (0, 1)]
    assert not (out / "x.mp4").exists()
    resumed = run("x.mp4")
    assert resumed.stdout == f"{50 - 16}\n"
    assert resumed.stderr.splitlines() == [
        f"{source}: goes on after frame 16 of 50", "1 of 1 de-rained",
    ]  # fmt: skip
    assert names(out) == ["whole.mp4", "x.mp4"]
    assert (out / "x.mp4").read_bytes() == (out / "whole.mp4").read_bytes()


def test_segments_belong_to_weights_and_options(weights):
    def claim(*arguments):
        options = derain._parser().parse_args(["a.mp4", "-o", "b.mp4", *map(str, arguments)])
        return derain._network(options)[1]

    own = ("--weights", weights)
    claims = [
        claim(*own), claim(*own, "--self-ensemble"), claim(*own, "--dtype", "bfloat16"),
        claim(*own, "--tile", "512"), claim("--weights", "rain100l"),
    ]  # fmt: skip
    assert claim(*own) == claims[0]
    assert all(a != b for a, b in itertools.combinations(claims, 2))


def test_titles_in_old_encodings_are_copied(tmp_path, command):
    source = record(tmp_path / "in.mp4", 1)
    source.write_bytes(source.read_bytes().replace(b"Strasse", b"Stra\xdfe."))
    assert command(source, "-o", tmp_path / "out.mp4")[0] == 0
    assert b"Stra\xdfe." in (tmp_path / "out.mp4").read_bytes()


def test_audio_in_an_unknown_codec_is_reported(tmp_path, command):
    source = record(tmp_path / "in.mp4", 1)
    source.write_bytes(source.read_bytes().replace(b"\x40\x15\0", b"\2\x15\0"))  # was AAC
    status, (line,) = command(source, "-o", tmp_path / "out.mp4")
    assert status == 1 and "cannot hold audio in an unknown codec" in line
    assert names(tmp_path) == ["in.mp4"]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_highly_compressible_pictures_are_not_refused(format, monkeypatch):
    monkeypatch.setattr(image_files, "TRUSTED_PIXELS", 0)
    blank = Image.new("1" if format == "PNG" else "L", (3000, 3000), 1)
    options = {"JPEG": {"quality": 1, "optimize": True, "progressive": True}}.get(format, {})
    content = encoded(blank, format, **options)
    assert len(content) < 100_000
    assert image_files.read(content).frames[0].shape == (3000, 3000, 3)


def test_canvas_beyond_the_format_is_reported():
    content = bytearray(moving("WEBP")(np.random.default_rng(0)))
    assert content[12:16] == b"VP8X"
    content[24:27] = (20_000).to_bytes(3, "little")
    picture = image_files.read(bytes(content), "wide.webp")
    with pytest.raises(UserError, match=r"wide\.webp: cannot be stored as WEBP"):
        image_files.write(picture, picture.frames, io.BytesIO())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("the weights have diverged"), "{}: the weights have diverged"),
        (OSError("no such device"), "{}: no such device"),
        (MemoryError(), "{}: not enough memory; give a smaller --tile"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile trying"),
            "{}: not enough memory; give a smaller --tile",
        ),
        (
            RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 9"),
            "{}: not enough memory; give a smaller --tile",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["mp4", "png"])
def test_errors_of_restoring_are_reported_unchanged(kind, error, line, tmp_path, street, capsys):
    source = record(tmp_path / "in.mp4", 1) if kind == "mp4" else street / "a.png"
    out = tmp_path / "out"

    def restore(pixels):
        raise error

    other = jobs.Job(street / "b.png", out / "b.png")
    outcomes = processing.run([jobs.Job(source, out / f"x.{kind}")], restore, progress=False)
    problems = [outcome.problem for outcome in outcomes]
    assert problems == [line.format(source)]
    assert capsys.readouterr().err.splitlines() == problems
    (outcome,) = processing.run([other], lambda pixels: pixels, progress=False)
    assert outcome.problem is None
    assert names(out) == ["b.png"]


@pytest.mark.parametrize(
    ("number", "raised"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, SystemExit),
        (signal.SIGHUP, SystemExit),
    ],
)
def test_an_interrupted_video_leaves_nothing(tmp_path, number, raised):
    source, batches = record(tmp_path / "in.mp4", 1), []
    handler = signal.getsignal(number)
    if handler == signal.SIG_IGN:
        pytest.skip("ignored by the tests")

    def restore(pixels):
        batches.append(pixels)
        if len(batches) == 2:
            os.kill(os.getpid(), number)
        return pixels

    job = jobs.Job(source, tmp_path / "out" / "x.mp4")
    with pytest.raises(raised) as caught, signals.unwinding():
        list(processing.run([job], restore, progress=False))
    assert len(batches) == 2 and names(tmp_path / "out") == []
    assert signal.getsignal(number) == handler
    if raised is SystemExit:
        assert caught.value.code == 128 + number


def test_full_disk_is_reported_with_the_file(street, tmp_path, command, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    status, (line,) = command(street / "a.png", "-o", tmp_path / "out.png")
    assert status == 1
    assert line.endswith(f"cannot write {tmp_path / 'out.png'}: No space left on device")


def test_too_deep_folder_is_reported(street, tmp_path, command, monkeypatch):
    monkeypatch.chdir(street)
    for _ in range(20):  # longer than paths may be, also for root
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    try:
        status, (line, summary) = command(street, "-o", tmp_path / "out")
    finally:
        os.chdir(street)
        shutil.rmtree("d" * 250)
    assert status == 1
    assert line.startswith(f"{street}/ddd") and "cannot be read" in line
    assert summary == "3 of 3 de-rained; 1 failed, see above"


def test_files_and_folders_without_permission_are_reported(street, tmp_path, command):
    for path in (street / "a.png", street / "below"):
        path.chmod(0)
    try:
        if os.access(street / "a.png", os.R_OK):
            pytest.skip("this user reads everything, as root does")
        status, lines = command(street, "-o", tmp_path / "out")
    finally:
        for path in (street / "a.png", street / "below"):
            path.chmod(0o700)
    assert status == 1
    assert lines[0].startswith(f"{street / 'below'}: cannot be read (Permission denied")
    assert lines[1].startswith(f"{street / 'a.png'}: cannot be read (Permission denied")
    assert lines[2] == "1 of 2 de-rained; 2 failed, see above"


@pytest.fixture
def rain(bucket):
    """The folder gs://bucket/rain with two pictures, one of them damaged, and a text."""
    folder = buckets.as_path("gs://bucket/rain")
    (folder / "deep" / "a.png").write_bytes(encoded(noise_image("RGB", 9, 7, seed=0), "PNG"))
    (folder / "b.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("x")
    return folder


def test_folder_of_a_bucket_to_another(rain, identity, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uploaded, upload = [], buckets.upload
    monkeypatch.setattr(
        buckets, "upload", lambda file, path: (uploaded.append(path.name), upload(file, path))
    )
    status, lines = identity(rain, "-o", "gs://bucket/out", "--compare")
    assert status == 1 and lines[0].startswith("gs://bucket/rain/b.png: no image of a known format")
    assert lines[1] == "1 of 2 de-rained; 1 failed, see above; 1 of other kinds ignored (.txt)"
    out = buckets.as_path("gs://bucket/out/deep")
    assert uploaded == ["a.png.compare.png", "a.png"]
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "a.png.compare.png"]
    assert Image.open(io.BytesIO((out / "a.png").read_bytes())).size == (7, 9)
    assert not buckets.as_path("gs://bucket/out/b.png").exists() and os.listdir() == []

    (rain / "b.png").unlink()
    assert identity(rain, "-o", "gs://bucket/out") == (
        0, ["0 of 1 de-rained; 1 existing skipped (--overwrite replaces them); "
            "1 of other kinds ignored (.txt)"],
    )  # fmt: skip
    assert identity(rain / "deep/a.png", "-o", "gs://bucket/out/deep") == (
        2, ["error: gs://bucket/out/deep/a.png exists; --overwrite replaces it"]
    )  # fmt: skip


def test_between_a_bucket_and_a_folder(rain, identity, tmp_path):
    assert identity(rain / "deep/a.png", "-o", tmp_path / "c.bmp", "--quiet") == (0, [])
    with Image.open(tmp_path / "c.bmp") as written:
        pixels = np.asarray(written)
    assert identity(tmp_path / "c.bmp", "-o", "gs://bucket/x/c.png", "--quiet") == (0, [])
    stored = buckets.as_path("gs://bucket/x/c.png").read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), pixels)


def test_mistakes_with_buckets_are_one_line(rain, identity, bucket):
    for arguments, message in [
        ([rain / "none.png", "-o", "x"], "gs://bucket/rain/none.png: no such file or folder"),
        ([rain, "-o", rain / "b.png"], "gs://bucket/rain/b.png is a file, but a folder is needed"),
        ([rain / "b.png", "-o", rain], "gs://bucket/rain/b.png is an input"),
        ([rain, "-o", "x", "--json", "gs://bucket/x.json"], "gs:// is not supported here"),
    ]:
        status, lines = identity(*arguments)
        assert status == 2 and len(lines) == 1 and message in lines[0]
    bucket(403)
    status, lines = identity(rain, "-o", "x")
    assert status == 2 and len(lines) == 1 and "gs://bucket/rain: " in lines[0]
