"""What the searches that train a supernet have in common."""

from __future__ import annotations

import functools
import os
from typing import Any

from ml_collections import ConfigDict

from manas_jax.data.pipeline import Batches
from manas_jax.data.sources import load_splits, split_crop
from manas_jax.data.splits import Splits
from manas_jax.models.network import Network
from manas_jax.runtime import sharding
from manas_jax.search.selection import SupernetEvaluator
from manas_jax.search.step import SearchStep
from manas_jax.space import Genotype
from manas_jax.training import build, losses, stage
from manas_jax.training.build import Role
from manas_jax.training.restore import load_genotype, load_search, newest_or_fresh_search_state
from manas_jax.training.validation import Validation

Batch = Any


class Supernet:
    """A supernet that a search trains, with its batches, step and scores.

    Attributes:
      network: the supernet.
      mesh: the devices that it is trained on.
      step: of the search.
      validation: scores a state on the validation scenes.
      source: (role, rollbacks=0) -> the `Batches` of a role.
    """

    def __init__(self, config: ConfigDict, splits: Splits | None = None):
        """Compiles nothing, and finds the mistakes in the data.

        Args:
          config: of the run.
          splits: its scenes; None to load them.

        Raises:
          UserError: no data, or batches that cannot be made of them.
        """
        options, self._config = config.search, config
        self.mesh = sharding.make_mesh(config.devices, config.height_shards)
        self.network = build.network(config, mesh=self.mesh)
        self._splits = splits or load_splits(config.data, split_crop(config, "search"))
        self.source = functools.cache(self._batches)
        for role in (Role.SEARCH_WEIGHTS, Role.SEARCH_ARCHITECTURE):
            self.source(role)
        self.validation = Validation(
            self.network,
            self._splits.validation,
            config.data,
            options.validation_crop,
            self.mesh,
        )
        self.step = make_step(config, self.network, self.mesh.devices.size)

    def _batches(self, role: Role, rollbacks: int = 0) -> Batches:
        return build.batches(self._config, self._splits, role, self.mesh, rollbacks)

    def shard(self, batch: Batch) -> Batch:
        """A batch on the devices."""
        return sharding.shard_batch(batch, self.mesh)

    def first_batches(self, role: Role) -> list[Batch]:
        """The batches that `search.choice_batches` asks for, on the devices."""
        batches = self.source(role).iterate(0, self._config.search.choice_batches)
        return list(map(self.shard, batches))

    def run(self, workdir: str | os.PathLike, **stage_fields: Any) -> Genotype:
        """Runs the stage from its newest checkpoint to its end, and returns its genotype.

        Args:
          workdir: of the run.
          **stage_fields: those of `stage.Stage` in which the searches differ.

        Raises:
          UserError: a diverged loss, a folder that cannot be written.
          Stopped: a signal came; the state is saved.
        """
        fresh = functools.partial(
            newest_or_fresh_search_state, self._config, self.network, self.mesh
        )
        described = stage.Stage(
            "search", self.mesh, restore_or_init=fresh, result="genotype.json", **stage_fields
        )
        stage.run(self._config, workdir, described)
        return load_genotype(workdir)


def make_step(config: ConfigDict, network: Network, devices: int) -> SearchStep:
    """The step of a configuration's search over this number of devices."""
    options = config.search
    return SearchStep(
        network,
        *build.search_optimizers(config),
        hypergradient=options.hypergradient,
        loss_weights=build.loss_weights(config),
        complexity_model=losses.ComplexityModel(network.space, *config.objectives.complexity_size),
        internal_from=round(options.internal_warmup * options.steps),
        xi=options.xi,
        epsilon=options.epsilon,
        microbatches=options.accumulate,
        fuse=options.fuse,
        devices=devices,
    )


def evaluator(config: ConfigDict, workdir: str | os.PathLike, batches: int) -> SupernetEvaluator:
    """An evaluator of architectures in the supernet of a finished search.

    Args:
      config: of the search.
      workdir: of the search.
      batches: number of batches of architecture scenes to evaluate on, and of weight scenes to
        recalibrate BatchNorm on.

    Raises:
      UserError: see `restore.load_search`.
    """
    state = load_search(config, workdir)
    splits = load_splits(config.data, split_crop(config, "search"))
    mesh = sharding.make_mesh(1)
    architecture_batches, weight_batches = (
        list(build.batches(config, splits, role, mesh).iterate(0, batches))
        for role in (Role.SEARCH_ARCHITECTURE, Role.SEARCH_WEIGHTS)
    )
    return SupernetEvaluator(config, state, architecture_batches, weight_batches)
