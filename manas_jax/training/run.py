"""The final training of a derived network, multi-to-one."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from ml_collections import ConfigDict

from manas_jax import cost
from manas_jax.config import LossWeights
from manas_jax.data import lazy_tf
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.models.network import (
    Network,
    inherit,
    init_variables,
    unstack_columns,
    variable_shapes,
)
from manas_jax.runtime import distributed, sharding, signals
from manas_jax.runtime.compilation import Ahead, Compilation, compile_all
from manas_jax.search import run as search_run
from manas_jax.space import Genotype
from manas_jax.training import build, loop, losses
from manas_jax.training.accumulation import in_parts, part_shapes
from manas_jax.training.evaluator import Validation
from manas_jax.training.metric_logger import MetricLogger, log_parameters
from manas_jax.training.state import TrainState, init_train
from manas_jax.workdir import provenance
from manas_jax.workdir.checkpoints import Checkpoints
from manas_jax.workdir.weights import load_derived, save_weights

PyTree = Any
ROLE = 2  # of the batches' seed
WEIGHTS = "weights.safetensors"  # in the workdir: what `manas_jax.derain` and others take


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """One step of the training, (state, batch) -> (state, terms); make it with `make_step`.

    Attributes:
      advance: what it does.
      compile: (state, batch) -> Compilation, ahead of the first step, for arguments like these,
        whose shapes will do.
    """

    advance: Callable[[TrainState, PyTree], tuple[TrainState, dict[str, jax.Array]]]
    compile: Callable[[TrainState, PyTree], Compilation]

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, jax.Array]]:
        """Moves the weights."""
        return self.advance(state, batch)


def make_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    weights: LossWeights,
    internal_from: int = 0,
    ema: float = 0.0,
    accumulate: int = 1,
    identity: str = "",
) -> TrainStep:
    """The training step.

    Args:
      network: the derived network.
      optimizer: moves the weights.
      weights: what each term of the objectives counts.
      internal_from: step from which on the internal loss counts.
      ema: decay of the moving average of weights and statistics; 0 for none.
      accumulate: parts that each batch is worked on in, see `accumulation.in_parts`.
      identity: tells this step from all others, see `compilation.Ahead`; empty keeps no programs.
    """
    objective = losses.scene_objective(network, weights, internal_from)

    def gradients(parameters, batch_stats, step, batch):
        gradient, (batch_stats, terms) = jax.grad(objective, has_aux=True)(
            parameters, None, batch_stats, step, batch
        )
        return {"gradient": gradient, "batch_stats": batch_stats, "terms": terms}

    def update(state, gradient, batch_stats):
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
        return state

    def step(state, batch):
        made = gradients(state.weights, state.batch_stats, state.step, batch)
        return update(state, made["gradient"], made["batch_stats"]), made["terms"]

    ahead = functools.partial(Ahead.of, identity=identity)
    if accumulate == 1:
        whole = ahead(step, donate=0)
        return TrainStep(whole, whole.compile)

    part_gradients = ahead(gradients)
    whole_update = ahead(update, donate=(0, 2))

    def step_in_parts(state, batch):
        def on(part, before):
            batch_stats = before["batch_stats"] if before else state.batch_stats
            return part_gradients(state.weights, batch_stats, state.step, part)

        made = in_parts(on, batch, accumulate, carried="batch_stats")
        return whole_update(state, made["gradient"], made["batch_stats"]), made["terms"]

    def compile_part(state, batch):
        part = part_shapes(batch, accumulate)
        where = state.weights, state.batch_stats, state.step, part
        moved, made = compile_all(
            (whole_update, (state, state.weights, state.batch_stats)), (part_gradients, where)
        )
        return made.times(accumulate) + moved

    return TrainStep(step_in_parts, compile_part)


def train(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Trains the network of a genotype; goes on from the newest checkpoint.

    Leaves checkpoints and curves in `train/` and, at the end, `train/summary.json` and the weights
    of the best checkpoint in `weights.safetensors`.

    Raises:
      UserError: no genotype, no data, a diverged loss, a folder that cannot be written.
      Stopped: a signal came; the state is saved.
    """
    options = config.train
    folder = pathlib.Path(workdir) / "train"
    mesh = sharding.make_mesh(config.devices, config.height_shards)
    genotype = find_genotype(config, workdir)
    network = build.network(config, genotype)
    optimizer = build.train_optimizer(options)

    splits = load_splits(config.data, options.crop)
    training = splits.weights + splits.architecture

    @functools.cache
    def source(rollbacks):
        return build.batches(config, training, "train", ROLE, mesh, rollbacks)

    def batches(start, rollbacks):
        return source(rollbacks).iterate(start, options.steps)

    source(0)  # mistakes in the data come out before anything is compiled
    validation = Validation(network, splits.validation, config.data, options.validation_crop, mesh)

    step = make_step(
        network,
        optimizer,
        weights=build.loss_weights(config),
        internal_from=round(options.internal_warmup * options.steps),
        ema=options.ema,
        accumulate=options.accumulate,
        identity=build.identity(config, "train", genotype),
    )

    def score(state):
        return validation(state.variables)

    with Checkpoints(folder / "checkpoints") as checkpoints:

        def newest():
            state = _restore(checkpoints, network, optimizer, bool(options.ema), mesh)
            if state is not None:
                return state
            variables = _first_variables(config, workdir, network)
            return sharding.replicate(
                init_train(variables, optimizer, average=bool(options.ema)), mesh
            )

        state = newest()
        start = int(state.step)
        if start == options.steps and (folder / "summary.json").exists():
            logging.info("train: all %d steps are done", start)
            if not (pathlib.Path(workdir) / WEIGHTS).exists():
                keep_weights(config, workdir)
            return
        if start:
            logging.info("train: goes on from step %d of %d", start, options.steps)
        log_parameters("train", state.weights, folder / "parameters.txt")
        lazy_tf.import_in_background()
        with signals.interruptible():
            compilation = step.compile(state, build.batch_shapes(config, options, mesh))
        logging.info("train: compiled a step; %s", compilation)
        schedule = build.weight_schedule(options)
        with MetricLogger(folder, config, options, checkpoints, start, schedule) as recorder:
            state = loop.run(
                state,
                newest=newest,
                batches=batches,
                advance=lambda state, batch: step(state, sharding.shard_batch(batch, mesh)),
                recorder=recorder,
                score=score,
                max_rollbacks=config.max_rollbacks,
            )

        facts = {
            "devices": mesh.devices.size,
            "parameters": cost.derived(genotype, 1, 1).parameters,
            "best_step": checkpoints.best_step,
        }
        summary = recorder.summary(compilation, score(state)) | facts
        distributed.broadcast_from_primary(lambda: write_json(folder / "summary.json", summary))
    keep_weights(config, workdir)


def keep_weights(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Writes the best weights, without optimizer and schedule, as one file to be used elsewhere."""
    network, variables, step = load(config, workdir)
    made = provenance.describe()
    origin = {key: made[key] for key in ("command", "commit", "date")}
    origin |= {"step": str(step), "seed": str(config.seed), "source": config.data.source}
    file = pathlib.Path(workdir) / WEIGHTS
    distributed.broadcast_from_primary(
        lambda: save_weights(file, variables, network.genotype, origin)
    )
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

    def found():
        if not file.exists():
            raise UserError(
                f"{file} is missing: run the search first (stage=search) or set train.genotype=FILE"
            )
        return Genotype.load(file).to_json()

    return Genotype.from_json(distributed.broadcast_from_primary(found))


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
    mesh = sharding.make_mesh()
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
    supernet = unstack_columns(search_run.load(config, workdir).variables, network.space)
    return inherit(supernet, variable_shapes(network))
