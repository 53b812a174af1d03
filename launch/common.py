"""What local.py and gke.py share: how commands are shown, and what is checked before they run."""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

ROOT = pathlib.Path(__file__).resolve().parent.parent

_SECRET = re.compile(r"token|secret|passw|credential|api[-_]?key", re.IGNORECASE)
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


def shown(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """One line for a shell; values whose names speak of secrets are shown as ***."""
    words = [f"{name}={value}" for name, value in (environment or {}).items()]
    words.extend(command)
    hidden = [
        "***" if before.startswith("-") and "=" not in before and _SECRET.search(before) else word
        for before, word in zip(["", *words], words, strict=False)
    ]
    return " ".join(_quoted(word) for word in hidden)


def _quoted(word: str) -> str:
    name, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]+", name):
        return shlex.quote(word)
    return f"{name}=" + ("***" if _SECRET.search(name) else shlex.quote(value) if value else "")


def fail(message: str) -> NoReturn:
    """Ends with one line and status 2, before anything was started."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
