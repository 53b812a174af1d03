"""Where a result comes from: command, commit, machine, versions, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

from manas_jax.files import write_json

_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-cpu", "tensorflow")


def note(file: pathlib.Path, stage: str) -> None:
    """Adds this start to the file's list of starts, the newest last."""
    starts = json.loads(file.read_text()) if file.exists() else []
    write_json(file, [*starts, {"stage": stage, **describe()}])


def describe() -> dict[str, Any]:
    """A JSON-ready description of this process and the machine that it runs on."""
    return {
        "command": _command(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "devices": sorted({device.device_kind for device in jax.devices()}),
            "device_count": jax.device_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "python": platform.python_version(),
        "versions": {name: v for name in _VERSIONS if (v := _version(name))},
    }


def commit() -> str:
    """The commit that the package lies in, with '+changes' if files differ; '' outside of git."""
    folder = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except OSError:
        return ""


def _command() -> str:
    """The command line, with folders outside of the working directory reduced to their names."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["python", "-m", module.name] if module else ["python", os.path.relpath(sys.argv[0])]
    return " ".join([*start, *map(_private, sys.argv[1:])])


def _private(argument: str) -> str:
    """Absolute paths say more about a machine than about a result."""
    flag, equals, value = argument.rpartition("=")
    return f"{flag}{equals}.../{os.path.basename(value)}" if os.path.isabs(value) else argument


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
