"""The final training of a derived network, multi-to-one."""

from __future__ import annotations

import functools
import os
from collections import Counter
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from manas_jax import cost
from manas_jax.buckets import as_path
from manas_jax.data.sources import load_splits, split_crop
from manas_jax.data.splits import Splits
from manas_jax.models.network import Network
from manas_jax.models.variables import (
    inherit,
    init_variables,
    unstack_columns,
    variable_shapes,
)
from manas_jax.runtime import distributed, sharding
from manas_jax.training import build, feature_loss, stage
from manas_jax.training.restore import find_genotype, load_search, load_trained, train_template
from manas_jax.training.state import init_train
from manas_jax.training.step import TrainStep
from manas_jax.training.validation import Validation
from manas_jax.workdir import provenance
from manas_jax.workdir.weights import WEIGHTS_FILE, load_derived, save_weights

PyTree = Any


def train(config: ConfigDict, workdir: str | os.PathLike, splits: Splits | None = None) -> None:
    """Trains the network of a genotype; resumes from the newest checkpoint.

    Leaves checkpoints and curves in `train/` and, at the end, `train/summary.json` and the weights
    of the best checkpoint in `weights.safetensors`.

    Args:
      config: of the run.
      workdir: of the run.
      splits: its scenes; None to load them.

    Raises:
      UserError: no genotype, no data, a diverged loss, a folder that cannot be written.
      Stopped: a signal came; the state is saved.
    """
    options = config.train
    mesh = sharding.make_mesh(config.devices, config.height_shards)
    genotype = find_genotype(config, workdir)
    network = build.network(config, genotype, mesh)

    splits = splits or load_splits(config.data, split_crop(config, "train"))

    @functools.cache
    def source(rollbacks):
        return build.batches(config, splits, build.Role.TRAIN, mesh, rollbacks)

    source(0)  # mistakes in the data come out before anything is compiled
    validation = Validation(network, splits.validation, config.data, options.validation_crop, mesh)
    train_step = make_step(config, network)

    def batches(start, rollbacks):
        frozen = frozen_stats(options, start)
        return zip(source(rollbacks).iterate(start, options.steps), frozen, strict=True)

    def step_fn(state, batch):
        patches, frozen = batch
        return train_step(state, sharding.shard_batch(patches, mesh), frozen)

    def restore_or_init(checkpoints):
        state = checkpoints.restore(train_template(config, network, mesh))
        if state is not None:
            return state
        variables = _initial_variables(config, workdir, network)
        optimizer = build.train_optimizer(options)
        return sharding.replicate(init_train(variables, optimizer, ema=bool(options.ema)), mesh)

    def finish(state, scores, checkpoints):
        rainy = validation.inputs
        if scores.y_psnr <= rainy.y_psnr:
            logging.warning(
                "train: this network removes no rain: %.2f dB on the validation scenes, whose "
                "rainy pictures have %.2f dB",
                scores.y_psnr, rainy.y_psnr,
            )  # fmt: skip
        return {
            "parameters": cost.derived(genotype, 1, 1).parameters,
            "best_step": checkpoints.best_step,
            "input": {"psnr": rainy.y_psnr, "ssim": rainy.y_ssim},
        }

    trained = stage.run(
        config,
        workdir,
        stage.Stage(
            "train",
            mesh,
            restore_or_init=restore_or_init,
            batches=batches,
            compile=lambda state, shapes: train_step.compile(
                state, shapes, kinds_of_steps(options, int(state.step))
            ),
            step_fn=step_fn,
            eval_fn=lambda state: validation(state.variables),
            finish=finish,
        ),
    )
    if trained or not (as_path(workdir) / WEIGHTS_FILE).exists():
        write_best_weights(config, workdir)


def frozen_stats(options: ConfigDict, start: int = 0) -> list[bool]:
    """Of each step from `start` on, whether BatchNorm's statistics are frozen.

    Args:
      options: the `train` options of the configuration.
      start: steps done before.
    """
    first = round(options.batch_norm * options.steps)
    return [step >= first for step in range(start, options.steps)]


def kinds_of_steps(options: ConfigDict, start: int = 0) -> list[bool]:
    """The different values of `frozen_stats`, that of most steps first: each has own programs."""
    return [frozen for frozen, _ in Counter(frozen_stats(options, start)).most_common()]


def make_step(config: ConfigDict, network: Network) -> TrainStep:
    """The step of a configuration's training.

    Raises:
      UserError: see `feature_loss.load`.
    """
    options = config.train
    return TrainStep(
        network,
        build.train_optimizer(options),
        loss_weights=build.loss_weights(config),
        internal_from=round(options.internal_warmup * options.steps),
        ema=options.ema,
        microbatches=options.accumulate,
        feature_fn=feature_loss.load(options.feature_network) if options.feature_network else None,
    )


def write_best_weights(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Writes the best weights, without the optimizer's state, as one file for other commands."""
    network, variables, step = load_trained(config, workdir)
    described = provenance.describe()
    origin = {key: described[key] for key in ("command", "commit", "date")}
    origin |= {"step": str(step), "seed": str(config.seed), "source": config.data.source}
    file = as_path(workdir) / WEIGHTS_FILE
    distributed.broadcast_from_primary(
        lambda: save_weights(file, variables, network.genotype, origin)
    )
    logging.info("train: weights of step %d: %s", step, file)


def _initial_variables(config: ConfigDict, workdir: str | os.PathLike, network: Network) -> PyTree:
    """Fresh variables, those of a file, or with `train.inherit` those of the supernet."""
    if config.train.weights:
        return load_derived(config.train.weights)[0]
    if not config.train.inherit:
        return init_variables(network, config.seed)
    supernet = unstack_columns(load_search(config, workdir).variables, network.space)
    return inherit(supernet, variable_shapes(network))
