"""Exceptions whose message is for the user, and the description of disk errors."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import pathlib
import reprlib
from collections.abc import Iterator

_MAX_REASON = 200  # characters: some errors quote the file
_MAX_MESSAGE = 1200
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UserError(Exception):
    """A mistake that the user can correct.

    The message is one line that says what is wrong, which file or key it concerns and what to do.
    Commands print it without a traceback and exit with a non-zero status. Control characters, such
    as line breaks in names of files, are escaped.
    """

    def __init__(self, message: str = ""):
        if len(message) > _MAX_MESSAGE:  # it quotes a damaged file; its end says what to do
            message = f"{message[: _MAX_MESSAGE // 2]} ... {message[-_MAX_MESSAGE // 3 :]}"
        super().__init__(printable(message))


class Diverged(UserError):
    """A loss, or a value computed from diverged parameters, is no longer finite.

    Attributes:
      steps: that a search or training had done; 0 elsewhere.
    """

    def __init__(self, message: str = "", steps: int = 0):
        super().__init__(message)
        self.steps = steps


def printable(text: str) -> str:
    """The text on one line, with control characters, as in names of files, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short_repr(value: object) -> str:
    """The representation of a value, shortened if it is long."""
    try:
        return reprlib.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def check_extra(extra: str, *packages: str, subject: str = "") -> None:
    """Checks that what an extra of this package brings is installed.

    Args:
      extra: its name.
      packages: those of it that are needed.
      subject: what needs them, such as a flag; the message begins with it.

    Raises:
      UserError: a package is missing; names it and the extra.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UserError(f"{subject} needs {', '.join(missing)}; {install(extra)}".lstrip())


def install(extra: str) -> str:
    """How to install an extra, as the end of an error message."""
    return f"pip install 'manas_jax[{extra}]', or -r requirements-{extra}.txt in a checkout"


def one_line(error: BaseException) -> str:
    """The message of an error on one line; its type where it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


@contextlib.contextmanager
def reading(path: str | os.PathLike, what: str, hint: str = "") -> Iterator[None]:
    """Makes one line of whatever a reader raises within about a file that others may have written.

    Readers of damaged files raise errors of any kind: of the format, of types, of recursion, of
    memory.

    Args:
      path: the file, or its name for the user.
      what: what it should be, for the message.
      hint: what to do, if it is more than to get another file.

    Raises:
      UserError: in place of any other error; names the file.
    """
    hint = hint and f": {hint}"
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read this {what} ({one_line(error)}){hint}") from None
    except Exception as error:
        reason = one_line(error)[:_MAX_REASON]
        raise UserError(f"{path}: truncated, damaged or no {what} ({reason}){hint}") from None


def error_chain(error: BaseException) -> list[BaseException]:
    """The error, its cause, the cause of that, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    return chain


def disk_error(error: BaseException, path: str | os.PathLike) -> str | None:
    """Describes an error that means that a disk is full or read-only.

    Args:
      error: any error. Libraries may chain the system's error or pass on only its text; both are
        recognised.
      path: the file or folder that was written, which need not exist.

    Returns:
      'the disk at MOUNT: REASON', or None for any other error.
    """
    reasons = [
        os.strerror(number)
        for number in _DISK_ERRORS
        for link in error_chain(error)
        if getattr(link, "errno", None) == number or os.strerror(number) in str(link)
    ]
    if not reasons:
        return None
    path = pathlib.Path(path).absolute()
    mount = next(folder for folder in (path, *path.parents) if os.path.ismount(folder))
    return f"the disk at {mount}: {reasons[0]}"
