"""What local.py and gke.py share: how commands are shown, and what is checked before they run."""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

PREEMPTED = (
    75  # as manas_jax.runtime.signals has it: saved, and the same command goes on from there
)
CANCELLED = 130  # Ctrl-C
ROOT = pathlib.Path(__file__).resolve().parent.parent

_SECRET = re.compile(r"-[^=]*(token|secret|passw|credential|api[-_]?key)[^=]*", re.IGNORECASE)
_SET_HERE = ("--coordinator", "--processes", "--process", "--distributed")


class Parser(argparse.ArgumentParser):
    """argparse that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Ends with status 2."""
        self.exit(2, f"error: {message} ({self.prog} --help)\n")


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's own arguments, and what follows the first `--`, which is the worker's."""
    argv = list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    return argv[:cut], argv[cut + 1 :]


def check_run_flags(flags: Sequence[str], folder: pathlib.Path) -> None:
    """Ends with status 2 if `python -m manas_jax.main` could not run with these flags.

    Args:
      flags: what follows `--` on the launcher's command line.
      folder: what a relative --config is relative to.
    """
    names = {flag.split("=", 1)[0] for flag in flags}
    for name in ("--config", "--workdir"):
        value = next((flag.split("=", 1)[1] for flag in flags if flag.startswith(name + "=")), "")
        if not value:
            fail(f"{name}=... is missing after --")
        if name == "--config" and not (folder / value.split(":")[0]).is_file():
            fail(f"--config={value}: no such file")
    if taken := sorted(names.intersection(_SET_HERE)):
        fail(f"{taken[0]} is set by the launcher: leave it out")


def hidden(flags: Sequence[str]) -> list[str]:
    """The flags as they may be printed: *** for values whose names speak of secrets."""
    shown_as = []
    for before, flag in zip(["", *flags], flags, strict=False):
        name, equals, _ = flag.partition("=")
        if _SECRET.fullmatch(before):
            shown_as.append("***")
        elif equals and _SECRET.fullmatch(name):
            shown_as.append(f"{name}=***")
        else:
            shown_as.append(flag)
    return shown_as


def shown(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """One line that a shell would read as these words."""
    before = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    return " ".join([*before, shlex.join(command)])


def count(least: int) -> Callable[[str], int]:
    """For argparse: a whole number of at least so much."""

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number of {least} or more")
        return int(text)

    return whole


def restartable(status: int) -> bool:
    """Whether the same command, started again, goes on: after a save, or death by a signal."""
    return status == PREEMPTED or (128 < status < 192 and status != CANCELLED)


def fail(message: str) -> NoReturn:
    """Ends with one line and status 2, before anything was started."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
