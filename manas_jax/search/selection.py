"""Choosing an architecture by the scores of a searched supernet, without training.

With logits far apart the supernet computes what the derived network does, so one compiled program
serves every genotype. Architectures are scored on batches of architecture scenes, normalised by
their own statistics as in the search: the running statistics belong to the mixture, not to a single
path.
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
from manas_jax.runtime import signals
from manas_jax.space import Genotype, SearchSpace, derivable, derive
from manas_jax.training import build, losses
from manas_jax.training.state import SearchState

PyTree = Any
Batch = Mapping[str, Any]
Score = Callable[[Architecture], float]


class SupernetEvaluator:
    """Scores architectures with the weights of a search; trains nothing.

    Attributes:
      state: the search state.
    """

    def __init__(
        self,
        config: ConfigDict,
        state: SearchState,
        architecture_batches: Sequence[Batch],
        weight_batches: Sequence[Batch] = (),
    ):
        """Compiles nothing yet.

        Args:
          config: of the search.
          state: the end of the search.
          architecture_batches: batches of architecture scenes to evaluate on.
          weight_batches: batches of weight scenes, for `recalibrate_batch_norm`.
        """
        self.state = state
        self._architecture_batches = list(architecture_batches)
        self._weight_batches = list(weight_batches)
        loss_fn = losses.scene_loss_fn(
            build.network(config), build.loss_weights(config), internal_from=0
        )
        step = jnp.zeros((), jnp.int32)

        @jax.jit
        def apply(params, architecture, batch_stats, batch):
            _, (batch_stats, metrics) = loss_fn(params, architecture, batch_stats, step, batch)
            return batch_stats, metrics["psnr"]

        self._apply = apply

    def __call__(self, architecture: Architecture) -> float:
        """Mean PSNR in dB, normalised by each batch's own statistics."""
        architecture, state = _arrays(architecture), self.state
        scores = [
            self._apply(state.params, architecture, state.batch_stats, batch)[1]
            for batch in self._architecture_batches
        ]
        return float(np.mean(jax.device_get(scores)))

    def recalibrate_batch_norm(self, architecture: Architecture) -> PyTree:
        """Running statistics of this architecture, updated on the weight scenes."""
        architecture, batch_stats = _arrays(architecture), self.state.batch_stats
        for batch in self._weight_batches:
            batch_stats, _ = self._apply(self.state.params, architecture, batch_stats, batch)
        return batch_stats


def _arrays(architecture: Architecture) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, dict(architecture))


def perturbation(space: SearchSpace, logits: Architecture, score: Score, seed: int) -> Genotype:
    """Picks, for every decision, the choice whose removal lowers the supernet's score most.

    Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021: how large a
    logit has grown need not tell how much its choice contributes. Decisions are fixed one after the
    other in random order. The paper trains the supernet for some epochs after each; here its
    weights do not change.

    Args:
      space: the search space.
      logits: the relaxed architecture at the end of the search.
      score: of an architecture in the supernet, higher is better.
      seed: of the order.

    Raises:
      Stopped: a signal came; nothing is saved.
    """
    logits = {kind: np.array(rows) for kind, rows in logits.items()}
    decisions = [(k, where) for k, shape in space.decisions.items() for where in np.ndindex(shape)]
    random.Random(seed).shuffle(decisions)
    for kind, where in decisions:

        def without(choice: int, kind=kind, where=where) -> float:
            changed = {k: rows.copy() for k, rows in logits.items()}
            changed[kind][where][choice] = OFF
            signals.check()
            return score(changed)

        choices = space.choices[kind]
        chosen = min(derivable(choices), key=without)
        logits[kind][where] = np.where(np.arange(len(choices)) == chosen, 0, OFF)
    return derive(space, **logits)


def best(genotypes: Sequence[Genotype], score: Score) -> tuple[Genotype, list[float]]:
    """The genotype with the highest score in the supernet, and the scores of all.

    Random search with shared weights: Li and Talwalkar, "Random Search and Reproducibility for
    Neural Architecture Search", UAI 2019.

    Raises:
      Stopped: a signal came; nothing is saved.
    """
    scores = []
    for genotype in genotypes:
        signals.check()
        scores.append(score(genotype_logits(genotype)))
    return genotypes[int(np.argmax(scores))], scores


def softmax(architecture: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Probabilities of the logits."""
    return {k: np.asarray(jax.nn.softmax(jnp.asarray(v))) for k, v in architecture.items()}
