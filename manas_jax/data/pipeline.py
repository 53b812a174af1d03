"""Training batches: K rainy versions of S scenes, indexed by step.

A batch is a pure function of (scenes, config, seed, step), so resuming needs no iterator state and
each process computes its shard alone. All random choices are stateless: `index_shuffle` gives the
order of an epoch, the seed folded with the number of an element gives everything else.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import psutil

from manas_jax.data import rain, stripes
from manas_jax.data.image_cache import ImageCache
from manas_jax.data.lazy_tf import tf
from manas_jax.data.scene import Scene
from manas_jax.errors import UserError

_KINDS = ("real", "transfer", "synthetic")
_ENDLESS = np.iinfo(np.int64).max
_PREFETCH = 4  # batches


class Batches:
    """Training batches of one split.

    A batch has S scenes with K = `config.versions` rainy versions each. An epoch has every scene
    once, in an order of its own. The kind of each version is drawn with the weights `config.real`,
    `config.transfer` and `config.synthetic`:

    - real: one of the scene's own rainy images, without replacement; once they are used up, the
      kind is drawn again from the other two;
    - transfer: the streaks of a rainy image of another scene, with their own crop and flips;
    - synthetic: see `rain.synthesize`, with `config.level`, `config.veil` and `config.appearance`.

    A share `config.stripes` of the scenes get a fence before the rain, see `stripes.draw`; the
    streaks of their own rainy images are then added to it.

    The K versions and the clean image share one crop and one of the 8 symmetries of the square.
    Batches do not depend on how images are cached, see `image_cache`.
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
        """Checks the arguments; no image is decoded yet.

        Args:
          scenes: the scenes to draw from.
          config: the `data` part of a run's configuration.
          batch_scenes: scenes per global batch, of all processes.
          crop: side of the patches in pixels.
          seed: of order, crops, symmetries and rain.
          process_index: the index of this process.
          process_count: how many processes share a batch; their shards in order are the batch.

        Raises:
          UserError: no scenes, an image smaller than the crop, a value out of range, more versions
            than the kinds of rain can give, a batch that the processes cannot share evenly, or a
            `cache_dir` that is needed and cannot be written.
        """
        scenes = tuple(scenes)
        check(scenes, config, batch_scenes=batch_scenes, crop=crop, process_count=process_count)
        self._config, self._crop, self._seed = config, crop, seed
        self._kinds = tuple(kind for kind in _KINDS if config[kind] > 0)
        self._batch_scenes = batch_scenes
        self._local_scenes = batch_scenes // process_count
        self._first = process_index * self._local_scenes

        counts = np.array([len(scene.rainy) for scene in scenes])
        images = [image for scene in scenes for image in (scene.clean, *scene.rainy)]
        scene_sizes = np.array([scene.size for scene in scenes], np.int64)
        sizes = np.repeat(scene_sizes, counts + 1, axis=0)
        self._images = ImageCache(images, sizes, config)
        sources = np.flatnonzero(counts)
        ranks = np.full(len(scenes), len(sources))
        ranks[sources] = np.arange(len(sources))
        clean = np.cumsum(counts + 1) - (counts + 1)
        self._tables = _Tables(clean, counts, scene_sizes, sources, ranks)

    @functools.cached_property
    def _tensors(self) -> _Tables:
        """The tables as tensors: a graph refers to tensors but copies arrays."""
        with tf.init_scope():  # the tensors outlive the graph that is being traced
            return _Tables(*(tf.constant(table, tf.int64) for table in self._tables))

    @functools.cached_property
    def _element(self) -> Any:
        # Without inlining it is optimised on its own, so that results are bit-identical whether it
        # is called directly or by tf.data.
        return tf.function(
            self._make_element,
            input_signature=[tf.TensorSpec((), tf.int64)],
            autograph=False,
            experimental_attributes={"_noinline": True},
        )

    def at(self, step: int) -> dict[str, np.ndarray]:
        """Computes this process's shard of the batch of one step.

        Returns:
          {'rainy': float32 (S, K, crop, crop, 3), 'clean': float32 (S, crop, crop, 3)} in [0, 1],
          where S counts the scenes of this process.

        Raises:
          UserError: an image cannot be decoded; names it.
        """
        first = step * self._batch_scenes + self._first
        self._images.prepare()
        elements = [
            self._element(tf.constant(first + i, tf.int64)) for i in range(self._local_scenes)
        ]
        self._images.check()
        return {key: np.stack([e[key].numpy() for e in elements]) for key in elements[0]}

    def iterate(self, start: int, stop: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Yields `at(start)` to `at(stop - 1)`, prefetched; without `stop`, endlessly.

        Raises:
          UserError: an image cannot be decoded, of this batch or of one prefetched; names it.
        """
        count = self._local_scenes
        last = _ENDLESS if stop is None else stop * count
        # The autotuner sleeps up to a minute at a time, for which the end of iteration would wait.
        options = tf.data.Options()
        options.autotune.enabled = False
        self._images.prepare()
        elements = tf.data.Dataset.range(start * count, last).map(
            lambda i: self._element(i // count * self._batch_scenes + self._first + i % count),
            num_parallel_calls=os.cpu_count(),
            deterministic=True,
        )
        batches = elements.batch(count, drop_remainder=True).prefetch(_PREFETCH)
        iterator = batches.with_options(options).as_numpy_iterator()
        try:
            for batch in iterator:
                self._images.check()
                yield batch
        finally:
            del iterator  # it waits for its threads, which must not last until Python exits

    def _make_element(self, number: tf.Tensor) -> dict[str, tf.Tensor]:
        """One scene of a batch; `number` counts the scenes of all batches from 0."""
        count = tf.constant(len(self._tables.clean), tf.int64)
        epoch, position = number // count, number % count
        scene = _shuffled(position, tf.stack([self._seed, epoch]), count)
        seeds = tf.random.split(tf.stack([self._seed, number]), 5 + self._config.versions)
        corner = self._corner(scene, seeds[0])
        clean = self._patch(self._tensors.clean[scene], corner)
        available = self._tensors.counts[scene]
        kinds, ranks = self._draw(available, seeds[1], seeds[2])
        photograph, fenced = clean, None
        if self._config.stripes:
            # Folded in, so that all else is drawn as it is without stripes.
            draw, chance = tf.unstack(tf.random.split(tf.random.fold_in(seeds[4], 1), 2))
            fenced = tf.random.stateless_uniform((), chance) < self._config.stripes
            clean = tf.cond(fenced, lambda: stripes.draw(photograph, draw), lambda: photograph)

        def real(rank) -> tf.Tensor:
            image = self._tensors.clean[scene] + 1 + _shuffled(rank, seeds[3], available)
            rainy = self._patch(image, corner)
            if fenced is None:
                return rainy
            return tf.cond(fenced, lambda: rain.transfer(clean, rainy, photograph), lambda: rainy)

        def version(drawn) -> tf.Tensor:
            kind, rank, seed = drawn
            functions = {
                "real": lambda: real(rank),
                "transfer": lambda: self._transfer(scene, clean, seed),
                "synthetic": lambda: rain.synthesize(
                    clean, seed, self._config.level, self._config.veil, self._config.appearance
                ),
            }
            return tf.switch_case(kind, [functions[kind] for kind in self._kinds])

        versions = tf.map_fn(version, (kinds, ranks, seeds[5:]), fn_output_signature=tf.float32)
        patches = _dihedral(tf.concat([clean[None], versions], axis=0), seeds[4])
        return {"rainy": patches[1:], "clean": patches[0]}

    def _draw(self, available, kind_seed, other_seed) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws the kinds of the K versions.

        Args:
          available: how many real versions the scene has.
          kind_seed: of the first draw.
          other_seed: of the second draw, for those beyond the real versions available.

        Returns:
          For each version the index of its kind in `self._kinds`, int32 (K,), and how many real
          ones precede it, int64 (K,).
        """
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

    def _transfer(self, scene, clean, seed) -> tf.Tensor:
        """Adds the streaks of another scene, with their own crop and flips, to `clean`."""
        seeds = tf.unstack(tf.random.split(seed, 4))
        count, rank = len(self._tables.sources), self._tensors.ranks[scene]
        choices = count - tf.cast(rank < count, tf.int64)
        chosen = _below(choices, seeds[0])
        chosen += tf.cast(chosen >= rank, tf.int64)  # skip `scene` itself
        source = self._tensors.sources[chosen]
        version = _below(self._tensors.counts[source], seeds[1])
        corner = self._corner(source, seeds[2])
        pair = tf.stack(
            [
                self._patch(self._tensors.clean[source] + 1 + version, corner),
                self._patch(self._tensors.clean[source], corner),
            ]
        )
        # No quarter turns, as rain falls; those of the augmentation turn the whole patch.
        rainy, other = tf.unstack(_flip(pair, tf.unstack(_coins(2, seeds[3]))))
        return rain.transfer(clean, rainy, other)

    def _corner(self, scene, seed) -> tf.Tensor:
        """A random (top, left) of a patch that lies inside the scene."""
        limits = tf.unstack(self._tensors.sizes[scene] - self._crop + 1)
        seeds = tf.unstack(tf.random.split(seed, 2))
        return tf.stack([_below(limit, s) for limit, s in zip(limits, seeds, strict=True)])

    def _patch(self, image, corner) -> tf.Tensor:
        return tf.cast(self._images.patch(image, corner, self._crop), tf.float32) * (1 / 255)


class _Tables(NamedTuple):
    """Per scene, int64. Images are numbered with each scene's clean one before its rainy ones.

    Attributes:
      clean: the number of the clean image.
      counts: how many rainy images follow it.
      sizes: height and width.
      sources: the scenes that have rainy images, ascending.
      ranks: the position of a scene in `sources`; `len(sources)` if it is not one of them.
    """

    clean: Any
    counts: Any
    sizes: Any
    sources: Any
    ranks: Any


def check(
    scenes: Sequence[Scene], config, *, batch_scenes: int, crop: int, process_count: int = 1
) -> None:
    """Checks the arguments of `Batches`, without decoding an image.

    Raises:
      UserError: see `Batches`.
    """
    if not scenes:
        raise UserError("data: no training scenes in this split; see data.source and data.root")
    if batch_scenes < 1 or batch_scenes % process_count:
        raise UserError(
            f"batch of {batch_scenes} scenes: must be positive and divisible by the "
            f"{process_count} processes"
        )
    if config.versions < 1:
        raise UserError(f"data.versions: {config.versions} must be at least 1")
    rain.check_level(config.level, "data.level")
    rain.check_appearance(config.appearance, "data.appearance")
    if not 0 <= config.veil <= 1:
        raise UserError(f"data.veil: {config.veil} must lie between 0 and 1")
    if not 0 <= config.stripes <= 1:
        raise UserError(f"data.stripes: {config.stripes} must lie between 0 and 1")
    weights = {kind: config[kind] for kind in _KINDS}
    if min(weights.values()) < 0 or not any(weights.values()):
        raise UserError(
            f"data.real, data.transfer, data.synthetic: the weights {list(weights.values())} must "
            "not be negative nor all zero"
        )
    for scene in scenes:
        if min(scene.size) < crop:
            raise UserError(
                f"scene {scene.name}: {scene.size[0]}x{scene.size[1]} pixels are too small for "
                f"patches of {crop}x{crop}; reduce the crop"
            )
    needed = 4 * 3 * crop**2 * (config.versions + 1) * batch_scenes // process_count
    if needed > (present := psutil.virtual_memory().total):
        raise UserError(
            f"a batch of {batch_scenes} scenes x {config.versions} versions x {crop}x{crop} pixels "
            f"takes {needed / 2**30:,.1f} GiB, and this machine has {present / 2**30:,.1f} GiB: "
            "reduce scenes, data.versions or crop"
        )
    fewest = min(scenes, key=lambda scene: len(scene.rainy))
    only_real = not weights["transfer"] and not weights["synthetic"]
    if only_real and len(fewest.rainy) < config.versions:
        raise UserError(
            f"data.versions: {config.versions} rainy versions requested, but scene "
            f"{fewest.name} has {len(fewest.rainy)}; enable data.transfer or data.synthetic, "
            "or reduce data.versions"
        )
    if weights["transfer"] and sum(bool(scene.rainy) for scene in scenes) < 2:
        raise UserError(
            "data.transfer: needs at least two scenes with real rain; set it to 0 and "
            "data.synthetic above 0"
        )


# --- stateless draws -------------------------------------------------------------------------


def _shuffled(index, seed, count) -> tf.Tensor:
    """The image of `index` under a permutation of range(count) drawn by the seed (2,)."""
    # `index_shuffle` needs at least two elements.
    shuffled = tf.random.experimental.index_shuffle(index, seed, tf.maximum(count - 1, 1))
    return tf.where(count > 1, shuffled, 0)


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
    """Flips images (N, H, W, C): vertically by the first coin, horizontally by the second."""
    images = tf.where(coins[0], images[:, ::-1], images)
    return tf.where(coins[1], images[:, :, ::-1], images)


def _dihedral(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Applies one of the 8 symmetries of the square to all images (N, H, H, C)."""
    *flips, swap = tf.unstack(_coins(3, seed))
    images = _flip(images, flips)
    return tf.where(swap, tf.transpose(images, (0, 2, 1, 3)), images)
