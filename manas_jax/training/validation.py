"""Scores on the validation pictures during search and training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from manas_jax import metrics
from manas_jax.data.evaluation import evaluation_pairs
from manas_jax.data.scene import Scene
from manas_jax.errors import Diverged, UserError
from manas_jax.models.network import Architecture, Network
from manas_jax.runtime import distributed, sharding

PyTree = Any
BATCH = 8  # pictures per call, rounded up to a multiple of the devices


class Validation:
    """Scores the centres of the validation pictures, all of one size: one compiled program.

    Each of several processes scores its share of the pictures on its own devices.
    """

    def __init__(
        self, network: Network, scenes: Sequence[Scene], data: ConfigDict, crop: int, mesh: Mesh
    ):
        """Reads the pictures.

        Args:
          network: the network to score.
          scenes: the validation scenes.
          data: the `data` options of the configuration.
          crop: side in pixels of the scored centre; smaller where a picture is.
          mesh: pictures are split over its devices.
        """
        self._mesh = sharding.local_mesh(mesh)
        data_axis, _ = self._mesh.devices.shape
        side = validation_side(scenes, crop, mesh)
        share = {"first": jax.process_index(), "every": jax.process_count()}
        self._pairs = [
            (_centre(rainy, side), _centre(clean, side))
            for _, rainy, clean in evaluation_pairs(scenes, data, **share)
        ]
        self._batch = -(-BATCH // data_axis) * data_axis

        @jax.jit
        def apply(variables, architecture, rainy):
            outputs = network.apply(variables, rainy.astype(jnp.float32) / 255, architecture)
            return jax.lax.with_sharding_constraint(outputs, sharding.replicated(self._mesh))

        self._apply = apply

    def __call__(self, variables: PyTree, architecture: Architecture | None = None):
        """Mean `metrics.Scores` of the restored pictures; each counts once.

        Args:
          variables: 'params' and 'batch_stats' of the network.
          architecture: logits of every decision, by kind, each (*decisions, choices), see
            `SearchSpace.decisions`; None for a derived network.

        Raises:
          Diverged: a restored picture is NaN, in any of the processes.
        """
        variables, architecture = sharding.to_local_mesh((variables, architecture), self._mesh)
        scores = []
        for first in range(0, len(self._pairs), self._batch):
            pairs = self._pairs[first : first + self._batch]
            rainy, clean = map(np.stack, zip(*pairs, strict=True))
            missing = self._batch - len(rainy)
            padded = np.concatenate([rainy, np.repeat(rainy[:1], missing, axis=0)])
            padded = jax.device_put(padded, sharding.batch_sharding(self._mesh, padded.ndim))
            outputs = np.asarray(self._apply(variables, architecture, padded))[: len(rainy)]
            try:
                scores += map(metrics.score, map(metrics.to_uint8, outputs), clean)
            except Diverged:  # told to all processes: others may wait for the scores of this one
                scores = [metrics.Scores(*[math.nan] * len(dataclasses.fields(metrics.Scores)))]
                break
        return _mean(scores)

    @property
    def inputs(self):
        """Mean `metrics.Scores` of the rainy pictures as they are."""
        return _mean([metrics.score(rainy, clean) for rainy, clean in self._pairs])


def validation_side(scenes: Sequence[Scene], crop: int, mesh: Mesh) -> int:
    """Side in pixels of the centres to score: at most `crop`, and inside of every picture.

    Raises:
      UserError: a picture is too small to be scored.
    """
    smallest = min(scenes, key=lambda scene: min(scene.size))
    shards = mesh.shape[sharding.HEIGHT]
    side = min(crop, *smallest.size) // shards * shards
    if side < metrics.SSIM_WINDOW:
        height, width = smallest.size
        raise UserError(
            f"validation scene {smallest.name}: {height}x{width} pixels are too small to be scored "
            f"with height_shards = {shards}; scores need {metrics.SSIM_WINDOW} pixels: remove it"
        )
    return side


def _mean(scores: Sequence[metrics.Scores]) -> metrics.Scores:
    """Over the pictures of all processes, in the pictures' order: the same bits in any number."""
    rows = distributed.gather([dataclasses.astuple(score) for score in scores])
    if np.isnan(rows).any():
        raise Diverged("the network makes NaN of a validation picture: its weights have diverged")
    return metrics.mean([metrics.Scores(*row) for row in rows])


def _centre(picture: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]
