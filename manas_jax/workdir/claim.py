"""A workdir belongs to one configuration, which it holds as `config.json`."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from manas_jax.config import default
from manas_jax.errors import UserError
from manas_jax.files import write_json

# Keys that may change between two starts in one workdir: they do not alter what is computed, except
# for the rounding that comes with another number of devices.
FREE_KEYS = (
    "stage", "log_every", "devices", "height_shards", "max_rollbacks", "evaluate.pictures",
    "data.cache_gib", "data.cache_dir", "search.fuse",
)  # fmt: skip


def claim_workdir(config: ConfigDict, workdir: str | os.PathLike) -> pathlib.Path:
    """Creates a workdir, or checks that an existing one was created with the same config.

    The config is written to `config.json`. `FREE_KEYS` may differ.

    Returns:
      The folder.

    Raises:
      UserError: it cannot be written, or was created with another config; names the keys that
        differ.
    """
    workdir = pathlib.Path(workdir)
    fields = json.loads(config.to_json_best_effort())
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if file.exists() and (changed := _changed(json.loads(file.read_text()), fields)):
            raise UserError(
                f"{workdir} was created with another config ({'; '.join(changed)}): "
                "restore those values or give another --workdir"
            )
        write_json(file, fields)
    except ValueError:  # not JSON, not text or not an object
        raise UserError(f"{file} is damaged: repair it or give another --workdir") from None
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror or error}): give another"
        ) from None
    return workdir


def _changed(before: Any, now: Mapping[str, Any]) -> list[str]:
    """The keys that differ, `FREE_KEYS` apart, with both values.

    Raises:
      ValueError: `before` is not an object.
    """
    if not isinstance(before, dict):
        raise ValueError("not an object")
    # A key newer than the workdir had its default, which means "as before".
    defaults = json.loads(default().to_json_best_effort())
    old = dict(_leaves(defaults)) | dict(_leaves(before))
    new = dict(_leaves(now))
    return [
        f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
        for key in sorted(old.keys() | new.keys())
        if key not in FREE_KEYS and old.get(key) != new.get(key)
    ]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested mapping under their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
