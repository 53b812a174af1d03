"""Checks before the first step: mistakes of later stages come out before the first."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from manas_jax import cost, metrics, registry
from manas_jax.buckets import Path, as_path
from manas_jax.config import WITHOUT_SUPERNET, search_budget
from manas_jax.data.scene import Scene
from manas_jax.data.sources import load_splits, log_splits, split_crop
from manas_jax.data.splits import Splits
from manas_jax.errors import UserError, one_line
from manas_jax.models.candidates import Edge
from manas_jax.runtime import distributed, sharding
from manas_jax.space import SearchSpace
from manas_jax.training import build
from manas_jax.training.restore import find_genotype
from manas_jax.training.validation import validation_side
from manas_jax.workdir import provenance
from manas_jax.workdir.unet_file import load_unet


def check_stages(
    config: ConfigDict, workdir: str | os.PathLike, stages: Sequence[str]
) -> dict[str, Splits]:
    """Checks the data and the files of all stages, and logs the scenes of each split.

    Args:
      config: of the run.
      workdir: of the run.
      stages: those to run, in order.

    Returns:
      The scenes of each stage.

    Raises:
      UserError: a stage could not run to its end; names the key, the file or the scene.
    """
    if "search" in stages:
        check_budget(config)
    mesh = sharding.make_mesh(config.devices, config.height_shards)
    check_candidates(SearchSpace.from_dict(config.space))
    sections = {stage: _section(config, stage) for stage in stages}
    crops = {stage: split_crop(config, section) for stage, section in sections.items()}
    by_crop: dict[int, Splits] = {}
    for crop in crops.values():
        if crop not in by_crop:
            by_crop[crop] = load_splits(config.data, crop)
    splits = {stage: by_crop[crop] for stage, crop in crops.items()}
    if stages:
        log_splits(splits[stages[0]])  # those of the others have the same images
    for stage in stages:
        if stage == "evaluate":
            evaluated_scenes(config, splits[stage])
        else:
            _check_training(config, splits[stage], sections[stage], mesh)
    distributed.broadcast_from_primary(lambda: _check_files(config, as_path(workdir), stages))
    return splits


def _section(config: ConfigDict, stage: str) -> str:
    """The section of the configuration whose batches a stage takes."""
    trains_alone = config.search.method in WITHOUT_SUPERNET
    return "search" if stage == "search" and not trains_alone else "train"


def check_training(config: ConfigDict, stage: str) -> None:
    """Checks the data and the batches of a stage that trains.

    Raises:
      UserError: it could not train; names the key or the scene.
    """
    mesh = sharding.make_mesh(config.devices, config.height_shards)
    section = _section(config, stage)
    _check_training(config, load_splits(config.data, split_crop(config, section)), section, mesh)


def check_candidates(space: SearchSpace) -> None:
    """Traces all registered candidates at the sizes of a space, and counts their parameters.

    Raises:
      UserError: one fails, changes the shape of its input, or has not the parameters of its cost.
    """
    names = [candidate.name for candidate in registry.others()]
    for name, branch in itertools.product(names, range(len(space.channels))):
        channels, edge = space.channels[branch] // space.attention_groups, Edge((name,))
        x = jnp.zeros((1, 8, 8, channels))
        try:
            made, variables = jax.eval_shape(
                lambda x, edge=edge: edge.init_with_output(jax.random.key(0), x, True), x
            )
        except Exception as error:  # of somebody's code
            raise UserError(
                f"candidate {name}: {type(error).__name__}: {one_line(error)}"
            ) from error
        found = sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {})))
        stated = cost.edge(space, branch, name, 8, 8).parameters
        if made.shape != x.shape:
            raise UserError(
                f"candidate {name}: its gate makes {made.shape} of {x.shape}; return what is "
                "broadcast to the shape of the input"
            )
        if found != stated:
            raise UserError(
                f"candidate {name}: has {found} parameters for {channels} channels, but its cost "
                f"says {stated}: correct the cost"
            )


def evaluated_scenes(config: ConfigDict, splits: Splits) -> tuple[Scene, ...]:
    """The scenes to evaluate on.

    Raises:
      UserError: there are none, or one is too small to be scored.
    """
    chosen: tuple[Scene, ...] = getattr(splits, config.evaluate.split)
    if not chosen:
        raise UserError(
            f"data.root={config.data.root}: no {config.evaluate.split} images to evaluate; add a "
            "test folder, set evaluate.split=validation, or leave out the evaluation, stage=train"
        )
    for scene in chosen:
        if min(scene.size) < metrics.SSIM_WINDOW:
            height, width = scene.size
            raise UserError(
                f"{config.evaluate.split} scene {scene.name}: {height}x{width} pixels are too "
                f"small to be scored; scores need {metrics.SSIM_WINDOW} pixels: remove it"
            )
    return chosen


def check_budget(config: ConfigDict) -> None:
    """Checks that a budget of milliseconds was measured on the device in use.

    Warns of a budget that no network of the space needs.

    Raises:
      UserError: it was not; names both.
    """
    budget = search_budget(config)
    if budget is None:
        return
    if budget.latency:
        budget.latency.check_device(provenance.device())
    _, most_expensive = budget.extremes(SearchSpace.from_dict(config.space))
    if budget.limit > most_expensive:
        logging.warning(
            "search.budget = %g %s is %.3g times the cost of the most expensive network of the "
            "space, so that one is what the search will end with; 0 sets no budget",
            config.search.budget, config.search.budget_of, budget.limit / most_expensive,
        )  # fmt: skip


def _check_training(config: ConfigDict, splits: Splits, section: str, mesh: sharding.Mesh) -> None:
    for role in build.Role:
        if role.stage == section:
            build.check_batches(config, splits, role, mesh)
    validation_side(splits.validation, config[section].validation_crop, mesh)


def _check_files(config: ConfigDict, workdir: Path, stages: Sequence[str]) -> None:
    """Checks what the stages read that no earlier one of them writes."""
    given = config.train.genotype or config.train.weights
    if given or (set(stages) - {"search"} and "search" not in stages):
        find_genotype(config, workdir)
    if "train" in stages and config.train.feature_network:
        load_unet(config.train.feature_network)
    for reader, needs, written_by in (
        ("train", config.train.inherit, "search"),
        ("evaluate", True, "train"),
    ):
        folder = workdir / written_by / "checkpoints"
        if reader in stages and needs and written_by not in stages and not folder.exists():
            raise UserError(f"{folder} is missing: run stage={written_by} first")
