"""What the stages of a run left in their workdir."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epy

from manas_jax.buckets import Path, as_path, is_folder, is_remote, reading_copy
from manas_jax.errors import UserError
from manas_jax.space import Genotype, SearchSpace
from manas_jax.workdir.weights import WEIGHTS_FILE, load_derived

with epy.lazy_imports():  # of the extra `train`, whose absence a command reports when it starts
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.util import tensor_util

STAGES = ("search", "train")
PICTURE_KINDS = ("rainy", "restored", "clean")

Curve = tuple[np.ndarray, np.ndarray]
"""Steps (n,), ascending, and values (n, ...)."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
      summary: its summary.json.
      events: tag -> steps and values of its TensorBoard events.
    """

    summary: Mapping[str, Any]
    events: Mapping[str, Curve]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run; what it has not written yet is empty or None.

    Attributes:
      name: of the workdir.
      config: config.json.
      genotype: the derived network.
      stages: by name, those of `STAGES` that have begun.
      scores: evaluate/scores.json.
      pictures: name -> kind of `PICTURE_KINDS` -> file.
    """

    name: str
    config: Mapping[str, Any]
    genotype: Genotype | None
    stages: Mapping[str, Stage]
    scores: Mapping[str, Any]
    pictures: Mapping[str, Mapping[str, Path]]

    @property
    def space(self) -> SearchSpace | None:
        """The genotype's space, before there is one the configuration's; None if unknown."""
        if self.genotype is not None:
            return self.genotype.space
        fields = self.config.get("space")
        if not isinstance(fields, Mapping):
            return None
        try:
            return SearchSpace.from_dict(fields)
        except UserError:  # of an earlier version, or with candidates that are not registered
            return None


def read(workdir: str | os.PathLike) -> Run:
    """Reads a workdir.

    Raises:
      UserError: the folder is missing or holds no run, or one of its files is damaged.
    """
    folder = as_path(workdir)
    if not is_folder(folder):
        raise UserError(f"{folder}: no such folder; give the --workdir of a run")
    stages = {
        name: Stage(_read_json(folder / name / "summary.json"), read_events(folder / name))
        for name in STAGES
    }
    run = Run(
        name=(folder if is_remote(folder) else folder.resolve()).name,
        config=_read_json(folder / "config.json"),
        genotype=_read_genotype(folder),
        stages={name: s for name, s in stages.items() if s.summary or s.events},
        scores=_read_json(folder / "evaluate" / "scores.json"),
        pictures=_find_pictures(folder / "evaluate" / "pictures"),
    )
    if not (run.config or run.genotype or run.stages or run.scores):
        raise UserError(f"{folder}: nothing to report; give the --workdir of a run that has begun")
    return run


def _read_genotype(folder: Path) -> Genotype | None:
    """The genotype that a search found, or else that of the trained weights."""
    if (file := folder / "genotype.json").exists():
        return Genotype.load(file)
    if (file := folder / WEIGHTS_FILE).exists():
        return load_derived(file, compare=False)[1]
    return None


def read_events(folder: str | os.PathLike) -> dict[str, Curve]:
    """Reads all TensorBoard event files of a folder.

    A resumed run leaves several files and repeats some steps. Per tag, a later file replaces what
    earlier ones hold from its own first step on; within a file the last value of a step counts.

    Returns:
      tag -> steps (n,) int64, ascending, and values (n, ...); empty if there are no event files.
    """
    files = []
    for path in as_path(folder).glob("events.out.tfevents.*"):
        with reading_copy(path) as copy:
            events = list(event_file_loader.EventFileLoader(str(copy)).Load())
        if events:
            files.append((events[0].wall_time, path.name, events))

    points: dict[str, dict[int, np.ndarray]] = {}
    for _, _, events in sorted(files, key=lambda file: file[:2]):
        for tag, new in _points(events).items():
            earlier = {s: v for s, v in points.get(tag, {}).items() if s < min(new)}
            points[tag] = earlier | new

    curves = {}
    for tag, values in points.items():
        steps = sorted(s for s in values if values[s].shape == values[max(values)].shape)
        curves[tag] = np.array(steps), np.stack([values[s] for s in steps])
    return curves


def _points(events: list) -> dict[str, dict[int, np.ndarray]]:
    """tag -> step -> value of one event file."""
    points: dict[str, dict[int, np.ndarray]] = {}
    for event in events:
        for value in event.summary.value:
            if value.HasField("tensor"):
                array = tensor_util.make_ndarray(value.tensor)
                if np.issubdtype(array.dtype, np.number):
                    points.setdefault(value.tag, {})[event.step] = array
    return points


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); remove or replace it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; remove or replace it")
    return content


def _find_pictures(folder: Path) -> dict[str, dict[str, Path]]:
    pictures: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.png")):
        name, _, kind = path.stem.rpartition("_")
        if name and kind in PICTURE_KINDS:
            pictures.setdefault(name, {})[kind] = path
    return pictures
