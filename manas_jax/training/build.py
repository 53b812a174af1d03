"""Builds what a configuration describes: network, optimizers, batches."""

from __future__ import annotations

import dataclasses
import enum
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from manas_jax import ops
from manas_jax.config import LossWeights, search_budget
from manas_jax.data import pipeline
from manas_jax.data.pipeline import Batches
from manas_jax.data.scene import Scene
from manas_jax.data.splits import Splits
from manas_jax.errors import UserError
from manas_jax.models.network import Network
from manas_jax.ops.norm import BatchNorm
from manas_jax.runtime import sharding
from manas_jax.space import Genotype, SearchSpace
from manas_jax.training.budget import dual_ascent

PyTree = Any
MUON_RATE = 5.0  # times Adam's: its updates have singular values of about 1
EPS_ROOT = 1e-16  # the square of Adam's epsilon


class Role(enum.IntEnum):
    """What batches are for; its number is part of their seed."""

    SEARCH_WEIGHTS = 0
    SEARCH_ARCHITECTURE = 1
    TRAIN = 2

    @property
    def stage(self) -> str:
        """The section of the configuration with patches and scenes of a batch."""
        return "train" if self is Role.TRAIN else "search"

    def scenes(self, splits: Splits) -> tuple[Scene, ...]:
        """The scenes that the batches are drawn from."""
        return {
            Role.SEARCH_WEIGHTS: splits.weights,
            Role.SEARCH_ARCHITECTURE: splits.architecture,
            Role.TRAIN: splits.weights + splits.architecture,
        }[self]


def network(
    config: ConfigDict, genotype: Genotype | None = None, mesh: Mesh | None = None
) -> Network:
    """The supernet of the configured space, or the derived network of a genotype.

    Args:
      config: of the run.
      genotype: None for the supernet.
      mesh: the devices that it is trained on; None for one of JAX's default backend.
    """
    dtype = None if config.network.dtype == "float32" else jnp.dtype(config.network.dtype)
    space = genotype.space if genotype else SearchSpace(**config.space)
    options = config.network
    devices = jax.devices()[:1] if mesh is None else mesh.devices.flatten()
    kernels = ops.default(dtype, devices[0].platform)
    if options.batch_norm_group:
        groups = max(1, len(devices) // options.batch_norm_group)
        norm = functools.partial(BatchNorm, groups=groups)
        kernels = dataclasses.replace(kernels, norm=norm)
    return Network(space, genotype, kernels, options.remat, options.scan)


def weight_schedule(options: ConfigDict) -> optax.Schedule:
    """Constant, then cosine to the final learning rate; without `decay` cosine from the start."""
    decay_steps = max(1, round(options.get("decay", 1.0) * options.steps))
    final = options.final_learning_rate / options.learning_rate if options.learning_rate else 1.0
    cosine = optax.cosine_decay_schedule(options.learning_rate, decay_steps, final)
    return lambda step: cosine(jnp.maximum(step - (options.steps - decay_steps), 0))


def search_weight_optimizer(options: ConfigDict) -> optax.GradientTransformation:
    """The paper's SGD with momentum, or one of `train_optimizer`.

    SGD's weight decay is part of the gradient, as in PyTorch. Second-order hypergradients are
    derivatives of the update, which without `eps_root` are infinite where a gradient is zero.
    """
    if options.optimizer != "sgd":
        first_order = options.hypergradient == "first_order"
        return train_optimizer(options, eps_root=0.0 if first_order else EPS_ROOT)
    return optax.chain(
        *([optax.clip_by_global_norm(options.clip)] if options.clip else []),
        optax.add_decayed_weights(options.weight_decay),
        optax.sgd(weight_schedule(options), momentum=options.momentum),
    )


def architecture_optimizer(options: ConfigDict) -> optax.GradientTransformation:
    """Adam at a constant rate; weight decay is part of the gradient, as in PyTorch."""
    return optax.chain(
        optax.add_decayed_weights(options.architecture_weight_decay),
        optax.adam(options.architecture_learning_rate, *options.architecture_betas),
    )


def search_optimizers(
    config: ConfigDict,
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Those of weights and architecture; the latter holds the budget, if there is one."""
    options, budget = config.search, search_budget(config)
    weights, architecture = search_weight_optimizer(options), architecture_optimizer(options)
    if options.method == "evolution":
        weights = skip_unused(weights)
    if budget is None:
        return weights, architecture
    held = dual_ascent(SearchSpace(**config.space), budget, options.budget_rate)
    return weights, optax.chain(held, architecture)


def skip_unused(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that leaves a parameter with a gradient of zero as it is, and its state too.

    So a step along a path of a supernet leaves the parameters of other paths as they are. Momentum
    would move them on, and Muon by as much as the gradient of their last path did. The hidden
    channels that a narrower width leaves out are in one parameter with the others, and do move.
    """

    def is_masked(leaf):
        return isinstance(leaf, optax.MaskedNode)

    def update(grads, state, params=None):
        used = jax.tree.map(jnp.any, grads)
        updates, new_state = optimizer.update(grads, state, params)
        updates = jax.tree.map(lambda u, x: jnp.where(u, x, 0), used, updates)
        moves = optax.tree.map_params(
            optimizer,
            lambda x, u: x if is_masked(x) else u,
            state,
            used,
            transform_non_params=lambda _: True,
            is_leaf=is_masked,
        )
        return updates, jax.tree.map(jnp.where, moves, new_state, state)

    return optax.GradientTransformation(optimizer.init, update)


def train_optimizer(options: ConfigDict, eps_root: float = 0.0) -> optax.GradientTransformation:
    """Adam or Muon, with decoupled weight decay where that is set.

    Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) takes the
    kernels of convolutions, as matrices from patches to channels, at `MUON_RATE` times the learning
    rate. All other parameters are Adam's, with Nesterov momentum like Muon's.

    Args:
      options: of the stage.
      eps_root: what Adam adds to second moments before it takes their root.
    """
    schedule = weight_schedule(options)
    if options.optimizer == "adam":
        optimizer = optax.adamw(schedule, eps_root=eps_root, weight_decay=options.weight_decay)
    else:
        optimizer = optax.contrib.muon(
            lambda step: MUON_RATE * schedule(step),
            weight_decay=options.weight_decay,
            adam_weight_decay=options.weight_decay,
            adam_eps_root=eps_root,
            adam_learning_rate=schedule,
            muon_weight_dimension_numbers=_kernels_as_matrices,
        )
    return optax.chain(
        *([optax.clip_by_global_norm(options.clip)] if options.clip else []), optimizer
    )


def _kernels_as_matrices(params: PyTree) -> PyTree:
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    return jax.tree.map(lambda x: matrix if x.ndim == 4 else None, params)


def loss_weights(config: ConfigDict) -> LossWeights:
    """Coefficients of the loss terms."""
    names = [field.name for field in dataclasses.fields(LossWeights)]
    return LossWeights(**{name: config.objectives[name] for name in names})


def batches(
    config: ConfigDict, splits: Splits, role: Role, mesh: Mesh, rollbacks: int = 0
) -> Batches:
    """This host's batches for a role.

    Each role has its own seed, and another one after each rollback.

    Raises:
      UserError: see `check_batches`, or an image cannot be decoded.
    """
    options = config[role.stage]
    check_sharding(config, role.stage, mesh)
    entropy = [config.seed, int(role), *([rollbacks] if rollbacks else [])]
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)
    return Batches(
        role.scenes(splits),
        config.data,
        batch_scenes=options.scenes,
        crop=options.crop,
        seed=seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def check_batches(config: ConfigDict, splits: Splits, role: Role, mesh: Mesh) -> None:
    """Checks that `batches` can be made, without decoding an image.

    Raises:
      UserError: they cannot; see `Batches`, or the devices cannot share them.
    """
    options = config[role.stage]
    check_sharding(config, role.stage, mesh)
    if not role.scenes(splits) and Role.TRAIN.scenes(splits):
        raise UserError(
            f"data.architecture_share = {config.data.architecture_share:g} leaves a search no "
            "scenes for the weights, or none for the architecture: give a share between 0 and 1"
        )
    pipeline.check(
        role.scenes(splits),
        config.data,
        batch_scenes=options.scenes,
        crop=options.crop,
        process_count=jax.process_count(),
    )


def check_sharding(config: ConfigDict, stage: str, mesh: Mesh) -> None:
    """Checks that the devices can share a batch of a stage ('search' or 'train').

    Raises:
      UserError: they cannot; names numbers of scenes, or of devices in a group, that would do.
    """
    options = config[stage]
    sharding.check_group("network.batch_norm_group", config.network.batch_norm_group, mesh)
    sharding.check_batch(f"{stage}.scenes", options.scenes, mesh, options.accumulate)
    sharding.check_height(f"{stage}.crop", options.crop, mesh)


def batch_shapes(config: ConfigDict, options: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """Shapes and shardings of a global batch, for compiling ahead of the data."""
    scenes, versions, crop = options.scenes, config.data.versions, options.crop
    shapes = {"rainy": (scenes, versions, crop, crop, 3), "clean": (scenes, crop, crop, 3)}
    return {
        key: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=sharding.batch_sharding(mesh, len(shape))
        )
        for key, shape in shapes.items()
    }
