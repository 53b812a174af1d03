"""Where chroma samples lie between those of luma, which PyAV does not tell."""

from __future__ import annotations

import io
import re

import av

# ChromaSitingHorz and ChromaSitingVert (RFC 9559, 5.1.4.1.28), which FFmpeg writes together.
_SITING = re.compile(rb"\x55\xb7\x81([\1\2])\x55\xb8\x81([\1\2])")
_NAMES = {(1, 1): "topleft", (1, 2): "left", (2, 1): "top", (2, 2): "center"}


def location(stream: av.video.stream.VideoStream) -> str | None:
    """FFmpeg's name of the place of chroma samples, None if unknown.

    The header of a Matroska file with a stream like this tells it.
    """
    header = io.BytesIO()
    try:
        with av.open(header, "w", format="matroska") as container:
            container.add_stream_from_template(stream, opaque=True)
            container.start_encoding()
    except (ValueError, av.error.FFmpegError):  # it cannot hold the codec
        return None
    found = _SITING.search(header.getvalue())
    return _NAMES[found[1][0], found[2][0]] if found else None
