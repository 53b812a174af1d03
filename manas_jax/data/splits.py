"""Splits of scenes by background.

Scenes of one photograph stay together, so no background is in more than one split.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from manas_jax.data.scene import Scene
from manas_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Splits:
    """Disjoint sets of scenes.

    Attributes:
      weights: to train the weights on.
      architecture: to train the architecture on.
      validation: to select checkpoints by.
      test: to report scores on.
    """

    weights: tuple[Scene, ...]
    architecture: tuple[Scene, ...]
    validation: tuple[Scene, ...]
    test: tuple[Scene, ...]


def split(
    training: Sequence[Scene],
    *,
    test: Sequence[Scene] = (),
    validation_scenes: int,
    architecture_share: float,
    seed: int,
    limit: int = 0,
) -> Splits:
    """Splits training scenes into validation, architecture and weights.

    A pure function of its arguments. As scenes of one photograph stay together, validation and
    architecture may get a few scenes more than requested.

    Args:
      training: the scenes to split.
      test: test scenes, returned unchanged.
      validation_scenes: how many to hold out, 0 for none.
      architecture_share: share of the remaining scenes that train the architecture, 0 to 1.
      seed: of the shuffle.
      limit: if positive, at most so many scenes for weights and architecture together.

    Raises:
      UserError: a value is out of range or there are too few scenes.
    """
    if validation_scenes < 0 or not 0 <= architecture_share <= 1 or limit < 0:
        raise UserError(
            "data.validation_scenes and data.limit must not be negative and "
            "data.architecture_share must lie between 0 and 1"
        )
    photographs = collections.defaultdict(list)
    for scene in training:
        photographs[scene.photograph or scene.name].append(scene)
    groups = list(photographs.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    groups = [groups[i] for i in order]

    validation, groups = _take(groups, validation_scenes)
    if limit:
        groups, _ = _take(groups, limit)
        groups = _truncate(groups, limit)
    remaining = sum(map(len, groups))
    architecture, groups = _take(groups, round(architecture_share * remaining))
    one_is_empty = (architecture_share > 0 and not architecture) or (
        architecture_share < 1 and not groups
    )
    if len(_flat(validation)) < validation_scenes or not remaining or one_is_empty:
        raise UserError(
            f"{len(training)} training scenes of {len(photographs)} photographs are too few to "
            f"hold out {validation_scenes} for validation and share the rest between weights and "
            f"architecture (limit {limit or 'none'}); reduce data.validation_scenes or add images"
        )
    return Splits(_flat(groups), _flat(architecture), _flat(validation), tuple(test))


def train_and_test(
    splits: Mapping[str, tuple[Scene, ...]],
) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Joins published splits: 'train', and all others as the test split.

    Where there are several others, their scenes are named SPLIT/NAME.

    Returns:
      Training scenes, test scenes.
    """
    tests = {split: scenes for split, scenes in splits.items() if split != "train"}
    named = (
        dataclasses.replace(scene, name=f"{split}/{scene.name}") if len(tests) > 1 else scene
        for split, scenes in tests.items()
        for scene in scenes
    )
    return splits.get("train", ()), tuple(named)


def _take(groups: list[list[Scene]], count: int) -> tuple[list, list]:
    """Splits off as many leading groups as hold at least `count` scenes."""
    total = np.concatenate([[0], np.cumsum([len(group) for group in groups], dtype=int)])
    end = int(np.searchsorted(total, count))
    return groups[:end], groups[end:]


def _truncate(groups: list[list[Scene]], limit: int) -> list[list[Scene]]:
    """Shortens the last group so that all of them hold at most `limit` scenes."""
    excess = max(0, sum(map(len, groups)) - limit)
    return [*groups[:-1], groups[-1][: len(groups[-1]) - excess]] if groups else groups


def _flat(groups: Iterable[Iterable[Scene]]) -> tuple[Scene, ...]:
    return tuple(scene for group in groups for scene in group)
