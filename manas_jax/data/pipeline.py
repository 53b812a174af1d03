"""From step number to batch: K rainy versions of S scenes, as tf.data or one step at a time.

A batch is a pure function of (scenes, config, seed, step), so resuming needs no iterator state and
any host can make its share alone. Every random choice is stateless: the order of an epoch comes
from `index_shuffle`, all else from the seed folded with the element's number.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from manas_jax.data import rain
from manas_jax.data.lazy_tf import tf
from manas_jax.data.picture_cache import PictureCache
from manas_jax.data.scene import Scene
from manas_jax.errors import UserError

_KINDS = ("real", "transfer", "synthetic")
_ENDLESS = np.iinfo(np.int64).max
_BATCHES_AHEAD = 4


class Batches:
    """Training batches of one split.

    A batch holds S scenes, each seen through K = `config.versions` rains. Every scene comes once an
    epoch, each epoch in another order. Each of the K slots draws its kind by the weights
    `config.real`, `config.transfer` and `config.synthetic`:

    - real: one of the scene's own rainy pictures, none twice among the K; a slot that finds them
      used up is drawn again among the other two kinds;
    - transfer: the streaks of a rainy picture of another scene (cropped and flipped by itself);
    - synthetic: see `rain.synthesize`, with `config.level` and `config.veil`.

    The K versions and the clean picture share one crop and one of the eight flips and quarter
    turns.

    Decoded pictures are kept in memory where all of them fit `config.cache_gib`, else on disk
    where `config.cache_dir` names a folder, else files are decoded each time. Batches are the same
    either way.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        config,
        *,
        batch_scenes: int,
        crop: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Checks that batches can be made; no picture is decoded yet.

        Args:
          scenes: what to draw from.
          config: the `data` part of a run's configuration.
          batch_scenes: scenes in the global batch, over all hosts.
          crop: side of the patches in pixels.
          seed: of order, crops, flips and rain.
          process_index: this host.
          process_count: hosts; their parts, one behind the other, are the batch of a single host.

        Raises:
          UserError: no scenes, a picture smaller than the crop, a value out of range, more versions
            wanted than the mixture can give, hosts that do not share the batch evenly, or a
            `cache_dir` that is needed and cannot be written to.
        """
        scenes = tuple(scenes)
        _check(scenes, config, batch_scenes, crop, process_count)
        self._config, self._crop, self._seed = config, crop, seed
        self._kinds = tuple(kind for kind in _KINDS if config[kind] > 0)
        self._batch_scenes = batch_scenes
        self._share = batch_scenes // process_count
        self._first = process_index * self._share

        counts = np.array([len(scene.rainy) for scene in scenes])
        pictures = [p for scene in scenes for p in (scene.clean, *scene.rainy)]
        scene_sizes = np.array([scene.size for scene in scenes], np.int64)
        sizes = np.repeat(scene_sizes, counts + 1, axis=0)
        self._pictures = PictureCache(pictures, sizes, config)
        sources = np.flatnonzero(counts)
        ranks = np.full(len(scenes), len(sources))
        ranks[sources] = np.arange(len(sources))
        cleans = np.cumsum(counts + 1) - (counts + 1)
        self._tables = _Tables(cleans, counts, scene_sizes, sources, ranks)

    @functools.cached_property
    def _tensors(self) -> _Tables:
        """Tensors, not arrays: the graph then refers to them instead of holding copies."""
        with tf.init_scope():  # they outlive the graph that is being traced
            return _Tables(*(tf.constant(table, tf.int64) for table in self._tables))

    @functools.cached_property
    def _element(self) -> Any:
        # Not inlined, it is optimised by itself: called directly or by tf.data, it rounds alike.
        return tf.function(
            self._make_element,
            input_signature=[tf.TensorSpec((), tf.int64)],
            autograph=False,
            experimental_attributes={"_noinline": True},
        )

    def at(self, step: int) -> dict[str, np.ndarray]:
        """This host's part of the batch of one step.

        Returns:
          {'rainy': float32 (S, K, crop, crop, 3), 'clean': float32 (S, crop, crop, 3)} in [0, 1],
          S the scenes of this host.

        Raises:
          UserError: a picture cannot be decoded; names it.
        """
        first = step * self._batch_scenes + self._first
        with self._pictures.user_errors():
            elements = [self._element(tf.constant(first + i, tf.int64)) for i in range(self._share)]
        return {key: np.stack([e[key].numpy() for e in elements]) for key in elements[0]}

    def iterate(self, start: int, stop: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """`at(start)`, `at(start + 1)`, ... up to `stop` (excluded; None: endless), prefetched."""
        share = self._share
        last = _ENDLESS if stop is None else stop * share
        # Autotuning sleeps for up to a minute at a time, and the end would wait for it.
        options = tf.data.Options()
        options.autotune.enabled = False
        with self._pictures.user_errors():
            elements = tf.data.Dataset.range(start * share, last).map(
                lambda i: self._element(i // share * self._batch_scenes + self._first + i % share),
                num_parallel_calls=os.cpu_count(),
                deterministic=True,
            )
            batches = elements.batch(share, drop_remainder=True).prefetch(_BATCHES_AHEAD)
            yield from batches.with_options(options).as_numpy_iterator()

    def _make_element(self, number: tf.Tensor) -> dict[str, tf.Tensor]:
        """One scene of a batch; `number` counts the elements of all batches from 0."""
        count = tf.constant(len(self._tables.clean), tf.int64)
        epoch, position = number // count, number % count
        scene = _shuffled(position, tf.stack([self._seed, epoch]), count)
        seeds = tf.random.split(tf.stack([self._seed, number]), 5 + self._config.versions)
        corner = self._corner(scene, seeds[0])
        clean = self._patch(self._tensors.clean[scene], corner)
        available = self._tensors.counts[scene]
        kinds, ranks = self._draw(available, seeds[1], seeds[2])

        def version(slot) -> tf.Tensor:
            kind, rank, seed = slot
            makers = {
                "real": lambda: self._patch(
                    self._tensors.clean[scene] + 1 + _shuffled(rank, seeds[3], available), corner
                ),
                "transfer": lambda: self._transferred(scene, clean, seed),
                "synthetic": lambda: rain.synthesize(
                    clean, seed, self._config.level, self._config.veil
                ),
            }
            return tf.switch_case(kind, [makers[kind] for kind in self._kinds])

        versions = tf.map_fn(version, (kinds, ranks, seeds[5:]), fn_output_signature=tf.float32)
        patches = _dihedral(tf.concat([clean[None], versions], axis=0), seeds[4])
        return {"rainy": patches[1:], "clean": patches[0]}

    def _draw(self, available, kind_seed, other_seed) -> tuple[tf.Tensor, tf.Tensor]:
        """For the K slots: index of the kind in `self._kinds`, and how many real ones precede."""
        count = self._config.versions
        weights = np.array([self._config[kind] for kind in self._kinds])
        kinds = _categorical(weights, count, kind_seed)
        real = kinds == (self._kinds.index("real") if "real" in self._kinds else -1)
        ranks = tf.cumsum(tf.cast(real, tf.int64), exclusive=True)
        others = np.array([0 if kind == "real" else self._config[kind] for kind in self._kinds])
        if others.any():
            redrawn = _categorical(others, count, other_seed)
            kinds = tf.where(real & (ranks >= available), redrawn, kinds)
        return kinds, ranks

    def _transferred(self, scene, clean, seed) -> tf.Tensor:
        """The streaks of another scene's pair, with a crop and flips of their own, on `clean`."""
        seeds = tf.unstack(tf.random.split(seed, 4))
        count, rank = len(self._tables.sources), self._tensors.ranks[scene]
        choices = count - tf.cast(rank < count, tf.int64)
        chosen = _below(choices, seeds[0])
        chosen += tf.cast(chosen >= rank, tf.int64)  # skips `scene` itself
        source = self._tensors.sources[chosen]
        version = _below(self._tensors.counts[source], seeds[1])
        corner = self._corner(source, seeds[2])
        pair = tf.stack(
            [
                self._patch(self._tensors.clean[source] + 1 + version, corner),
                self._patch(self._tensors.clean[source], corner),
            ]
        )
        # No quarter turns here: rain falls. Turning a whole patch is the augmentation's choice.
        rainy, other = tf.unstack(_flip(pair, tf.unstack(_coins(2, seeds[3]))))
        return rain.transfer(clean, rainy, other)

    def _corner(self, scene, seed) -> tf.Tensor:
        """A random (top, left) of a patch that lies inside the scene."""
        room = tf.unstack(self._tensors.sizes[scene] - self._crop + 1)
        seeds = tf.unstack(tf.random.split(seed, 2))
        return tf.stack([_below(limit, s) for limit, s in zip(room, seeds, strict=True)])

    def _patch(self, picture, corner) -> tf.Tensor:
        return tf.cast(self._pictures.patch(picture, corner, self._crop), tf.float32) * (1 / 255)


class _Tables(NamedTuple):
    """What there is to draw from, int64; pictures are in one row, a scene's clean one first.

    Attributes:
      clean: the number of each scene's clean picture.
      counts: how many rainy ones come behind it.
      sizes: each scene's height and width.
      sources: the scenes that have rainy pictures.
      ranks: of each scene among the sources; their number for one that is none.
    """

    clean: Any
    counts: Any
    sizes: Any
    sources: Any
    ranks: Any


def _check(scenes: tuple[Scene, ...], config, batch_scenes: int, crop: int, hosts: int) -> None:
    if not scenes:
        raise UserError("data: no training scenes in this split; see data.source and data.root")
    if batch_scenes < 1 or batch_scenes % hosts:
        raise UserError(
            f"batch of {batch_scenes} scenes: must be positive and divisible by the {hosts} hosts"
        )
    if config.versions < 1:
        raise UserError(f"data.versions: {config.versions} must be at least 1")
    rain.check_level(config.level, "data.level")
    if not 0 <= config.veil <= 1:
        raise UserError(f"data.veil: {config.veil} must lie between 0 and 1")
    weights = {kind: config[kind] for kind in _KINDS}
    if min(weights.values()) < 0 or not any(weights.values()):
        raise UserError(
            f"data.real, data.transfer, data.synthetic: the weights {list(weights.values())} must "
            "not be negative nor all zero"
        )
    for scene in scenes:
        if min(scene.size) < crop:
            raise UserError(
                f"scene {scene.name}: {scene.size[0]}x{scene.size[1]} pixels do not hold a patch "
                f"of {crop}x{crop}; reduce the crop"
            )
    poorest = min(scenes, key=lambda scene: len(scene.rainy))
    only_real = not weights["transfer"] and not weights["synthetic"]
    if only_real and len(poorest.rainy) < config.versions:
        raise UserError(
            f"data.versions: {config.versions} rainy versions wanted, but scene {poorest.name} has "
            f"{len(poorest.rainy)}; turn on data.transfer or data.synthetic, or reduce "
            "data.versions"
        )
    if weights["transfer"] and sum(bool(scene.rainy) for scene in scenes) < 2:
        raise UserError(
            "data.transfer: needs at least two scenes with real rain; set it to 0 and "
            "data.synthetic above 0"
        )


# --- stateless draws -------------------------------------------------------------------------


def _shuffled(index, seed, count) -> tf.Tensor:
    """Where `index` goes in a permutation of range(count) that the seed (2,) picks."""
    # The operation wants at least two to shuffle; of one, the permutation is known.
    moved = tf.random.experimental.index_shuffle(index, seed, tf.maximum(count - 1, 1))
    return tf.where(count > 1, moved, 0)


def _below(limit: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform((), seed, maxval=limit, dtype=tf.int64)


def _categorical(weights: np.ndarray, count: int, seed: tf.Tensor) -> tf.Tensor:
    """int32 (count,): indices drawn with probabilities proportional to `weights`."""
    edges = np.cumsum(weights / weights.sum())[:-1].astype(np.float32)
    draws = tf.random.stateless_uniform((count, 1), seed)
    return tf.reduce_sum(tf.cast(draws >= edges, tf.int32), axis=1)


def _coins(count: int, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform((count,), seed, maxval=2, dtype=tf.int32) == 1


# --- the dihedral group ----------------------------------------------------------------------


def _flip(images: tf.Tensor, coins: Sequence[tf.Tensor]) -> tf.Tensor:
    """Flips all of (N, H, W, C) upside down, left to right, as the two coins say."""
    images = tf.where(coins[0], images[:, ::-1], images)
    return tf.where(coins[1], images[:, :, ::-1], images)


def _dihedral(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """One of the 8 flips and quarter turns, the same for all square images of (N, H, H, C)."""
    *flips, swap = tf.unstack(_coins(3, seed))
    images = _flip(images, flips)
    return tf.where(swap, tf.transpose(images, (0, 2, 1, 3)), images)
