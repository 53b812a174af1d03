"""The bilevel search: weights on some training scenes, architecture on others, then derivation."""

from __future__ import annotations

import functools
import itertools
import os
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from manas_jax import cost
from manas_jax.buckets import as_path
from manas_jax.config import search_budget
from manas_jax.data.sources import load_splits
from manas_jax.data.splits import Splits
from manas_jax.models.network import Network, genotype_logits
from manas_jax.runtime import distributed, sharding
from manas_jax.search import collapse, selection
from manas_jax.search.derivation import derive_within
from manas_jax.search.sampling import Sampler, compare_branch_shares
from manas_jax.search.selection import SupernetEvaluator, softmax
from manas_jax.search.step import SearchStep
from manas_jax.space import Genotype, SearchSpace, derive
from manas_jax.training import build, losses, stage
from manas_jax.training.build import Role
from manas_jax.training.metric_logger import MetricLogger
from manas_jax.training.restore import load_genotype, load_search, newest_or_fresh_search_state
from manas_jax.training.state import SearchState
from manas_jax.training.validation import Validation


def search(
    config: ConfigDict, workdir: str | os.PathLike, splits: Splits | None = None
) -> Genotype:
    """Searches an architecture; resumes from the newest checkpoint.

    Leaves checkpoints and curves in `search/` and, at the end, `genotype.json` and
    `search/summary.json`.

    Args:
      config: of the run.
      workdir: of the run.
      splits: its scenes; None to load them.

    Raises:
      UserError: no data, a diverged loss, a folder that cannot be written.
      Stopped: a signal came; the state is saved.
    """
    options = config.search
    workdir = as_path(workdir)
    mesh = sharding.make_mesh(config.devices, config.height_shards)
    network = build.network(config, mesh=mesh)
    space = network.space
    warmup = round(options.architecture_warmup * options.steps)

    splits = splits or load_splits(config.data, options.crop)

    @functools.cache
    def source(role, rollbacks=0):
        return build.batches(config, splits, role, mesh, rollbacks)

    def batches(start, rollbacks):
        architecture_batches = source(Role.SEARCH_ARCHITECTURE, rollbacks)
        return zip(
            source(Role.SEARCH_WEIGHTS, rollbacks).iterate(start, options.steps),
            _after_warmup(warmup, architecture_batches, start, options.steps),
            strict=True,
        )

    for role in (Role.SEARCH_WEIGHTS, Role.SEARCH_ARCHITECTURE):
        source(role)  # mistakes in the data come out before anything is compiled
    validation = Validation(network, splits.validation, config.data, options.validation_crop, mesh)
    step = make_step(config, network, mesh.devices.size)

    def step_fn(state, batch):
        weight_batch, architecture_batch = batch
        return step(
            state,
            sharding.shard_batch(weight_batch, mesh),
            architecture_batch and sharding.shard_batch(architecture_batch, mesh),
        )

    def finish(state, scores, checkpoints):
        probabilities = softmax(state.architecture)
        genotype, facts = derive(space, **probabilities), {}
        if budget := search_budget(config):
            logs = jax.device_get(jax.tree.map(jax.nn.log_softmax, dict(state.architecture)))
            likeliest, genotype = genotype, derive_within(space, logs, budget)
            facts["budget"] = _within(budget, likeliest, genotype)
        if options.choice == "perturbation":
            patches = source(Role.SEARCH_ARCHITECTURE).iterate(0, options.choice_batches)
            patches = [sharding.shard_batch(batch, mesh) for batch in patches]
            evaluator = SupernetEvaluator(config, state, patches)
            genotype = selection.perturbation(space, state.architecture, evaluator, config.seed)
        derived = validation(state.variables, genotype_logits(genotype))
        gap = scores.y_psnr - derived.y_psnr
        warnings = collapse.collapse_warnings(probabilities, space.candidates, gap)
        for warning in warnings:
            logging.warning("search: %s; see the report before trusting this architecture", warning)
        distributed.broadcast_from_primary(lambda: genotype.save(workdir / "genotype.json"))
        return {
            "parameters": cost.supernet(space, 1, 1).parameters,
            "derived": {"psnr": derived.y_psnr, "ssim": derived.y_ssim},
            "warnings": warnings,
            "spending": compare_branch_shares(genotype, Sampler(space, budget)),
            **facts,
        }

    stage.run(
        config,
        workdir,
        stage.Stage(
            "search",
            mesh,
            restore_or_init=functools.partial(newest_or_fresh_search_state, config, network, mesh),
            batches=batches,
            compile=step.compile,
            step_fn=step_fn,
            eval_fn=lambda state: validation(state.variables, state.architecture),
            finish=finish,
            log_fn=functools.partial(_log_architecture, space),
        ),
    )
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


def supernet_evaluator(
    config: ConfigDict, workdir: str | os.PathLike, batches: int
) -> SupernetEvaluator:
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
    splits = load_splits(config.data, config.search.crop)
    mesh = sharding.make_mesh(1)
    architecture_batches, weight_batches = (
        list(build.batches(config, splits, role, mesh).iterate(0, batches))
        for role in (Role.SEARCH_ARCHITECTURE, Role.SEARCH_WEIGHTS)
    )
    return SupernetEvaluator(config, state, architecture_batches, weight_batches)


def _within(budget: cost.Budget, likeliest: Genotype, genotype: Genotype) -> dict[str, Any]:
    """How the likeliest choices and the derived network meet the budget, also for the log."""
    costs = {name: budget.cost(g) for name, g in (("likeliest", likeliest), ("derived", genotype))}
    decisions = [
        zip(likeliest.picks[kind], picks, strict=True) for kind, picks in genotype.picks.items()
    ]
    changed = sum(a != b for pairs in decisions for a, b in pairs)
    logging.info(
        "search: a budget of %s %s; the likeliest choices cost %.1f%% of it, the derived network "
        "%.1f%%, with %d other choices",
        f"{budget.limit:,}", budget.unit,
        *(100 * value / budget.limit for value in costs.values()), changed,
    )  # fmt: skip
    return {"limit": budget.limit, "unit": budget.unit, **costs, "changed_choices": changed}


def _after_warmup(warmup, batches, start, stop):
    """None for each step of the warm-up, then the batches of the steps after it."""
    first = min(max(start, warmup), stop)
    return itertools.chain(itertools.repeat(None, first - start), batches.iterate(first, stop))


def _log_architecture(
    space: SearchSpace, logger: MetricLogger, step: int, state: SearchState
) -> None:
    """Logs the probabilities and signs of a collapse: entropies and shares of choices."""
    probabilities = softmax(state.architecture)
    logger.tensors(step, {f"architecture/{k}": v for k, v in probabilities.items()})
    for warning in collapse.collapsed(probabilities, space.candidates):
        logging.warning("search: step %d: %s", step, warning)
    shares = {
        f"share/{choice}": probabilities[kind][..., i].mean() if probabilities[kind].size else 0.0
        for kind, choices in space.choices.items()
        for i, choice in enumerate(choices)
    }
    entropies = {
        f"architecture/entropy_{kind}": losses.binary_entropy(rows)
        for kind, rows in state.architecture.items()
    }
    logger.scalars(step, {**shares, **entropies})
