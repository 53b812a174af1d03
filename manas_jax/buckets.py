"""Paths with a scheme, such as gs://BUCKET/NAME."""

from __future__ import annotations

import argparse
import os
import re
import urllib.parse
import urllib.request
from typing import Any

from manas_jax.errors import UserError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)  # pathlib makes one slash of two


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
