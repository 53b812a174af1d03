"""The search without a supernet: random genotypes, within a budget if there is one, are trained.

With `search.method=uniform` a rule makes the genotype, which costs nothing.
"""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from manas_jax.buckets import Path, as_path
from manas_jax.config import search_budget
from manas_jax.data.splits import Splits
from manas_jax.errors import Diverged, UserError, reading
from manas_jax.files import write_json
from manas_jax.runtime import distributed
from manas_jax.search.sampling import Sampler, compare_branch_shares, random_candidate
from manas_jax.search.uniform import uniform_within
from manas_jax.space import Genotype, SearchSpace
from manas_jax.training import run as train_run
from manas_jax.training.restore import load_genotype

_TIMES = "seconds", "compile_seconds"
_HINT = "remove the candidate's folder {}, and it will be trained and scored again"
_DIVERGED = {"psnr": 0.0, "ssim": 0.0, "compile_seconds": 0.0, "diverged": True}
"""What a candidate scores whose training diverged.

Its 'seconds' include compilation, but not what was interrupted before it diverged.
"""


def search(
    config: ConfigDict, workdir: str | os.PathLike, splits: Splits | None = None
) -> Genotype:
    """Trains random genotypes and takes the best; resumes with the training that was interrupted.

    All trainings together have at most `search.steps` steps. A candidate whose training diverges is
    left out, and a single candidate, such as that of 'uniform', is taken untrained. Leaves the
    trainings in `search/candidates/` and, at the end, `genotype.json` and `search/summary.json`.

    Args:
      config: of the run; `search.method` is 'random', 'halving' or 'uniform'.
      workdir: of the run.
      splits: not used, as each training loads scenes for patches of its own size.

    Raises:
      UserError: no data, all trainings diverged, a folder that cannot be written; or no uniform
        genotype is within the budget.
      Stopped: a signal came; the state is saved.
    """
    workdir, options = as_path(workdir), config.search
    summary = workdir / "search" / "summary.json"
    if not distributed.broadcast_from_primary(
        lambda: summary.exists() and (workdir / "genotype.json").exists()
    ):
        sampler = Sampler(SearchSpace(**config.space), search_budget(config))
        if options.method == "uniform":
            candidates = [uniform_within(sampler.space, sampler.budget)]
        else:
            seeds = np.random.SeedSequence(config.seed).generate_state(options.candidates)
            candidates = [random_candidate(sampler, int(s), options.preference) for s in seeds]
        results: dict[int, dict[str, float]] = {}
        compile_seconds = []

        def score(number: int, steps: int) -> float:
            folder = workdir / "search" / "candidates" / f"{number:03d}"
            spent = results[number]["seconds"] if number in results else 0.0
            found = _trained(config, candidates[number], folder, steps, spent)
            results[number] = {"steps": steps, **found}
            compile_seconds.append(found["compile_seconds"])
            return found["psnr"]

        best, history = 0, []
        if len(candidates) > 1:
            halvings = math.ceil(math.log2(len(candidates)))
            rounds = 1 if options.method == "random" else halvings
            best, history = successive_halving(len(candidates), score, options.steps, rounds)
            if "diverged" in results[best]:
                raise UserError(
                    "the trainings of all candidates diverged: lower train.learning_rate or set "
                    "train.clip in a new --workdir"
                )
        facts = {
            "steps": sum(result["steps"] for result in results.values()),
            "seconds": sum(result["seconds"] for result in results.values()),
            "compile_seconds": sum(compile_seconds),
            "validation": {name: results[best][name] for name in ("psnr", "ssim") if history},
            "rounds": history,
            "spending": compare_branch_shares(candidates[best], sampler),
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


def _trained(
    config: ConfigDict, genotype: Genotype, folder: Path, steps: int, spent: float = 0.0
) -> dict[str, float]:
    """Scores and seconds of a training, with the steps that it did if it diverged before its end.

    Args:
      config: of the run.
      genotype: of the candidate.
      folder: of the training, which continues the one of fewer steps there.
      steps: of the whole training.
      spent: seconds of the one of fewer steps.
    """
    file = folder / f"scores-{steps}.json"
    scores = distributed.broadcast_from_primary(lambda: _read_scores(file))
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
            checkpoint_every=min(training.train.checkpoint_every, steps),
        )
        distributed.broadcast_from_primary(lambda: _start(folder, genotype))
        begin = time.monotonic()
        try:
            train_run.train(training, folder)
        except Diverged as error:  # a poor candidate is no reason to end the search
            logging.warning("search: candidate %s is left out: %s", folder.name, error)
            seconds = spent + time.monotonic() - begin
            scores = _DIVERGED | {"steps": error.steps, "seconds": seconds}
            return distributed.broadcast_from_primary(lambda: _keep_scores(file, scores))
        scores = distributed.broadcast_from_primary(lambda: _keep_scores(file, _ended(folder)))
        logging.info("search: %s, %d steps: %.2f dB", folder.name, steps, scores["psnr"])
    return scores


def _read_scores(file: Path) -> dict[str, float] | None:
    """What `_trained` wrote about a training, or None.

    Raises:
      UserError: it is damaged.
    """
    if not file.exists():
        return None
    with reading(file, "scores", _HINT.format(file.parent)):
        scores = json.loads(file.read_text())
        return scores | {key: float(scores[key]) for key in ("psnr", "ssim", *_TIMES)}


def _ended(folder: Path) -> dict[str, float]:
    """Scores and seconds of a training that came to its end.

    Raises:
      UserError: its summary is damaged.
    """
    file = folder / "train" / "summary.json"
    with reading(file, "summary", _HINT.format(folder)):
        summary = json.loads(file.read_text())
        return {key: summary[key] for key in _TIMES} | summary["validation"]


def _keep_scores(file: Path, scores: dict[str, float]) -> dict[str, float]:
    write_json(file, scores)
    return scores


def _keep(summary: Path, genotype: Genotype, facts: Mapping[str, Any]) -> None:
    summary.parent.mkdir(parents=True, exist_ok=True)
    genotype.save(summary.parent.parent / "genotype.json")
    write_json(summary, facts)


def _start(folder: Path, genotype: Genotype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    genotype.save(folder / "genotype.json")
