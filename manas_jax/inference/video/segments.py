"""Encoded segments of an output, in a hidden folder beside it, which outlive the process.

A segment is a file of MessagePack: for each packet of the encoder its times, their unit, whether
it is a key frame, and its bytes. So every container gets the packets just as the encoder made them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import av
import msgpack

from manas_jax.files import replacing, write_json

_CLAIM = "claim.json"


class Segments:
    """The finished segments in a folder, by their index.

    Attributes:
      folder: the folder.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def __contains__(self, index: int) -> bool:
        return self._file(index).exists()

    def write(self, index: int, packets: Iterable[av.Packet]) -> None:
        """Writes a segment, completely or not at all.

        Raises:
          OSError: it cannot be written.
        """
        with replacing(self._file(index)) as temporary, open(temporary, "wb") as file:
            for packet in packets:
                unit = packet.time_base.numerator, packet.time_base.denominator
                times = packet.pts, packet.dts, packet.duration
                file.write(msgpack.packb((*times, *unit, packet.is_keyframe, bytes(packet))))

    def read(self, index: int) -> Iterator[av.Packet]:
        """The packets of a segment."""
        with open(self._file(index), "rb") as file:
            for fields in msgpack.Unpacker(file, max_buffer_size=0):
                *times, numerator, denominator, is_keyframe, content = fields
                packet = av.Packet(content)
                packet.pts, packet.dts, packet.duration = times
                packet.time_base = Fraction(numerator, denominator)
                packet.is_keyframe = is_keyframe
                yield packet

    def _file(self, index: int) -> pathlib.Path:
        return self.folder / f"{index:06}.msgpack"


@contextlib.contextmanager
def beside(target: str | os.PathLike, claim: Mapping[str, Any]) -> Iterator[Segments]:
    """The segments of an output, those of an earlier start as well if they have the same claim.

    Those of other claims are removed at the start, and all at the end. After an error the finished
    ones stay.

    Args:
      target: the output.
      claim: what the segments depend on, for JSON.

    Raises:
      OSError: the folder cannot be written.
    """
    target = pathlib.Path(target)
    # Names may have maximal length, or be no text.
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    segments = Segments(target.with_name(f".{name}.segments"))
    claim = json.loads(json.dumps(claim))
    if _claim_in(segments.folder) != claim:
        shutil.rmtree(segments.folder, ignore_errors=True)
        segments.folder.mkdir(mode=0o700, parents=True)
        write_json(segments.folder / _CLAIM, claim)
    is_finished = False
    try:
        yield segments
        is_finished = True
    finally:
        if is_finished or 0 not in segments:  # the first one is there whenever any is
            shutil.rmtree(segments.folder, ignore_errors=True)


def _claim_in(folder: pathlib.Path) -> Any:
    """The claim of the segments in a folder; None where there is none or it is damaged."""
    try:
        return json.loads((folder / _CLAIM).read_text())
    except (OSError, ValueError):
        return None
