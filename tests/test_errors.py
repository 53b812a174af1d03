"""Errors of a full or read-only disk are recognised, whatever library raised them."""

import errno
import os
import pathlib

import pytest

from manas_jax.errors import disk_error

READ_ONLY = "NOT_FOUND: Error writing: Read-only file system [os_error_code='30']"


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (ValueError(READ_ONLY), errno.EROFS),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), errno.EDQUOT),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), errno.ENOSPC),
    ],
)
def test_disk_error_names_the_mount_point(monkeypatch, error, number):
    monkeypatch.setattr(os.path, "ismount", lambda path: pathlib.Path(path).name in ("", "disk"))
    assert disk_error(error, "/disk/run/file") == f"the disk at /disk: {os.strerror(number)}"
    wrapped = RuntimeError("the writer failed")
    wrapped.__cause__ = error
    assert disk_error(wrapped, "/disk/run/file") == f"the disk at /disk: {os.strerror(number)}"


def test_other_errors_are_no_disk_errors(tmp_path):
    assert disk_error(ValueError("shape"), tmp_path) is None
    assert disk_error(OSError(errno.ENOENT, os.strerror(errno.ENOENT)), tmp_path) is None
