"""A local copy of a folder of data in a bucket."""

from __future__ import annotations

import concurrent.futures
import datetime
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import filelock
from absl import logging

from manas_jax.buckets import bucket_and_name, check, file_system, is_remote
from manas_jax.errors import UserError, one_line
from manas_jax.files import replacing
from manas_jax.runtime.compilation import user_cache_folder

_REQUESTS = 16  # at the same time


@functools.cache  # once a process, so that all stages of a run see the same files
def local_folder(root: str, cache_dir: str = "", below: str = "") -> str:
    """The folder itself, or a copy of it if it is in a bucket.

    Only files that are new or have changed in the bucket are fetched, and those that are gone from
    it are removed. Copies stay for later runs. Processes of one machine share a copy and wait for
    whichever updates it.

    Args:
      root: a local folder, or one in a bucket.
      cache_dir: where copies are; by default this package's folder in the user's cache folder.
      below: the only part of the folder that is copied.

    Returns:
      The path of the folder or of the copy.

    Raises:
      UserError: the bucket has no such folder or cannot be reached, or the copy cannot be written.
    """
    if not is_remote(root):
        return root
    check(root)
    source = "/".join(filter(None, (*bucket_and_name(root), below)))
    try:
        top = pathlib.Path(os.path.expanduser(cache_dir) or user_cache_folder()) / "data"
        copy = top / source
        top.mkdir(parents=True, exist_ok=True)
        # One lock for all copies, as one may be inside of another.
        with filelock.FileLock(top / ".lock"):
            _update(source, copy)
    except UserError:
        raise
    except Exception as error:  # of the disk, or of the clients of the bucket
        raise UserError(
            f"data.root={root}: cannot be copied to this machine ({one_line(error)}); check the "
            "bucket, and data.cache_dir, which names a folder for the copy"
        ) from None
    return str(top / "/".join(filter(None, bucket_and_name(root))))


def _update(source: str, copy: pathlib.Path) -> None:
    found = {
        pathlib.PurePosixPath(name).relative_to(source): entry
        for name, entry in file_system().find(source, detail=True).items()
        if not name.endswith("/")  # a folder that a console has created
    }
    if climbing := [name for name in found if ".." in name.parts]:
        raise UserError(
            f"data.root: gs://{source}/{climbing[0]} leads out of the folder: remove it"
        )
    if not found:
        raise UserError(f"data.root: gs://{source} holds nothing")
    changed = [name for name, entry in found.items() if not _is_current(copy / name, entry)]
    size = sum(found[name]["size"] for name in changed) / 2**20
    logging.info(
        "data: gs://%s has %d files, %d of them (%.0f MiB) to copy to %s",
        source, len(found), len(changed), size, copy,
    )  # fmt: skip

    def fetch(name: pathlib.PurePosixPath) -> None:
        target, entry = copy / name, found[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            file_system().get_file(entry["name"], str(temporary))
            os.utime(temporary, (_changed_at(entry), _changed_at(entry)))

    with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(fetch, changed))
    for file in copy.rglob("*"):
        if file.is_file() and file.relative_to(copy) not in found:
            file.unlink()


def _is_current(file: pathlib.Path, entry: Mapping[str, Any]) -> bool:
    try:
        status = file.stat()
    except FileNotFoundError:
        return False
    return (status.st_size, status.st_mtime) == (entry["size"], _changed_at(entry))


def _changed_at(entry: Mapping[str, Any]) -> int:
    """When an object was written, in whole seconds, which all file systems hold."""
    written = entry["mtime"]
    if isinstance(written, str):
        written = datetime.datetime.fromisoformat(written)
    return int(written.timestamp())
