"""The search without a supernet: random genotypes, within a budget if there is one, are trained.

Or one is made by a rule, which costs nothing.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import statistics
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from manas_jax import cost
from manas_jax.buckets import Path, as_path
from manas_jax.config import budget
from manas_jax.cost import Budget
from manas_jax.data.splits import Splits
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.runtime import distributed
from manas_jax.search.derivation import likeliest_within
from manas_jax.space import (
    COLUMNS,
    Genotype,
    SearchSpace,
    assemble,
    derivable,
    random_genotype,
)
from manas_jax.training import run as train_run
from manas_jax.training.losses import expected_cost
from manas_jax.training.restore import load_genotype

DRAWS = 64  # per genotype within a budget
ROUNDS = 100  # of as many draws, after which genotypes within the budget are too rare to be drawn
COMPARED = 20  # random genotypes, of which `spending` is a mean
STEEPEST = 1e4  # fall of the log-probability per budget

NO_PREFERENCES: Mapping[str, np.ndarray] = types.MappingProxyType({})

Picks = Mapping[str, np.ndarray]
"""Index of the choice of every decision, by kind; see `SearchSpace.decisions`."""


def search(
    config: ConfigDict, workdir: str | os.PathLike, splits: Splits | None = None
) -> Genotype:
    """Trains random genotypes and takes the best; resumes with the training that was interrupted.

    All trainings together have `search.steps` steps; a single candidate is taken without any, and
    so is the only uniform one.
    Leaves them in `search/candidates/` and, at the end, `genotype.json` and `search/summary.json`.

    Args:
      config: of the run; `search.method` is 'random', 'halving' or 'uniform'.
      workdir: of the run.
      splits: not used, as each training loads scenes for patches of its own size.

    Raises:
      UserError: no data, a diverged loss, a folder that cannot be written; or no uniform genotype
        is within the budget.
      Stopped: a signal came; the state is saved.
    """
    workdir, options = as_path(workdir), config.search
    summary = workdir / "search" / "summary.json"
    if not distributed.broadcast_from_primary(summary.exists):
        sampler = Sampler(SearchSpace(**config.space), budget(config))
        if options.method == "uniform":
            candidates = [uniform_within(sampler.space, sampler.limit)]
        else:
            seeds = np.random.SeedSequence(config.seed).generate_state(options.candidates)
            candidates = [random_candidate(sampler, int(s), options.preference) for s in seeds]
        results: dict[int, dict[str, float]] = {}
        compile_seconds = []

        def score(number: int, steps: int) -> float:
            folder = workdir / "search" / "candidates" / f"{number:03d}"
            results[number] = result = _trained(config, candidates[number], folder, steps)
            compile_seconds.append(result["compile_seconds"])
            return result["psnr"]

        best, history = 0, []
        if len(candidates) > 1:
            halvings = math.ceil(math.log2(len(candidates)))
            rounds = 1 if options.method == "random" else halvings
            best, history = successive_halving(len(candidates), score, options.steps, rounds)
        facts = {
            "steps": options.steps if history else 0,
            "seconds": sum(result["seconds"] for result in results.values()),
            "compile_seconds": sum(compile_seconds),
            "validation": {name: results[best][name] for name in ("psnr", "ssim") if history},
            "rounds": history,
            "spending": spending(candidates[best], sampler),
        }
        distributed.broadcast_from_primary(
            functools.partial(_keep, summary, candidates[best], facts)
        )
    return load_genotype(workdir)


def successive_halving(
    count: int, score: Callable[[int, int], float], steps: int, rounds: int
) -> tuple[int, list[dict[int, float]]]:
    """Trains all candidates, then round by round the better half of them for longer.

    Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization", AISTATS 2016. The candidates of a round share its steps, and all rounds have
    equally many. With one round it is the random search of Li and Talwalkar, "Random Search and
    Reproducibility for Neural Architecture Search", UAI 2019.

    Args:
      count: number of candidates.
      score: (candidate, steps that its training has then had) -> its score, higher is better.
      steps: of all trainings together.
      rounds: at least 1.

    Returns:
      The best candidate of the last round, and the scores of each round.
    """
    left, trained, history = list(range(count)), 0, []
    for _ in range(rounds):
        trained += max(1, steps // (rounds * len(left)))
        scores = {candidate: score(candidate, trained) for candidate in left}
        history.append(scores)
        ranked = sorted(left, key=scores.__getitem__, reverse=True)
        left = ranked[: math.ceil(len(left) / 2)]
    return left[0], history


class Sampler:
    """Draws genotypes: uniform ones or, within a budget, those that cost about as much as it.

    Within a budget probabilities are proportional to exp(-rate * cost), times the uniform ones of
    `random_genotype`. The rate is such that the mean cost is the budget; genotypes of equal cost
    keep their relative probabilities. A budget above all genotypes changes nothing.
    """

    def __init__(
        self,
        space: SearchSpace,
        limit: Budget | None = None,
        preferences: Mapping[str, np.ndarray] = NO_PREFERENCES,
    ):
        """Args:
        space: the search space.
        limit: at least the cost of the cheapest genotype; None for any cost.
        preferences: see `random_preferences`; by default choices are uniform."""
        self.space, self.limit = space, limit
        self._logits = _logits(space, limit, preferences)

    def picks(self, draw: np.random.Generator) -> Picks:
        """Drawn choices, whatever they cost.

        Gumbel noise added to the logits draws with their probabilities.
        """
        picks = {}
        for kind, choices in self.space.choices.items():
            rows = self._logits[kind].reshape(-1, len(choices))
            picks[kind] = np.argmax(rows + draw.gumbel(size=rows.shape), axis=1)
        return picks

    def within(self, draw: np.random.Generator) -> tuple[Picks, Genotype]:
        """The first drawn choices that are within the budget, and their genotype."""
        for _ in range(ROUNDS * DRAWS):
            picks = self.picks(draw)
            if self.allows(genotype := self.genotype(picks)):
                return picks, genotype
        genotype = self.likeliest()
        choices = self.space.choices
        picks = {k: np.array([choices[k].index(c) for c in v]) for k, v in genotype.picks.items()}
        return picks, genotype

    def likeliest(self) -> Genotype:
        """The likeliest genotype within the budget."""
        return likeliest_within(self.space, self._logits, self.limit)

    def genotype(self, picks: Picks) -> Genotype:
        """The genotype of these choices."""
        choices = self.space.choices
        return assemble(self.space, {k: [choices[k][i] for i in v] for k, v in picks.items()})

    def allows(self, genotype: Genotype) -> bool:
        """Whether a genotype is within the budget."""
        return self.limit is None or self.limit.cost(genotype) <= self.limit.limit


def random_within(sampler: Sampler, seed: int) -> Genotype:
    """A random genotype that costs about as much as the budget and no more.

    It is the most expensive one within the budget of many that are drawn, or the likeliest one
    where hardly any is within it.

    Args:
      sampler: with a budget.
      seed: of the draws.
    """
    draw = np.random.default_rng(seed)
    for _ in range(ROUNDS):
        drawn = [sampler.genotype(sampler.picks(draw)) for _ in range(DRAWS)]
        if within := list(filter(sampler.allows, drawn)):
            return max(within, key=sampler.limit.cost)
    return sampler.likeliest()


def random_candidate(sampler: Sampler, seed: int, preference: float = 0.0) -> Genotype:
    """A random genotype, within the budget if there is one, with preferences of its own.

    Choices that are drawn independently even out over a network: half of the columns are of one
    kind, half of another, so random networks resemble each other. Networks whose choices are
    correlated differ more, and leave a search more to choose from.

    Args:
      sampler: without preferences.
      seed: of all draws.
      preference: the strength of `random_preferences`; 0 for none.
    """
    space = sampler.space
    if preference:
        preferences = random_preferences(space, np.random.default_rng([seed, 1]), preference)
        sampler = Sampler(space, sampler.limit, preferences)
    if sampler.limit:
        return random_within(sampler, seed)
    if preference:
        return sampler.genotype(sampler.picks(np.random.default_rng(seed)))
    return random_genotype(space, seed)


def random_preferences(
    space: SearchSpace, draw: np.random.Generator, strength: float
) -> dict[str, np.ndarray]:
    """Logits that all decisions of a kind have in common, those of widths on a branch.

    Args:
      space: the search space.
      draw: the source of randomness.
      strength: standard deviation of the logits; beyond 3 or so one choice is nearly always taken.

    Returns:
      For each kind its logits, (1, choices), or (blocks, choices) for the widths.
    """
    logits = {
        kind: strength
        * draw.normal(size=(len(space.channels) if kind == "widths" else 1, len(choices)))
        for kind, choices in space.choices.items()
    }
    # Whether a column is parallel does not depend on the preferences for widths.
    logits = {
        kind: row - np.logaddexp.reduce(row, axis=1, keepdims=True) + math.log(row.shape[1])
        for kind, row in logits.items()
    }
    if "widths" in logits:
        logits["widths"] = logits["widths"][[branch for _, branch in space.residual_blocks]]
    return logits


def uniform_within(space: SearchSpace, limit: Budget) -> Genotype:
    """The most expensive genotype within a budget of those that a person would make.

    The first columns alternate, as many in each cell, and the rest are left out; all residual
    blocks have one width; all edges have SE.

    Raises:
      UserError: none is within the budget, or the space has no such genotypes.
    """
    made, deepest = [], max(space.columns)
    depths = range(deepest + 1) if "identity" in space.column_choices else [deepest]
    for depth, width in itertools.product(depths, space.widths):
        positions = (i for columns in space.columns for i in range(columns))  # in their cells
        picks = {
            "columns": [
                choice if i < depth else "identity"
                for i, choice in zip(positions, itertools.cycle(COLUMNS), strict=False)
            ],
            "attention": ["SE"] * len(space.modules) * space.edges,
            "widths": [width] * len(space.residual_blocks),
        }
        made.append(assemble(space, picks))
    within = [genotype for genotype in made if limit.cost(genotype) <= limit.limit]
    if not within:
        raise UserError(
            f"no uniform genotype costs at most {limit.limit:,} {limit.unit}: give a larger "
            "search.budget or leave out uniform"
        )
    return max(within, key=limit.cost)


def spending(genotype: Genotype, sampler: Sampler) -> dict[str, list[float]]:
    """Shares of the branches, the finest first, in the multiply-accumulates of what is searched.

    Returns:
      'found', of the genotype, and 'random', the mean of some that `random_within` draws within the
      budget; nothing without a budget.
    """
    if sampler.limit is None:
        return {}
    rows = [cost.branch_shares(random_within(sampler, seed)) for seed in range(COMPARED)]
    means = [statistics.mean(branch) for branch in zip(*rows, strict=True)]
    return {"found": cost.branch_shares(genotype), "random": means}


def _logits(
    space: SearchSpace, limit: Budget | None, preferences: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Logits of the choices with which the mean cost is the budget."""
    if limit is None:
        return _tilted(space, cost.tables(space, 1, 1, "parameters"), 0.0, preferences)
    tables = {k: np.array(rows, float) / limit.limit for k, rows in limit.tables(space).items()}
    if limit.extremes(space)[1] < limit.limit:
        return _tilted(space, tables, 0.0, preferences)
    expected = jax.jit(functools.partial(expected_cost, space, limit))
    flat, steep = -STEEPEST, STEEPEST
    for _ in range(50):
        rate = (flat + steep) / 2
        if float(expected(_tilted(space, tables, rate, preferences))) > limit.limit:
            flat = rate
        else:
            steep = rate
    return _tilted(space, tables, steep, preferences)


def _tilted(
    space: SearchSpace,
    tables: Mapping[str, Any],
    rate: float,
    preferences: Mapping[str, np.ndarray] = NO_PREFERENCES,
) -> dict[str, np.ndarray]:
    """Logits with which a genotype is as likely as exp(-rate * cost), and `none` never drawn.

    Preferences are added to those of the choices.
    """
    tables = {kind: np.array(rows, float) for kind, rows in tables.items()}
    logits = {kind: preferences.get(kind, 0.0) - rate * tables[kind] for kind in space.choices}
    allowed = derivable(space.candidates)
    logits["attention"] = np.where(
        np.isin(np.arange(len(space.candidates)), allowed), logits["attention"], -np.inf
    ).reshape(*space.decisions["attention"], -1)
    if space.residual_blocks:
        parallel = space.column_choices.index("parallel")
        blocks = preferences.get("widths", 0.0) - rate * tables["widths"]
        for (column, _), row in zip(space.residual_blocks, blocks, strict=True):
            logits["columns"][column, parallel] += np.logaddexp.reduce(row) - math.log(len(row))
    return logits


def _trained(config: ConfigDict, genotype: Genotype, folder: Path, steps: int) -> dict[str, float]:
    """Scores and seconds of a training of this many steps; it continues one of fewer."""
    file = folder / f"scores-{steps}.json"
    scores = distributed.broadcast_from_primary(
        lambda: json.loads(file.read_text()) if file.exists() else None
    )
    if scores is None:
        training = config.copy_and_resolve_references()
        batch_norm = training.train.batch_norm
        if batch_norm < 1:  # statistics are frozen at the same step, however long the training
            batch_norm = min(1.0, batch_norm * training.train.steps / steps)
        training.train.update(
            genotype="",
            weights="",
            inherit=False,
            steps=steps,
            batch_norm=batch_norm,
            checkpoint_every=steps,
        )
        distributed.broadcast_from_primary(lambda: _start(folder, genotype))
        train_run.train(training, folder)
        scores = distributed.broadcast_from_primary(lambda: _keep_scores(folder, file))
        logging.info("search: %s, %d steps: %.2f dB", folder.name, steps, scores["psnr"])
    return scores


def _keep_scores(folder: Path, file: Path) -> dict[str, float]:
    summary = json.loads((folder / "train" / "summary.json").read_text())
    scores = {key: summary[key] for key in ("seconds", "compile_seconds")} | summary["validation"]
    write_json(file, scores)
    return scores


def _keep(summary: Path, genotype: Genotype, facts: Mapping[str, Any]) -> None:
    summary.parent.mkdir(parents=True, exist_ok=True)
    genotype.save(summary.parent.parent / "genotype.json")
    write_json(summary, facts)


def _start(folder: Path, genotype: Genotype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    genotype.save(folder / "genotype.json")
