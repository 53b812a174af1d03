"""Errors of a full or read-only disk are recognised, whatever library raised them."""

import errno
import os
import pathlib

import pytest

from manas_jax.errors import UserError, disk_error, reading

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


@pytest.mark.parametrize(
    "error",
    [ValueError("two\nlines"), RecursionError(), MemoryError(), KeyError("a"), ZeroDivisionError(),
     UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), Exception("x" * 10_000)],
)  # fmt: skip
def test_whatever_a_reader_raises_is_one_line(error):
    message = r"^a\.x: truncated, damaged or no table \(.*\): do y$"
    with pytest.raises(UserError, match=message) as got, reading("a.x", "table", "do y"):
        raise error
    assert len(str(got.value)) < 300 and "\n" not in str(got.value)
    assert got.value.__suppress_context__


def test_reading_names_the_file_once():
    for message in ("a.x: no", "no"):
        with pytest.raises(UserError, match=r"^a\.x: no$"), reading("a.x", "table"):
            raise UserError(message)
    message = r"^a\.x: cannot read this table \(Permission denied\)$"
    with pytest.raises(UserError, match=message), reading("a.x", "table"):
        raise PermissionError(13, "Permission denied")


def test_control_characters_are_escaped():
    assert str(UserError("a\nb\x1b[2J.png\udcff: ü")) == "a\\nb\\x1b[2J.png\\udcff: ü"
