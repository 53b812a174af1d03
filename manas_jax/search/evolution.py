"""The single-path supernet: random paths train its weights, evolution chooses among all paths.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV 2020.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
import statistics
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from manas_jax import cost
from manas_jax.buckets import Path, as_path
from manas_jax.config import search_budget
from manas_jax.data.splits import Splits
from manas_jax.errors import reading
from manas_jax.files import write_json
from manas_jax.models.network import Network, genotype_logits
from manas_jax.runtime import distributed, sharding, signals
from manas_jax.runtime.compilation import CompileStats
from manas_jax.search import single_path
from manas_jax.search.sampling import Indices, Sampler, compare_branch_shares
from manas_jax.search.selection import SupernetEvaluator
from manas_jax.search.step import Blocks, SearchStep
from manas_jax.search.supernet import Supernet
from manas_jax.space import Genotype, SearchSpace, assemble, derivable
from manas_jax.training.build import Role
from manas_jax.training.state import SearchState

PARENTS = 0.2  # of the population, the best so far
MUTATION = 0.1  # probability that a decision of a mutant is drawn anew
ATTEMPTS = 100  # at a child that is new and within the budget

Score = Callable[[Genotype], float]


def search(
    config: ConfigDict, workdir: str | os.PathLike, splits: Splits | None = None
) -> Genotype:
    """Trains a supernet path by path, then chooses a path; resumes what was interrupted.

    Step n trains the weights of one random genotype, a function of the seed and n, within the
    budget if there is one. Checkpoints are scored by one and the same path, that of the first step.
    The end is an evolution by the PSNR on batches of architecture scenes, each normalised by its
    own statistics: so they are estimated anew for every genotype. Leaves checkpoints, curves and
    `scores.json` in `search/` and, at the end, `genotype.json` and `search/summary.json`.

    Args:
      config: of the run; `search.method` is 'evolution'.
      workdir: of the run.
      splits: its scenes; None to load them.

    Raises:
      UserError: no data, a diverged loss, a folder that cannot be written.
      Stopped: a signal came; the state is saved.
    """
    options, workdir = config.search, as_path(workdir)
    supernet = Supernet(config, splits)
    network, step = supernet.network, supernet.step
    sampler = Sampler(network.space, search_budget(config))

    @functools.cache
    def evaluator():
        roles = Role.SEARCH_ARCHITECTURE, Role.SEARCH_WEIGHTS
        return SupernetEvaluator(config, None, *map(supernet.first_batches, roles))

    def genotype_of(number):
        return sampler.within(np.random.default_rng([config.seed, number]))[1]

    def batches(start, rollbacks):
        patches = supernet.source(Role.SEARCH_WEIGHTS, rollbacks).iterate(start, options.steps)
        return zip(map(genotype_of, itertools.count(start)), patches, strict=False)

    def step_fn(state, batch):
        genotype, patches = batch
        logits = sharding.replicate(genotype_logits(genotype), supernet.mesh)
        path = single_path.blocks(network, genotype) if step.supports_paths else None
        return step.weight_step(state.replace(architecture=logits), supernet.shard(patches), path)

    def scores_of(state, architecture):
        """On the validation scenes, with running statistics moved towards the architecture's."""
        evaluator().state = state
        batch_stats = evaluator().recalibrate_batch_norm(architecture)
        variables = {"params": state.params, "batch_stats": batch_stats}
        return supernet.validation(variables, architecture)

    def finish(state, scores, checkpoints):
        evaluator().state = state
        file = workdir / "search" / "scores.json"
        genotype, history = _choose(config, sampler, file, evaluator())
        scores = scores_of(state, genotype_logits(genotype))
        distributed.broadcast_from_primary(lambda: genotype.save(workdir / "genotype.json"))
        return {
            "parameters": cost.supernet(network.space, 1, 1).parameters,
            "validation": {"psnr": scores.y_psnr, "ssim": scores.y_ssim},
            "generations": history,
            "spending": compare_branch_shares(genotype, sampler),
        }

    return supernet.run(
        workdir,
        batches=batches,
        compile=functools.partial(_compile, step, network, genotype_of),
        step_fn=step_fn,
        eval_fn=lambda state: scores_of(state, genotype_logits(genotype_of(0))),
        finish=finish,
    )


def evolve(
    sampler: Sampler,
    score: Score,
    *,
    population: int,
    generations: int,
    seed: int,
    on_generation: Callable[[list[float]], None] = lambda history: None,
) -> tuple[Genotype, list[float]]:
    """The genotype with the highest score that an evolution within the budget comes across.

    The first generation is random. Each later generation is half mutants of the best genotypes so
    far, half crossovers of two of them, each decision from either; all are new and within the
    budget. Where such children are rare, random genotypes take their place, and a generation is
    smaller where the space has no more to offer.

    Args:
      sampler: draws random genotypes, and knows space and budget.
      score: of a genotype, higher is better; called once for each.
      population: genotypes in a generation, at least 2.
      generations: their number.
      seed: of all draws.
      on_generation: called after each one, with the history up to it.

    Returns:
      The genotype, and the history: the best score so far after each generation.
    """
    draw, uniform = np.random.default_rng(seed), Sampler(sampler.space)

    def parent() -> Indices:
        return parents[draw.integers(len(parents))][0]

    def mutant() -> Indices:
        return _mixed(parent(), uniform.indices(draw), MUTATION, draw)

    def crossing() -> Indices:
        return _mixed(parent(), parent(), 0.5, draw)

    chance = [functools.partial(s.indices, draw) for s in (sampler, uniform)]
    first = sampler.within(draw)  # however rare such genotypes are
    scores = {first[1]: score(first[1])}
    parents, history = [], []
    for generation in range(generations):
        children = [] if generation else [first]
        for number in range(population - len(children)):
            makers = [(mutant, crossing)[number % 2], *chance] if generation else chance
            found = (_new(sampler, scores, make) for make in makers)
            if (child := next(filter(None, found), None)) is None:
                break
            scores[child[1]] = score(child[1])
            children.append(child)
        parents = sorted(parents + children, key=lambda p: scores[p[1]], reverse=True)
        parents = parents[: max(2, round(PARENTS * population))]
        history.append(scores[parents[0][1]])
        on_generation(history)
    return parents[0][1], history


def _new(
    sampler: Sampler, seen: Container[Genotype], make: Callable[[], Indices]
) -> tuple[Indices, Genotype] | None:
    """Choices that `make` gives and their genotype, unseen and within the budget; None if rare."""
    for _ in range(ATTEMPTS):
        indices = make()
        genotype = sampler.genotype(indices)
        if genotype not in seen and sampler.allows(genotype):
            return indices, genotype
    return None


def _mixed(a: Indices, b: Indices, share: float, draw: np.random.Generator) -> Indices:
    """The decisions of `a`, and about this share of them from `b`."""
    return {kind: np.where(draw.random(len(row)) < share, b[kind], row) for kind, row in a.items()}


def _choose(
    config: ConfigDict, sampler: Sampler, file: Path, score: Callable[[Any], float]
) -> tuple[Genotype, list[float]]:
    """Evolves, and keeps the scores in a file, so that an evolution that stopped finds them."""
    options = config.search
    known = distributed.broadcast_from_primary(lambda: _read_scores(file))

    def write():
        distributed.broadcast_from_primary(lambda: write_json(file, known))

    def known_score(genotype):
        key = json.dumps(genotype.picks)
        if key not in known:
            if (status := signals.requested()) is not None:
                write()
                raise signals.Stopped(status)
            known[key] = score(genotype_logits(genotype))
        return known[key]

    def on_generation(history):
        write()
        logging.info(
            "search: generation %d of %d: best of %d genotypes %.2f dB",
            len(history), options.generations, len(known), history[-1],
        )  # fmt: skip

    return evolve(
        sampler,
        known_score,
        population=options.population,
        generations=options.generations,
        seed=config.seed,
        on_generation=on_generation,
    )


def _read_scores(file: Path) -> dict[str, float]:
    if not file.exists():
        return {}
    with reading(file, "scores", "remove it, and the genotypes will be scored again"):
        return {key: float(value) for key, value in json.loads(file.read_text()).items()}


def _compile(
    step: SearchStep,
    network: Network,
    genotype_of: Callable[[int], Genotype],
    state: SearchState,
    batch: Mapping[str, Any],
) -> CompileStats:
    """Compiles the blocks of all paths; the operations of a step are a mean over the first ones."""
    space = network.space
    paths: list[Blocks | None] = [None]
    if step.supports_paths:
        every = [(c, w) for c in space.column_choices for w in space.widths if c == "parallel"]
        every += [(c, 1.0) for c in space.column_choices if c != "parallel"]
        paths = [single_path.blocks(network, _uniform(space, *chosen)) for chosen in every]
    stats = step.compile_weight_steps(state, batch, paths)
    scenes, versions, height, width, _ = batch["rainy"].shape
    macs = cost.supernet(space, height, width).macs
    if step.supports_paths:
        sampled = map(genotype_of, range(32))
        macs = statistics.mean(cost.path(g, height, width).macs for g in sampled)
    return dataclasses.replace(stats, flops=cost.gradient_flops(macs, scenes * versions))


def _uniform(space: SearchSpace, choice: str, width: float) -> Genotype:
    """A genotype whose columns are alike."""
    edge = space.candidates[derivable(space.candidates)[0]]
    chosen = {"columns": choice, "attention": edge, "widths": width}
    return assemble(
        space, {k: [chosen[k]] * math.prod(shape) for k, shape in space.decisions.items()}
    )
