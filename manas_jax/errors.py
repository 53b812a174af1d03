"""Exceptions whose message is for the user, and the description of disk errors."""

from __future__ import annotations

import errno
import os
import pathlib

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UserError(Exception):
    """A mistake that the user can correct.

    The message is one line that says what is wrong, which file or key it concerns and what to do.
    Commands print it without a traceback and exit with a non-zero status.
    """


class Diverged(UserError):
    """A loss, or a value computed from diverged parameters, is no longer finite."""


def one_line(error: BaseException) -> str:
    """The message of an error on one line; its type where it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def disk_error(error: BaseException, path: str | os.PathLike) -> str | None:
    """Describes an error that means that a disk is full or read-only.

    Args:
      error: any error. Libraries may chain the system's error or pass on only its text; both are
        recognised.
      path: the file or folder that was written, which need not exist.

    Returns:
      'the disk at MOUNT: REASON', or None for any other error.
    """
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    reasons = [
        os.strerror(number)
        for number in _DISK_ERRORS
        for link in chain
        if getattr(link, "errno", None) == number or os.strerror(number) in str(link)
    ]
    if not reasons:
        return None
    path = pathlib.Path(path).absolute()
    mount = next(folder for folder in (path, *path.parents) if os.path.ismount(folder))
    return f"the disk at {mount}: {reasons[0]}"
