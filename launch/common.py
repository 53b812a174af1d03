"""What local.py and gke.py share: checks of arguments, and printing of commands."""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

PREEMPTED = 75  # as in manas_jax.runtime.signals: saved, the same command resumes
CANCELLED = 130  # Ctrl-C
ROOT = pathlib.Path(__file__).resolve().parent.parent

_WORDS = "token|secret|passw|credential|api[-_]?key"
_SECRET = re.compile(rf"[^=]*({_WORDS})[^=]*", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/\s]*(?=@)")  # of a URL, with the password
_QUERY = re.compile(rf"([?&][^=&\s]*(?:{_WORDS}|sig)[^=&\s]*=)[^&\s]*", re.IGNORECASE)
_SET_HERE = ("--coordinator", "--processes", "--process", "--distributed")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exits with status 2."""
        self.exit(2, f"error: {message} ({self.prog} --help)\n")


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's own arguments, and those after the first `--`, which are the worker's."""
    argv = list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    return argv[:cut], argv[cut + 1 :]


def check_run_flags(flags: Sequence[str], folder: pathlib.Path) -> None:
    """Exits with status 2 if `python -m manas_jax.main` could not run with these flags.

    Args:
      flags: the arguments after `--` on the launcher's command line.
      folder: where a relative --config starts.
    """
    names = {flag.split("=", 1)[0] for flag in flags}
    for name in ("--config", "--workdir"):
        value = next((flag.split("=", 1)[1] for flag in flags if flag.startswith(name + "=")), "")
        if not value:
            fail(f"{name}=... is missing after --")
        if name == "--config":
            file = value.split(":")[0]
            named = re.fullmatch(r"\w+", file) and (ROOT / "configs" / f"{file}.py").is_file()
            if not (named or (folder / file).is_file()):
                fail(f"--config={value}: no such file")
    if taken := sorted(names.intersection(_SET_HERE)):
        fail(f"{taken[0]} is set by the launcher: leave it out")


def redacted(flags: Sequence[str]) -> list[str]:
    """The flags for printing, with *** for secrets.

    These are the values of flags, of variables and in URLs that are named like one, and what stands
    before the host in a URL.
    """
    printed = []
    for before, flag in zip(["", *flags], flags, strict=False):
        name, equals, _ = flag.partition("=")
        if before.startswith("-") and _SECRET.fullmatch(before):
            printed.append("***")
        elif equals and _SECRET.fullmatch(name):
            printed.append(f"{name}=***")
        else:
            printed.append(_QUERY.sub(r"\1***", _USER.sub("***", flag)))
    return printed


def shell_line(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The command, quoted for a shell, after assignments of its environment."""
    before = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    return " ".join([*before, shlex.join(command)])


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number of {least} or more")
        return int(text)

    return parse


def restartable(status: int) -> bool:
    """Whether the same command would resume: after a save, or death by a signal."""
    return status == PREEMPTED or (128 < status < 192 and status != CANCELLED)


def fail(message: str) -> NoReturn:
    """Exits with one line and status 2, before anything is started."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
