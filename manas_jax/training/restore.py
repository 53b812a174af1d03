"""What other stages and commands read of the workdir of a search or a training."""

from __future__ import annotations

import os
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from manas_jax import cost
from manas_jax.buckets import as_path
from manas_jax.errors import UserError
from manas_jax.models.network import Network
from manas_jax.models.variables import variable_shapes
from manas_jax.runtime import distributed, sharding
from manas_jax.space import Genotype
from manas_jax.training import build
from manas_jax.training.state import SearchState, TrainState, init_search, init_train
from manas_jax.workdir.checkpoints import Checkpoints
from manas_jax.workdir.weights import load_derived

PyTree = Any


def fresh_search_state(config: ConfigDict, network: Network) -> SearchState:
    """The state that a search of the configuration starts from, on the default device."""
    return init_search(network, *build.search_optimizers(config), config.seed)


def newest_or_fresh_search_state(
    config: ConfigDict, network: Network, mesh: Mesh, checkpoints: Checkpoints
) -> SearchState:
    """The newest search state of the checkpoints, or a fresh one, on all devices of the mesh.

    Raises:
      UserError: all checkpoints are damaged, or are those of another network.
    """
    fresh = sharding.replicate(fresh_search_state(config, network), mesh)
    return checkpoints.restore(fresh) or fresh


def load_search(config: ConfigDict, workdir: str | os.PathLike) -> SearchState:
    """The newest search state of a workdir, on the host.

    Raises:
      UserError: nothing was searched here, or the checkpoint is damaged.
    """
    folder = as_path(workdir) / "search" / "checkpoints"
    if not folder.exists():
        raise UserError(f"{folder} is missing: run the search first (stage=search)")
    fresh = fresh_search_state(config, build.network(config))
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(sharding.replicate(fresh, sharding.make_mesh()))
    if state is None:
        raise UserError(f"{folder} holds no checkpoint: run the search first (stage=search)")
    return jax.device_get(state)


def load_trained(config: ConfigDict, workdir: str | os.PathLike) -> tuple[Network, PyTree, int]:
    """The trained network of a workdir.

    Returns:
      The derived network, its variables with the best validation score, and their step.

    Raises:
      UserError: nothing was trained here, or the checkpoint is damaged.
    """
    folder = as_path(workdir) / "train" / "checkpoints"
    network = build.network(config, find_genotype(config, workdir))
    if not folder.exists():
        raise UserError(f"{folder} is missing: train first (stage=train)")
    with Checkpoints(folder) as checkpoints:
        template = train_template(config, network, sharding.make_mesh())
        state = checkpoints.restore_best(template)
        if state is None:
            raise UserError(f"{folder} holds no checkpoint: train first (stage=train)")
        return network, jax.device_get(state.variables), int(state.step)


def train_template(config: ConfigDict, network: Network, mesh: Mesh) -> TrainState:
    """Shapes of a training state, replicated over a mesh."""
    optimizer = build.train_optimizer(config.train)
    shapes = jax.eval_shape(
        lambda variables: init_train(variables, optimizer, ema=bool(config.train.ema)),
        variable_shapes(network),
    )
    return sharding.replicated_shapes(shapes, mesh)


def search_template(config: ConfigDict, network: Network, mesh: Mesh) -> SearchState:
    """Shapes of a search state, replicated over a mesh."""
    shapes = jax.eval_shape(lambda: fresh_search_state(config, network))
    return sharding.replicated_shapes(shapes, mesh)


def find_genotype(config: ConfigDict, workdir: str | os.PathLike) -> Genotype:
    """The configuration's genotype (or that of its weights), or the one that the search found.

    Raises:
      UserError: there is none, or it is damaged.
    """
    if config.train.genotype:
        genotype = Genotype.load(config.train.genotype)
        cost.check_parameters(cost.derived(genotype, 1, 1), config.train.genotype)
        return genotype
    if config.train.weights:
        return load_derived(config.train.weights)[1]
    return load_genotype(workdir)


def load_genotype(workdir: str | os.PathLike) -> Genotype:
    """The genotype that a search found, read by the primary process for all of them.

    Raises:
      UserError: there is none, or it is damaged.
    """
    file = as_path(workdir) / "genotype.json"

    def read():
        if not file.exists():
            raise UserError(
                f"{file} is missing: run the search first (stage=search) or set train.genotype=FILE"
            )
        return Genotype.load(file).to_json()

    return Genotype.from_json(distributed.broadcast_from_primary(read))
