"""Splitting scenes: by scene, and by photograph where one photograph yields several scenes.

So no background is ever on two sides of a split.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from manas_jax.data.scene import Scene
from manas_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Splits:
    """Disjoint scenes: for the weights, for the architecture, for choosing, for reporting."""

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
    """Splits training scenes into those for validation, for the architecture and for the weights.

    A pure function of its arguments. Scenes cut from one photograph stay together, so where there
    are such, validation and architecture may get a few scenes more than asked for.

    Args:
      training: the scenes to split.
      test: handed through; none of it enters the other three.
      validation_scenes: how many to hold out, 0 for none.
      architecture_share: share of the others that the architecture sees, 0 to 1.
      seed: which shuffle.
      limit: if positive, keep at most that many for weights and architecture together.

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
        groups = _cut(groups, limit)
    remaining = sum(map(len, groups))
    architecture, groups = _take(groups, round(architecture_share * remaining))
    starved = (architecture_share > 0 and not architecture) or (
        architecture_share < 1 and not groups
    )
    if len(_flat(validation)) < validation_scenes or not remaining or starved:
        raise UserError(
            f"{len(training)} training scenes of {len(photographs)} photographs are too few to "
            f"hold out {validation_scenes} for validation and share the rest between weights and "
            f"architecture (limit {limit or 'none'}); reduce data.validation_scenes or add pictures"
        )
    return Splits(_flat(groups), _flat(architecture), _flat(validation), tuple(test))


def train_and_test(
    splits: dict[str, tuple[Scene, ...]],
) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """(training scenes, those of all other splits), the latter named after their split if many."""
    tests = {split: scenes for split, scenes in splits.items() if split != "train"}
    named = (
        dataclasses.replace(scene, name=f"{split}/{scene.name}") if len(tests) > 1 else scene
        for split, scenes in tests.items()
        for scene in scenes
    )
    return splits.get("train", ()), tuple(named)


def _take(groups: list[list[Scene]], wanted: int) -> tuple[list, list]:
    """Splits off the shortest head of `groups` that holds `wanted` scenes."""
    held = np.concatenate([[0], np.cumsum([len(group) for group in groups], dtype=int)])
    cut = int(np.searchsorted(held, wanted))
    return groups[:cut], groups[cut:]


def _cut(groups: list[list[Scene]], limit: int) -> list[list[Scene]]:
    """The first `limit` scenes of `groups`, still in groups."""
    excess = max(0, sum(map(len, groups)) - limit)
    return [*groups[:-1], groups[-1][: len(groups[-1]) - excess]] if groups else groups


def _flat(groups: Iterable[Iterable[Scene]]) -> tuple[Scene, ...]:
    return tuple(scene for group in groups for scene in group)
