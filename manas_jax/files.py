"""Files: written completely or not at all, recognised by suffix, listed in natural order."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import secrets
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from manas_jax.errors import UserError


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike, like: str | os.PathLike | None = None
) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; the file written there replaces `path` on exit.

    The temporary has the suffix of `path`. After an error `path` is unchanged and the temporary is
    removed.

    Args:
      path: the file.
      like: a file whose permissions it gets, as far as the umask allows.

    Raises:
      OSError: the file cannot be renamed.
    """
    path = pathlib.Path(path)
    # Random and short, as the name of the file itself may have the maximal length.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        if like is not None:  # before there is anything to read
            temporary.touch(os.stat(like).st_mode & 0o666 | 0o600)
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def output_file(
    path: str | os.PathLike, like: str | os.PathLike | None = None
) -> Iterator[pathlib.Path]:
    """`replacing` for a file that the user names: creates its folder, explains what goes wrong.

    Raises:
      UserError: in place of any OSError raised within, says that `path` cannot be written.
    """
    try:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, like) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: str | os.PathLike, fields: Any) -> None:
    """Writes indented JSON; NumPy and JAX arrays and scalars become lists and numbers.

    Raises:
      TypeError: a value has no representation in JSON.
      OSError: the file cannot be written.
    """

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} has no representation in JSON")

    text = json.dumps(fields, indent=1, default=plain) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


def has_suffix(path: str | os.PathLike, suffixes: Collection[str]) -> bool:
    """Whether a file name has one of `suffixes` (lower case), in any case, and is not hidden."""
    path = pathlib.Path(path)
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def natural_order(path: str | os.PathLike) -> list:
    """Sort key that puts 2.png before 10.png, regardless of case; ties go by the exact name."""
    name = os.fspath(path)
    parts = re.split(r"(\d+)", name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts] + [(-1, name)]


def first_few(items: Sequence[object], limit: int = 3) -> str:
    """The first `limit` items and the number of the others: 'a, b, c and 2 more'."""
    listed = ", ".join(map(str, items[:limit]))
    return f"{listed} and {len(items) - limit:,} more" if len(items) > limit else listed
