"""Files: written completely or not at all, recognised by suffix, listed in natural order."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from manas_jax import buckets
from manas_jax.errors import UserError, one_line


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike,
    like: str | os.PathLike | None = None,
    folder: str | os.PathLike | None = None,
) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; the file written there replaces `path` on exit.

    The temporary has the suffix of `path`. After an error `path` is unchanged and the temporary is
    removed; after a power cut there is either the old file or the new one, as both file and folder
    are synchronised with the disk. An object in a bucket is replaced as a whole, from a local file.

    Args:
      path: the file.
      like: a file whose permissions it gets, as far as the umask allows; by default `path` keeps
        those that it has.
      folder: where the temporary is, if not beside `path`; in the same file system.

    Raises:
      OSError: the file cannot be renamed.
    """
    if buckets.is_remote(path):
        with buckets.writing_copy(path) as temporary:
            yield temporary
        return
    path = pathlib.Path(path)
    # Random and short, as the name of the file itself may have the maximal length.
    temporary = pathlib.Path(folder or path.parent) / f".{secrets.token_hex(8)}.tmp{path.suffix}"
    try:
        if like is not None:  # before there is anything to read
            temporary.touch(os.stat(like).st_mode & 0o666 | 0o600)
        yield temporary
        if like is None:
            # There may be no such file yet, and no permissions in the file system.
            with contextlib.suppress(OSError):
                temporary.chmod(path.stat().st_mode & 0o777)
        _synchronise(temporary)
        os.replace(temporary, path)
        _synchronise(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _synchronise(path: pathlib.Path) -> None:
    """Waits until a file or folder is on disk; see fsync(2)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without fsync
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def output_file(
    path: str | os.PathLike, like: str | os.PathLike | None = None
) -> Iterator[pathlib.Path]:
    """`replacing` for a file that the user names: creates its folder, explains what goes wrong.

    Raises:
      UserError: in place of any OSError raised within, says that `path` cannot be written.
    """
    try:
        buckets.as_path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, like) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(
    path: str | os.PathLike, flag: str, inputs: Iterable[str | os.PathLike] = ()
) -> None:
    """Checks that the folder of a file is there and can be written to.

    Args:
      path: the file.
      flag: that it was given with.
      inputs: files that it may not replace.

    Raises:
      UserError: it cannot be written; names the flag.
    """
    file = pathlib.Path(path)  # an empty name is the current folder
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise UserError(f"{flag}={path} cannot be written: give a file in a folder")
    if os.path.realpath(path) in map(os.path.realpath, inputs):
        raise UserError(f"{flag}={path} is an input: give another file")


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


def write_named_json(path: str | os.PathLike, flag: str, fields: Any) -> None:
    """`write_json` for a file that a flag names.

    Raises:
      TypeError: a value has no representation in JSON.
      UserError: the file cannot be written; names the flag.
    """
    try:
        write_json(path, fields)
    except OSError as error:
        raise UserError(f"{flag}={path} cannot be written ({one_line(error)})") from error


class Listing(NamedTuple):
    """What a folder holds, without hidden entries, in natural order.

    Attributes:
      files: regular files, or links to such, with one of the suffixes asked for.
      folders: folders, or links to such, except those that contain the folder itself.
    """

    files: list[pathlib.Path]
    folders: list[pathlib.Path]


def list_folder(path: str | os.PathLike, suffixes: Collection[str]) -> Listing:
    """Lists the folders in a folder, and the files with one of `suffixes` (lower case).

    Raises:
      UserError: the folder is missing or cannot be read, or an entry with such a suffix is neither
        a file nor a folder: a pipe, or a link to nothing.
    """
    path = pathlib.Path(path)
    listing = Listing([], [])
    try:
        entries = sorted(os.scandir(path), key=lambda entry: natural_order(entry.name))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            inner = path / entry.name
            if entry.is_dir():
                if not (entry.is_symlink() and path.resolve().is_relative_to(inner.resolve())):
                    listing.folders.append(inner)
            elif has_suffix(inner, suffixes):
                if not entry.is_file():
                    raise UserError(f"{inner} is neither a file nor a folder; remove it")
                listing.files.append(inner)
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot read this folder ({reason})") from None
    return listing


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
      OSError: the file cannot be read.
    """
    with buckets.reading_copy(path) as copy, open(copy, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unique_stems(names: Sequence[str]) -> list[str]:
    """Stems of files in one folder for names that may have folders: 'a/b', 'a_b' -> a_b, a_b-2."""
    stems: dict[str, None] = {}
    for name in names:
        stem = flat = name.replace("/", "_")
        number = 1
        while stem in stems:
            number += 1
            stem = f"{flat}-{number}"
        stems[stem] = None
    return list(stems)


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
