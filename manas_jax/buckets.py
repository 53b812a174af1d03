"""Paths in buckets of Google Cloud Storage: gs://BUCKET/NAME.

`as_path` makes either kind of path, local or in a bucket, with the interface of `pathlib`.
Libraries that need a file get a local copy: `reading_copy` and `writing_copy`. A bucket has no
folders: one exists while an object's name begins with its own.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import pathlib
import re
import shutil
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from manas_jax.errors import UserError, check_extra, disk_error, error_chain, one_line, reading

if TYPE_CHECKING:
    import fsspec
    from etils import epath

# etils, and by it orbax and JAX, reach buckets by gcsfs, beside TensorFlow as well. Libraries read
# these variables once, at their first path.
os.environ.setdefault("EPATH_USE_TF", "false")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

Path: TypeAlias = "pathlib.Path | epath.Path"
SCHEME = "gs"

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)  # pathlib makes one slash of two
_ADDRESS = re.compile(r"gs://(?P<bucket>[a-z0-9][a-z0-9._-]+)(?P<name>(/[^][*?#\\/\0-\x1f]+)*)/?")
# Modules of errors of the clients of a bucket, and statuses of TensorStore.
_CLIENTS = ("aiohttp", "gcsfs", "google.api_core", "google.auth", "google.cloud", "requests")
_STATUS = re.compile(
    "UNAVAILABLE|UNAUTHENTICATED|PERMISSION_DENIED|DEADLINE_EXCEEDED|retry attempts failed"
)
_MAX_REASON = 200  # characters


def scheme(path: Any) -> str:
    """The scheme that a path begins with, in lower case; '' for a local path and for no path."""
    match = _SCHEME.match(os.fspath(path)) if isinstance(path, (str, os.PathLike)) else None
    return match[1].lower() if match else ""


def local_path(path: str | os.PathLike) -> str:
    """The path that a `file://` URL names, or the local path that is given.

    Raises:
      UserError: it has another scheme, or names another machine.
    """
    path = os.fspath(path)
    if scheme(path) != "file":
        check_local(path)
        return path
    parts = urllib.parse.urlsplit(path)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{path}: a file of another machine: give a local path")
    return urllib.request.url2pathname(parts.path)


def is_remote(path: Any) -> bool:
    """Whether a path is in a bucket."""
    return scheme(path) == SCHEME


def check(*paths: Any) -> None:
    """Checks, without a request, that paths are local or in buckets that can be reached from here.

    Raises:
      UserError: one has another scheme or is no valid address, or the extra is missing.
    """
    for path in paths:
        if not is_remote(path):
            check_local(path)
        elif not _ADDRESS.fullmatch(os.fspath(path)):
            raise UserError(f"{path}: give gs://BUCKET/NAME, without any of [ ] * ? # \\")
        else:
            check_extra("gcs", "gcsfs", subject=f"{path}:")


def check_local(*paths: Any) -> None:
    """Refuses paths with a scheme: as local paths they would name a folder such as `gs:`.

    Raises:
      UserError: names the first of them.
    """
    for path in paths:
        if found := scheme(path):
            raise UserError(f"{path}: {found}:// is not supported here: give a local path")


def check_local_options(options: argparse.Namespace) -> None:
    """`check_local` of all options of a command, of those in lists as well.

    `weights` are left to `manas_jax.inference.pretrained.find`, which knows other addresses.
    """
    for name, value in vars(options).items():
        if name != "weights":
            check_local(*(value if isinstance(value, list) else [value]))


def as_path(path: str | os.PathLike) -> Path:
    """A path with the interface of `pathlib`, local or in a bucket.

    Raises:
      UserError: see `check`.
    """
    check(path)
    if not is_remote(path):
        return pathlib.Path(path)
    _set_up_gcsfs()
    from etils import epath

    return epath.Path(os.fspath(path))


@functools.cache
def _set_up_gcsfs() -> None:
    """Stops it from caching listings, as TensorStore and others write, and from logging errors."""
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # repeats its exceptions
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def file_system() -> fsspec.AbstractFileSystem:
    """That of all buckets, for what `pathlib` has no operation for."""
    _set_up_gcsfs()
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)  # as etils, to share connections


def bucket_and_name(path: str | os.PathLike) -> tuple[str, str]:
    """The parts of a path in a bucket; the name has no slash at its ends."""
    match = _ADDRESS.fullmatch(os.fspath(path))
    return match["bucket"], match["name"].strip("/")


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a path is a folder; False for what cannot be a path.

    Raises:
      UserError: the bucket cannot be reached.
    """
    if not is_remote(path):
        return os.path.isdir(path)
    with reading(path, "folder"):
        return as_path(path).is_dir()


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file, a folder or a link of this path.

    Raises:
      UserError: the bucket cannot be reached.
    """
    if not is_remote(path):
        return os.path.lexists(path)
    with reading(path, "file"):
        return as_path(path).exists()


def real_path(path: str | os.PathLike) -> str:
    """The path without links and without a slash at its end."""
    return os.fspath(as_path(path)) if is_remote(path) else os.path.realpath(path)


def walk(
    folder: str | os.PathLike, onerror: Callable[[OSError], object]
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """`os.walk` of a folder of either kind.

    Raises:
      UserError: the bucket cannot be reached.
    """
    if not is_remote(folder):
        for path, folders, files in os.walk(folder, onerror=onerror):
            yield pathlib.Path(path), folders, files
        return
    with reading(folder, "folder"):
        for path, folders, files in file_system().walk(os.fspath(folder)):
            # A folder that a console has created is an object without a name in it.
            yield as_path(f"{SCHEME}://{path}"), folders, list(filter(None, files))


def upload(file: pathlib.Path, path: str | os.PathLike) -> None:
    """Writes an object with the content of a local file, as a whole.

    Raises:
      OSError: it cannot be written.
    """
    with _os_errors():
        file_system().put_file(os.fspath(file), os.fspath(path))


@contextlib.contextmanager
def reading_copy(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A local file with the content of `path`: itself, or a temporary copy of an object.

    Raises:
      OSError: there is no such object, or it cannot be read.
    """
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    source = as_path(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / source.name
        with _os_errors():
            file_system().get_file(os.fspath(source), os.fspath(copy))
        yield copy


@contextlib.contextmanager
def writing_copy(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary local path; the file written there becomes the object `path` on exit.

    It replaces the object as a whole; after an error the object is unchanged.

    Raises:
      OSError: it cannot be written.
    """
    target = as_path(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / target.name
        yield copy
        upload(copy, target)


def move(source: Path, target: Path) -> None:
    """Moves a file or a folder to a path that is free."""
    if is_remote(source):
        file_system().mv(os.fspath(source), os.fspath(target), recursive=True)
    else:
        shutil.move(source, target)


class Mirrored:
    """A folder for a library that writes local files and appends to them.

    Attributes:
      local: the folder itself, or a temporary one whose files `upload` copies to the bucket.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = as_path(folder)
        self._temporary = tempfile.TemporaryDirectory() if is_remote(folder) else None
        self.local = pathlib.Path(self._temporary.name if self._temporary else self._folder)
        self._uploaded: dict[str, int] = {}

    def upload(self) -> None:
        """Copies the files that have grown since the last time."""
        if not self._temporary:
            return
        for file in self.local.iterdir():
            content = file.read_bytes()
            if len(content) > self._uploaded.get(file.name, 0):
                (self._folder / file.name).write_bytes(content)
                self._uploaded[file.name] = len(content)

    def close(self) -> None:
        """Removes the temporary folder, if there is one."""
        if self._temporary:
            self._temporary.cleanup()


def is_unreachable(error: BaseException) -> bool:
    """Whether an error says that a bucket cannot be reached, rather than what it holds."""
    return any(
        isinstance(link, (ConnectionError, TimeoutError))
        or type(link).__module__.startswith(_CLIENTS)
        or _STATUS.search(str(link))
        for link in error_chain(error)
    )


def storage_error(error: BaseException, path: str | os.PathLike) -> str | None:
    """Describes an error of the disk or the bucket that was written.

    Args:
      error: any error.
      path: the file or folder that was written, which need not exist.

    Returns:
      'the disk at MOUNT: REASON: WHAT TO DO', or 'gs://BUCKET: ...' likewise; None for any other
      error.
    """
    disk = disk_error(error, tempfile.gettempdir() if is_remote(path) else path)
    if disk or not is_remote(path):
        return disk and f"{disk}: free some space"
    bucket, _ = bucket_and_name(path)
    named = [link for link in error_chain(error) if f"{bucket}/" in str(link)]
    if not named and not is_unreachable(error):
        return None
    reason = one_line([*named, error][0])[:_MAX_REASON]
    return f"gs://{bucket}: {reason}: check the bucket, the network and your permissions"


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Makes an OSError of whatever the client of a bucket raises."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(one_line(error)) from error
