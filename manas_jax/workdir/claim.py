"""A workdir belongs to one configuration and to one set of data.

It holds them as `config.json` and `inputs.json`. The latter lists the scenes with the lengths of
their files, and digests of the files that keys name: these may move, but not change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from manas_jax.buckets import Path, as_path
from manas_jax.config import default
from manas_jax.data.scene import Scene, length
from manas_jax.data.splits import Splits
from manas_jax.errors import UserError, reading
from manas_jax.files import first_few, sha256, write_json

FILE_KEYS = ("train.genotype", "train.weights", "train.feature_network", "search.latency")
"""Keys that name a file, which is identified by its content."""

# Keys that may change between two starts in one workdir: they do not alter what is computed, except
# for the rounding that comes with another number of devices, or are identified by `inputs.json`.
# The number of devices counts where BatchNorm takes statistics over groups of them. It also counts,
# as does whether a step is fused, where one device would compute a single path: over several, or
# fused, the statistics of other blocks move as well.
FREE_KEYS = (
    "stage", "note", "log_every", "devices", "height_shards", "max_rollbacks", "evaluate.pictures",
    "data.cache_gib", "data.cache_dir", "search.fuse", "data.root", *FILE_KEYS,
)  # fmt: skip


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """What `config.json` of a workdir holds.

    Raises:
      UserError: it is missing or damaged.
    """
    file = as_path(workdir) / "config.json"
    with reading(file, "configuration", "repair it or give another --workdir"):
        fields = json.loads(file.read_text())
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        return fields


def check_config(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Checks that a workdir is new or was created with the same config, `FREE_KEYS` apart.

    Raises:
      UserError: it was not, names the keys that differ; or its `config.json` is damaged.
    """
    if not (as_path(workdir) / "config.json").exists():
        return
    if changed := _changed(read_config(workdir), _fields(config)):
        raise UserError(
            f"{workdir} was created with another config ({'; '.join(changed)}): "
            "restore those values or give another --workdir"
        )


def claim_workdir(config: ConfigDict, workdir: str | os.PathLike) -> Path:
    """Creates a workdir, or checks that an existing one was created with the same config.

    The config is written to `config.json`. `FREE_KEYS` may differ.

    Returns:
      The folder.

    Raises:
      UserError: see `check_config`, or it cannot be written.
    """
    workdir = as_path(workdir)
    check_config(config, workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", _fields(config))
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror or error}): give another"
        ) from None
    return workdir


def claim_inputs(
    config: ConfigDict, workdir: str | os.PathLike, splits: Mapping[str, Splits]
) -> None:
    """Records what a run reads, or checks that it is what earlier starts in the workdir have read.

    Other test scenes are warned about, as nothing is computed from them but their own scores; other
    training scenes are refused where scenes are trained or validated on.

    Args:
      config: of the run.
      workdir: of the run.
      splits: the scenes of each stage that is to run.

    Raises:
      UserError: the data or a file of `FILE_KEYS` changed; says what.
    """
    file = as_path(workdir) / "inputs.json"
    found = next(iter(splits.values()))
    now = {
        "files": _digests(config),
        "training": _listed(found.weights + found.architecture + found.validation),
        "test": _listed(found.test),
    }
    if config.data.source == "photographs":
        now["training"] = {}  # tiles, whose sizes depend on the crop of the stage
    before = _recorded(file)
    trains = set(splits) != {"evaluate"} or config.evaluate.split == "validation"
    if not trains and before:
        del now["training"]  # nothing is computed from it
    for kind, items in now.items():
        recorded = before.get(kind, {})
        # A kind that no start has had, such as test scenes that came later, is no change; but a
        # file is.
        if not (recorded or (before and kind == "files")):
            continue
        if not (change := _difference(recorded, items)):
            continue
        what = "input files" if kind == "files" else f"{kind} data"
        message = f"{workdir}: {what} are not those of earlier starts ({change})"
        if kind != "test":
            raise UserError(f"{message}: restore them or give another --workdir")
        logging.warning("%s", message)
    write_json(file, before | {kind: items for kind, items in now.items() if items})


def _recorded(file: Path) -> dict[str, dict[str, str]]:
    """What `inputs.json` lists, by kind; empty without it."""
    if not file.exists():
        return {}
    hint = "remove it if the data are as they were, or give another --workdir"
    with reading(file, "list of data", hint):
        return {kind: dict(items) for kind, items in json.loads(file.read_text()).items()}


def _listed(scenes: Sequence[Scene]) -> dict[str, str]:
    """The lengths of the images of each scene, the clean one first."""
    return {
        scene.name: " ".join(str(length(image)) for image in (scene.clean, *scene.rainy))
        for scene in scenes
    }


def _digests(config: ConfigDict) -> dict[str, str]:
    """Digests of the files that `FILE_KEYS` name."""
    digests = {}
    for key in FILE_KEYS:
        section, name = key.split(".")
        if name := config[section][name]:
            with reading(f"{key}={name}", "file"):
                digests[key] = sha256(name)
    return digests


def _difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What was added, removed or changed, with examples; '' if nothing was."""
    kinds = {
        "more": [key for key in now if key not in before],
        "missing": [key for key in before if key not in now],
        "changed": [key for key in now if before.get(key, now[key]) != now[key]],
    }
    parts = [f"{len(keys)} {kind}: {first_few(keys)}" for kind, keys in kinds.items() if keys]
    return "; ".join(parts)


def _fields(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys that differ, `FREE_KEYS` apart, with both values."""
    # A key newer than the workdir had its default, which means "as before".
    defaults = json.loads(default().to_json_best_effort())
    old = dict(_leaves(defaults)) | dict(_leaves(before))
    new = dict(_leaves(now))
    free = set(FREE_KEYS)
    if new.get("network.batch_norm_group"):
        free -= {"devices"}
    if new.get("search.method") == "evolution":
        free -= {"devices", "search.fuse"}
    return [
        f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} here"
        for key in sorted(old.keys() | new.keys())
        if key not in free and old.get(key) != new.get(key)
    ]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested mapping under their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
