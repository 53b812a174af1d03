"""The segments of a JPEG file."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

START, END, SCAN = 0xD8, 0xD9, 0xDA  # markers

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})


def segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of the first image, without SOI and restart markers.

    Bytes between segments are skipped, as decoders do: junk, or the entropy-coded data of a scan.
    """
    position = 2
    while found := _MARKER.search(content, position):
        marker, start, position = found[1][0], found.end() - 2, found.end()
        if marker in _WITHOUT_LENGTH:
            continue
        if marker == START:  # of another image: this one is truncated
            return
        if marker != END:
            if position + 2 > len(content):
                return
            position = start + 2 + struct.unpack_from(">H", content, position)[0]
        yield marker, start, min(position, len(content))
        if marker == END:
            return
