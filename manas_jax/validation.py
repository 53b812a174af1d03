"""Scores of the validation pictures while a network is still being made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from manas_jax import metrics, sharding
from manas_jax.data import pipeline
from manas_jax.data.scenes import Scene
from manas_jax.models.network import Architecture, Network

PyTree = Any
BATCH = 8  # pictures a call, rounded up to the number of devices


class Validation:
    """Scores the centres of the validation pictures, all of one size: one compiled program."""

    def __init__(
        self, network: Network, scenes: Sequence[Scene], data: ConfigDict, crop: int, mesh: Mesh
    ):
        """Reads the pictures.

        Args:
          network: the network to score.
          scenes: the validation scenes.
          data: the `data` part of the configuration.
          crop: side of the centre that is scored, or that of the smallest picture.
          mesh: the pictures are split over its devices.
        """
        pairs = [(rainy, clean) for _, rainy, clean in pipeline.evaluation_pairs(scenes, data)]
        side = min([crop, *(min(clean.shape[:2]) for _, clean in pairs)])
        self._rainy, self._clean = (
            np.stack([_centre(pair[i], side) for pair in pairs]) for i in range(2)
        )
        self._mesh = mesh
        self._batch = -(-BATCH // mesh.devices.size) * mesh.devices.size

        @jax.jit
        def apply(variables, architecture, rainy):
            outputs = network.apply(variables, rainy.astype(jnp.float32) / 255, architecture)
            return jax.lax.with_sharding_constraint(outputs, sharding.replicated(mesh))

        self._apply = apply

    def __call__(self, variables: PyTree, architecture: Architecture | None = None):
        """Mean `metrics.Scores` of the restored pictures; each counts once."""
        scores = []
        for first in range(0, len(self._rainy), self._batch):
            rainy = self._rainy[first : first + self._batch]
            missing = self._batch - len(rainy)
            padded = np.concatenate([rainy, np.repeat(rainy[:1], missing, axis=0)])
            padded = jax.device_put(padded, sharding.split(self._mesh))
            outputs = np.asarray(self._apply(variables, architecture, padded))[: len(rainy)]
            clean = self._clean[first : first + self._batch]
            scores += [
                metrics.score(metrics.to_uint8(o), c) for o, c in zip(outputs, clean, strict=True)
            ]
        return metrics.mean(scores)

    @property
    def inputs(self):
        """Mean `metrics.Scores` of the rainy pictures as they are."""
        pairs = zip(self._rainy, self._clean, strict=True)
        return metrics.mean([metrics.score(rainy, clean) for rainy, clean in pairs])


def _centre(picture: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]
