"""Building blocks of the page: strings of HTML from plain text and files."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from manas_jax.errors import UserError

LONGEST_SIDE = 1600  # pixels; larger pictures are embedded at reduced size, so that the page opens


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str, numeric: bool = True
) -> str:
    """A table whose first column holds the headings of the rows; all cells are text."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in rest)
        + "</tr>"
        for first, *rest in rows
    )
    kind = ' class="numbers"' if numeric else ""
    return (
        f'<div class="wide"><table{kind}><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def note(sentence: str) -> str:
    """A paragraph in muted colour."""
    return f'<p class="note">{escape(sentence)}</p>'


def details(summary: str, body: str, expanded: bool = False) -> str:
    """HTML that a click on its summary shows."""
    return f"<details{' open' * expanded}><summary>{escape(summary)}</summary>{body}</details>"


def embed_picture(path: Path) -> tuple[str, bool]:
    """A PNG as a data URI, and whether it was reduced to `LONGEST_SIDE`.

    Raises:
      UserError: the file is not readable as an image.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            reduced = max(image.size) > LONGEST_SIDE
            if reduced:
                image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                content = buffer.getvalue()
    except OSError as error:
        raise UserError(f"{path}: not readable as a picture ({error}); remove it") from None
    return f"data:image/png;base64,{base64.b64encode(content).decode()}", reduced
