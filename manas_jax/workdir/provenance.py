"""Origin of a result: command, commit, machine, versions, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from typing import Any

import jax
from absl import logging

from manas_jax.buckets import Path, is_remote, move
from manas_jax.files import write_json
from manas_jax.runtime.checkout import commit

_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-cpu", "tensorflow")


def append(file: Path, stage: str) -> None:
    """Appends a description of this start to a JSON file that lists all of them.

    It is but a note: a file that is damaged is set aside, with a warning.
    """
    try:
        starts = list(json.loads(file.read_text()))
    except FileNotFoundError:
        starts = []
    except (OSError, ValueError, RecursionError, TypeError):
        starts, aside = [], file.with_name(f"damaged-{file.name}")
        logging.warning("%s is damaged: moved to %s", file, aside)
        move(file, aside)
    write_json(file, [*starts, {"stage": stage, **describe()}])


def describe() -> dict[str, Any]:
    """A JSON-ready description of this process and its machine."""
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


def device() -> str:
    """The kind of the accelerator in use, or else the processor."""
    first = jax.devices()[0]
    return _processor() if first.platform == "cpu" else first.device_kind


def _command() -> str:
    """The command line, with absolute paths reduced to their last names."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    start = (
        ["python", "-m", module.name.removesuffix(".__main__")]
        if module
        else ["python", os.path.relpath(sys.argv[0])]
    )
    return " ".join([*start, *map(_private, sys.argv[1:])])


def _private(argument: str) -> str:
    """Shortens a path that describes a machine or a bucket rather than a result."""
    flag, equals, value = argument.rpartition("=")
    located = os.path.isabs(value) or is_remote(value)
    return f"{flag}{equals}.../{os.path.basename(value)}" if located else argument


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
