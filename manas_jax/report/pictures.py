"""The example pictures of a run, ready for the page."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from manas_jax import buckets
from manas_jax.errors import UserError
from manas_jax.files import unique_stems
from manas_jax.report import values
from manas_jax.report.reader import PICTURE_KINDS, Run

MAX_SIDE = 1600  # pixels; larger pictures are embedded at reduced size, so that the page opens
MAX_EXAMPLES = 8


@dataclasses.dataclass(frozen=True)
class Picture:
    """One version of an example picture.

    Attributes:
      kind: of `PICTURE_KINDS`.
      source: for the `src` of an `<img>`.
      size: width and height in pixels.
      scores: its PSNR and SSIM on luma as text; empty where it has none.
      reduced: whether it was reduced to `MAX_SIDE`.
    """

    kind: str
    source: str
    size: tuple[int, int]
    scores: str
    reduced: bool


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture in the versions that the run has stored.

    Attributes:
      name: of the picture.
      pictures: in the order of `PICTURE_KINDS`.
    """

    name: str
    pictures: list[Picture]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The kinds that can be compared, the rainy and the restored one first."""
        return list(itertools.combinations([picture.kind for picture in self.pictures], 2))


def examples(run: Run) -> list[Example]:
    """The first `MAX_EXAMPLES` of a run.

    Raises:
      UserError: a file is not readable as a picture.
    """
    rows = run.scores.get("images", [])
    images = dict(zip(unique_stems([str(row.get("name")) for row in rows]), rows, strict=True))
    scores = {Path(name).stem: i for name, i in images.items()} | images
    return [
        Example(
            name,
            [
                _picture(kind, files[kind], scores.get(name))
                for kind in PICTURE_KINDS
                if kind in files
            ],
        )
        for name, files in itertools.islice(run.pictures.items(), MAX_EXAMPLES)
    ]


def _picture(kind: str, path: buckets.Path, scores: Mapping[str, Any] | None) -> Picture:
    measured = values.get(scores, values.SCORED.get(kind, ""))
    figures = [
        f"{values.score(key, value)}{unit}"
        for key, unit in (("y_psnr", " dB"), ("y_ssim", ""))
        if values.is_number(value := values.get(measured, key))
    ]
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if reduced := max(image.size) > MAX_SIDE:
                image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                content = buffer.getvalue()
            size = image.size
    except OSError as error:
        raise UserError(f"{path}: not readable as a picture ({error}); remove it") from None
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return Picture(kind, source, size, " · ".join(figures), reduced)
