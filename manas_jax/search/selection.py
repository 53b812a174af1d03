"""Choosing an architecture by what a searched supernet reaches with it, training nothing.

The supernet is its own derived network when its logits are far apart, so one compiled program
serves every genotype. Judged are batches of architecture scenes, normalised by their own
statistics as in the search: the running statistics belong to the mixture, not to a single path.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from manas_jax.models.network import OFF, Architecture, genotype_logits
from manas_jax.space import COLUMNS, Genotype, SearchSpace, derive
from manas_jax.training import build, losses
from manas_jax.training.state import SearchState

Batch = Mapping[str, Any]
Score = Callable[[Architecture], float]


class Judge:
    """Scores architectures with the weights of a search; no weight moves."""

    def __init__(
        self,
        config: ConfigDict,
        state: SearchState,
        held_out: Sequence[Batch],
        seen: Sequence[Batch] = (),
    ):
        """Compiles nothing yet.

        Args:
          config: what the search was run with.
          state: what it came to.
          held_out: batches of architecture scenes to judge by.
          seen: batches of weight scenes, which `statistics` needs.
        """
        self.state, self._held_out, self._seen = state, list(held_out), list(seen)
        objective = losses.scene_objective(
            build.network(config), build.loss_weights(config), internal_from=0
        )

        @jax.jit
        def apply(weights, architecture, batch_stats, batch):
            _, (moved, terms) = objective(
                weights, architecture, batch_stats, jnp.zeros((), jnp.int32), batch
            )
            return moved, terms["psnr"]

        self._apply = apply
        self._slope = jax.jit(jax.grad(objective, argnums=1, has_aux=True))

    def __call__(self, architecture: Architecture) -> float:
        """Mean PSNR in dB, normalised by each batch's own statistics."""
        architecture = jax.tree.map(jnp.asarray, dict(architecture))
        state = self.state
        scores = [
            self._apply(state.weights, architecture, state.batch_stats, batch)[1]
            for batch in self._held_out
        ]
        return float(np.mean(jax.device_get(scores)))

    def statistics(self, architecture: Architecture):
        """Running statistics moved to this architecture's own, on weight scenes."""
        architecture = jax.tree.map(jnp.asarray, dict(architecture))
        moved = self.state.batch_stats
        for batch in self._seen:
            moved, _ = self._apply(self.state.weights, architecture, moved, batch)
        return moved

    def gradients(self, architecture: Architecture) -> dict[str, np.ndarray]:
        """The restoration loss's gradient on every batch of architecture scenes: (batches, ...)."""
        architecture = jax.tree.map(jnp.asarray, dict(architecture))
        state, step = self.state, jnp.zeros((), jnp.int32)
        found = [
            jax.device_get(
                self._slope(state.weights, architecture, state.batch_stats, step, batch)[0]
            )
            for batch in self._held_out
        ]
        return {kind: np.stack([g[kind] for g in found]) for kind in architecture}


def signal(gradients: np.ndarray) -> dict[str, float]:
    """How far the gradients (batches, ...) of single batches agree.

    Returns:
      'mean', the norm of the gradient that they have in common, without the part of it that their
      scatter would make by itself; 'deviation', the norm of the scatter of one batch; and 'ratio',
      the former over the latter: with 1 / ratio**2 batches a step, signal and noise are even.
    """
    count = len(gradients)
    variance = float(np.sum(np.var(gradients, axis=0, ddof=1)))
    common = float(np.sum(np.mean(gradients, axis=0) ** 2)) - variance / count
    mean, deviation = max(common, 0.0) ** 0.5, variance**0.5
    return {"mean": mean, "deviation": deviation, "ratio": mean / deviation if deviation else 0.0}


def perturbation(space: SearchSpace, logits: Architecture, score: Score, seed: int) -> Genotype:
    """Keeps of every decision the choice whose removal hurts the supernet most.

    Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021: how large a
    logit has grown need not say how much its choice contributes. Decisions are made one after the
    other in random order, the earlier ones in force. The paper trains the supernet on for some
    epochs after each; here its weights stay.

    Args:
      space: the search space.
      logits: the relaxed architecture that the search ended with.
      score: what an architecture reaches in the supernet.
      seed: of the order.
    """
    logits = {kind: np.array(rows) for kind, rows in logits.items()}
    names = {"columns": COLUMNS, "attention": space.candidates}
    decisions = [(kind, where) for kind in names for where in np.ndindex(logits[kind].shape[:-1])]
    random.Random(seed).shuffle(decisions)
    for kind, where in decisions:

        def without(choice: int, kind=kind, where=where) -> float:
            changed = {k: rows.copy() for k, rows in logits.items()}
            changed[kind][where][choice] = OFF
            return score(changed)

        allowed = [i for i, name in enumerate(names[kind]) if name != "none"]
        kept = min(allowed, key=without)
        logits[kind][where] = np.where(np.arange(len(names[kind])) == kept, 0, OFF)
    return derive(space, logits["columns"], logits["attention"])


def best(genotypes: Sequence[Genotype], score: Score) -> tuple[Genotype, list[float]]:
    """The genotype that the supernet does best with, and the scores of all.

    Random search with shared weights: Li and Talwalkar, "Random Search and Reproducibility for
    Neural Architecture Search", UAI 2019.
    """
    scores = [score(genotype_logits(genotype)) for genotype in genotypes]
    return genotypes[int(np.argmax(scores))], scores


def probabilities(architecture: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Softmax of the logits."""
    return {k: np.asarray(jax.nn.softmax(jnp.asarray(v))) for k, v in architecture.items()}
