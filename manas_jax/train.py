"""The final training of a derived network, multi-to-one."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from ml_collections import ConfigDict

from manas_jax import build, objectives, provenance, search, sharding
from manas_jax.checkpoint import Checkpoints, write_json
from manas_jax.compilation import Ahead
from manas_jax.data import scenes
from manas_jax.errors import UserError
from manas_jax.inference.weights import load_derived, save_weights
from manas_jax.models.network import (
    Network,
    inherit,
    init_variables,
    unstack_columns,
    variable_shapes,
)
from manas_jax.recorder import Recorder, log_parameters
from manas_jax.space import Genotype
from manas_jax.state import TrainState, init_train
from manas_jax.validation import Validation

PyTree = Any
ROLE = 2  # of the batches' seed
WEIGHTS = "weights.safetensors"  # in the workdir: what `manas_jax.derain` and others take


def make_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    weights: objectives.Weights,
    internal_from: int = 0,
    ema: float = 0.0,
) -> Ahead:
    """The training step: (state, batch) -> (state, terms).

    Args:
      network: the derived network.
      optimizer: moves the weights.
      weights: what each term of the objectives counts.
      internal_from: step from which on the internal loss counts.
      ema: decay of the moving average of weights and statistics; 0 for none.
    """
    objective = objectives.scene_objective(network, weights, internal_from)

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, jax.Array]]:
        gradient, (batch_stats, terms) = jax.grad(objective, has_aux=True)(
            state.weights, None, state.batch_stats, state.step, batch
        )
        updates, moved = optimizer.update(gradient, state.optimizer, state.weights)
        new = optax.apply_updates(state.weights, updates)
        state = TrainState(state.step + 1, new, batch_stats, moved, state.average)
        if ema:
            # Early on the average is over what there has been, not over the fresh weights.
            decay = jnp.minimum(ema, state.step / (state.step + 10))
            latest = {"params": new, "batch_stats": batch_stats}
            state = state.replace(
                average=optax.incremental_update(latest, state.average, 1 - decay)
            )
        return state, terms

    return Ahead(jax.jit(step, donate_argnums=0))


def train(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Trains the network of a genotype; goes on from the newest checkpoint.

    Leaves checkpoints and curves in `train/` and, at the end, `train/summary.json` and the weights
    of the best checkpoint in `weights.safetensors`.

    Raises:
      UserError: no genotype, no data, a diverged loss, a folder that cannot be written.
    """
    options = config.train
    folder = pathlib.Path(workdir) / "train"
    mesh = sharding.make_mesh(config.devices)
    genotype = find_genotype(config, workdir)
    network = build.network(config, genotype)
    optimizer = build.train_optimizer(options)

    splits = scenes.load(config.data, options.crop)
    batches = build.batches(config, splits.weights + splits.architecture, "train", ROLE, mesh)
    validation = Validation(network, splits.validation, config.data, options.validation_crop, mesh)

    with Checkpoints(folder / "checkpoints") as checkpoints:
        state = _restore(checkpoints, network, optimizer, bool(options.ema), mesh)
        if state is None:
            variables = _first_variables(config, workdir, network)
            state = sharding.replicate(
                init_train(variables, optimizer, average=bool(options.ema)), mesh
            )
        start = int(state.step)
        if start == options.steps and (folder / "summary.json").exists():
            logging.info("train: all %d steps are done", start)
            if not (pathlib.Path(workdir) / WEIGHTS).exists():
                keep_weights(config, workdir)
            return
        log_parameters("train", state.weights, folder / "parameters.txt")

        step = make_step(
            network,
            optimizer,
            weights=build.loss_weights(config),
            internal_from=round(options.internal_warmup * options.steps),
            ema=options.ema,
        )
        compilation = step.compile(state, build.batch_shapes(config, options, mesh))
        logging.info("train: compiled a step; %s", compilation)

        def score():
            return validation(state.variables)

        schedule = build.weight_schedule(options)
        recorder = Recorder(folder, config, options, checkpoints, start, schedule)
        with recorder:
            for number, batch in enumerate(batches.iterate(start, options.steps), start + 1):
                state, terms = step(state, sharding.put_batch(batch, mesh))
                recorder(number, terms)
                recorder.checkpoint(number, state, score)

        facts = {
            "devices": mesh.devices.size,
            "parameters": genotype.cost(1, 1).parameters,
            "best_step": checkpoints.best_step,
        }
        write_json(folder / "summary.json", recorder.summary(compilation, score()) | facts)
    keep_weights(config, workdir)


def keep_weights(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Writes the best weights, without optimizer and schedule, as one file to be used elsewhere."""
    network, variables, step = load(config, workdir)
    made = provenance.describe()
    origin = {key: made[key] for key in ("command", "commit", "date")}
    origin |= {"step": str(step), "seed": str(config.seed), "source": config.data.source}
    file = pathlib.Path(workdir) / WEIGHTS
    save_weights(file, variables, network.genotype, origin)
    logging.info("train: weights of step %d: %s", step, file)


def find_genotype(config: ConfigDict, workdir: str | os.PathLike) -> Genotype:
    """The configuration's genotype (or that of its weights), or the one the search left behind.

    Raises:
      UserError: there is none, or it is damaged.
    """
    if config.train.genotype:
        return Genotype.load(config.train.genotype)
    if config.train.weights:
        return load_derived(config.train.weights)[1]
    file = pathlib.Path(workdir) / "genotype.json"
    if not file.exists():
        raise UserError(
            f"{file} is missing: run the search first (stage=search) or set train.genotype=FILE"
        )
    return Genotype.load(file)


def load(config: ConfigDict, workdir: str | os.PathLike) -> tuple[Network, PyTree, int]:
    """The trained network of a workdir.

    Returns:
      The derived network, its variables with the best validation score, and their step.

    Raises:
      UserError: nothing was trained here, or the checkpoint is damaged.
    """
    folder = pathlib.Path(workdir) / "train" / "checkpoints"
    network = build.network(config, find_genotype(config, workdir))
    optimizer = build.train_optimizer(config.train)
    mesh = sharding.make_mesh(1)
    if not folder.exists():
        raise UserError(f"{folder} is missing: train first (stage=train)")
    with Checkpoints(folder) as checkpoints:
        state = _restore(checkpoints, network, optimizer, bool(config.train.ema), mesh, best=True)
        if state is None:
            raise UserError(f"{folder} holds no checkpoint: train first (stage=train)")
        return network, jax.device_get(state.variables), int(state.step)


def _restore(checkpoints, network, optimizer, average, mesh, *, best=False) -> TrainState | None:
    """The newest (or best) state on the mesh, or None."""
    shapes = jax.eval_shape(
        lambda v: init_train(v, optimizer, average=average), variable_shapes(network)
    )
    where = sharding.replicated(mesh)
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes
    )
    return (checkpoints.restore_best if best else checkpoints.restore)(template)


def _first_variables(config: ConfigDict, workdir: str | os.PathLike, network: Network) -> PyTree:
    """Fresh variables, those of a file, or with `train.inherit` those of the supernet."""
    if config.train.weights:
        return load_derived(config.train.weights)[0]
    if not config.train.inherit:
        return init_variables(network, config.seed)
    supernet = unstack_columns(search.load(config, workdir).variables, network.space)
    return inherit(supernet, variable_shapes(network))
