"""Videos whose frames are restored while everything else is copied.

Frames keep their times, so variable frame rates stay. Audio and subtitle packets are copied, as are
metadata, chapters, rotation, colour tags, attachments and cover pictures. Video is encoded again,
with the codec of the input if this build of FFmpeg has an encoder that keeps size, depth,
transparency, interlacing and rotation. Further video streams and data streams are dropped. A
warning names what is lost; docs/formats.md lists what happens to which videos.

FFmpeg hides small damage, and a truncated file without an index looks like a shorter one: what it
can decode is restored.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import av

from manas_jax.errors import UserError
from manas_jax.files import has_suffix, replacing, sha256
from manas_jax.inference.video import encoder, pixels, segments, writer
from manas_jax.inference.video.encoder import COLOUR_TAGS
from manas_jax.inference.video.pixels import RestoreFrames
from manas_jax.inference.video.reader import (
    METADATA_ERRORS,
    Reader,
    count_frames,
    no_protocol,
    open_video,
)
from manas_jax.inference.video.writer import Note, Progress

__all__ = [
    "BATCH",
    "COLOUR_TAGS",
    "SUFFIXES",
    "Note",
    "Progress",
    "RestoreFrames",
    "derain",
    "is_video",
]

SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"}
    | {".wmv", ".flv", ".3gp", ".ogv"}
)
BATCH = 8
"""Frames of 1920x1080 that are restored at a time; fewer larger ones, to bound memory."""
SEGMENT = 240
"""Frames per segment, the unit in which a killed run resumes; fewer if frames are larger than
1920x1080."""
_MIN_LENGTH = 48
"""Frames of a segment of any size, as each one starts with a key frame."""


def is_video(path: str | os.PathLike) -> bool:
    """Whether `path` has the suffix of a video and is not hidden."""
    return has_suffix(path, SUFFIXES)


def derain(
    source: str | os.PathLike,
    target: str | os.PathLike,
    restore: RestoreFrames,
    progress: Progress | None = None,
    batch: int | None = None,
    claim: Mapping[str, Any] | None = None,
    note: Note | None = None,
) -> tuple[int, int]:
    """Writes `source` with restored frames to `target`, completely or not at all.

    The source is read twice: what is wrong with it, and what the output cannot keep, comes out
    before any frame is restored. With a claim, a call that ended before its time is resumed by the
    next one: segments that it finished are in a hidden folder beside the target.

    Args:
      source: a video file, of which the first video stream is restored.
      target: the file to write, in the container that its suffix names.
      restore: called with upright frames, `batch` at a time, fewer at the end; with single fields
        where frames are interlaced. Its exceptions pass unchanged.
      progress: called after each batch.
      batch: frames per call of `restore`; None for `BATCH` or fewer.
      claim: what the restored frames depend on besides the source, for JSON; None to keep no
        segments. They are never kept of VP8 and VP9 with transparency.
      note: called with a line on what the output does not keep; None for a warning in the log.

    Returns:
      Width and height of a frame, upright.

    Raises:
      ValueError: `restore` returns another shape or type.
      UserError: the source is missing, no video or damaged, the target cannot be written, or its
        container cannot hold what is essential.
    """
    encoder.container_of(target)
    count = count_frames(source)
    with open_video(source) as container:
        reader = Reader(container, source)
        encoding = encoder.choose(reader, target)
        size = reader.first.width * reader.first.height
        batch = batch or max(1, min(BATCH, BATCH * 1920 * 1080 // size))
        try:  # not `output_file`: it would report an OSError of `restore` as one of writing
            pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error
        length = max(_MIN_LENGTH, min(SEGMENT, SEGMENT * 1920 * 1080 // size))
        with contextlib.ExitStack() as kept:
            store = None
            several = writer.segment_count(count, length) > 1
            if claim is not None and several and encoding.keeps_packets():
                own = _own_claim(source, encoding, batch, length)
                if "tile" in claim:  # larger than the frame, its size makes no difference
                    side = max(reader.first.width, reader.first.height)
                    own["tile"] = min(claim["tile"], side)
                store = kept.enter_context(segments.beside(target, {**claim, **own}))
            folder = store and store.folder
            with replacing(target, like=source, folder=folder) as temporary:
                try:
                    with av.open(
                        no_protocol(temporary),
                        "w",
                        format=encoding.container,
                        options=writer.container_options(reader, encoding),
                        metadata_errors=METADATA_ERRORS,
                    ) as output:
                        writer.transcode(
                            reader, count, encoding, output, target, restore, progress, batch,
                            length, store, note,
                        )  # fmt: skip
                    lost = writer.lost_metadata(reader, no_protocol(temporary))
                except av.error.FFmpegError as error:
                    raise UserError(f"cannot write {target}: {error.strerror}") from error
        writer.note_losses(reader, lost, note)
        width, height = reader.first.width, reader.first.height
        return (height, width) if pixels.orientation(reader.first).swap else (width, height)


def _own_claim(
    source: str | os.PathLike, encoding: encoder.Encoding, batch: int, length: int
) -> dict[str, Any]:
    """What the packets of segments depend on besides the restored frames."""
    return {
        "source": sha256(source),
        "encoder": [encoding.encoder, encoding.pixel_format, encoding.container],
        "tick": str(encoding.tick),
        "batch": batch,
        "length": length,
        "libraries": [*map(list, av.library_versions.values())],
    }
