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
from manas_jax.data.splits import Splits
from manas_jax.models.network import genotype_logits
from manas_jax.runtime import distributed
from manas_jax.search import collapse, selection
from manas_jax.search.derivation import derive_within
from manas_jax.search.sampling import Sampler, compare_branch_shares
from manas_jax.search.selection import SupernetEvaluator, softmax
from manas_jax.search.supernet import Supernet
from manas_jax.space import Genotype, SearchSpace, derive
from manas_jax.training import losses
from manas_jax.training.build import Role
from manas_jax.training.metric_logger import MetricLogger
from manas_jax.training.state import SearchState


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
    options, workdir = config.search, as_path(workdir)
    supernet = Supernet(config, splits)
    space = supernet.network.space
    warmup = round(options.architecture_warmup * options.steps)

    def batches(start, rollbacks):
        architecture_batches = supernet.source(Role.SEARCH_ARCHITECTURE, rollbacks)
        return zip(
            supernet.source(Role.SEARCH_WEIGHTS, rollbacks).iterate(start, options.steps),
            _after_warmup(warmup, architecture_batches, start, options.steps),
            strict=True,
        )

    def step_fn(state, batch):
        weight_batch, architecture_batch = batch
        return supernet.step(
            state,
            supernet.shard(weight_batch),
            architecture_batch and supernet.shard(architecture_batch),
        )

    def finish(state, scores, checkpoints):
        probabilities = softmax(state.architecture)
        genotype, facts = derive(space, **probabilities), {}
        if budget := search_budget(config):
            logs = jax.device_get(jax.tree.map(jax.nn.log_softmax, dict(state.architecture)))
            likeliest, genotype = genotype, derive_within(space, logs, budget)
            facts["budget"] = _within(budget, likeliest, genotype)
        if options.choice == "perturbation":
            patches = supernet.first_batches(Role.SEARCH_ARCHITECTURE)
            evaluator = SupernetEvaluator(config, state, patches)
            genotype = selection.perturbation(space, state.architecture, evaluator, config.seed)
        derived = supernet.validation(state.variables, genotype_logits(genotype))
        gap = scores.y_psnr - derived.y_psnr
        warnings = collapse.collapse_warnings(probabilities, space, gap)
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

    return supernet.run(
        workdir,
        batches=batches,
        compile=supernet.step.compile,
        step_fn=step_fn,
        eval_fn=lambda state: supernet.validation(state.variables, state.architecture),
        finish=finish,
        log_fn=functools.partial(_log_architecture, space),
        batches_of=lambda step: 1 + (step > warmup),
    )


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
