"""Pairs of whole pictures to score on."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from manas_jax.data import rain
from manas_jax.data.lazy_tf import tf
from manas_jax.data.scene import Scene, read
from manas_jax.errors import UserError


def evaluation_pairs(
    scenes: Sequence[Scene], config, *, first: int = 0, every: int = 1
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Whole pictures: (name, rainy, clean), both uint8 (height, width, 3), every real version once.

    Only each `every`-th picture is made and read, from number `first` on.

    A scene without rainy versions gets one synthetic rain of `config.evaluation_level` and
    `config.veil`, fixed by the scene's name.

    Raises:
      UserError: a picture cannot be decoded, or the pictures of a pair differ in size.
    """
    pictures = ((scene, i) for scene in scenes for i in range(max(1, len(scene.rainy))))
    for scene, version in itertools.islice(pictures, first, None, every):
        clean = read(scene.clean)
        if scene.rainy:
            name, rainy = _version_name(scene, version), read(scene.rainy[version])
            if rainy.shape != clean.shape:
                raise UserError(
                    f"{name}: rainy {rainy.shape} and clean {clean.shape} differ in size"
                )
            yield name, rainy, clean
        else:
            rainy = rain.synthesize(
                tf.constant(clean, tf.float32) / 255,
                tf.constant([0, zlib.crc32(scene.name.encode())], tf.int64),
                rain.check_level(config.evaluation_level, "data.evaluation_level"),
                config.veil,
            )
            yield scene.name, np.round(rainy.numpy() * 255).astype(np.uint8), clean


def _version_name(scene: Scene, version: int) -> str:
    """The rainy file's own name (below the scene's folder), else the scene's and a number."""
    picture = scene.rainy[version]
    if isinstance(picture, str):
        return os.path.join(
            os.path.dirname(scene.name), os.path.splitext(os.path.basename(picture))[0]
        )
    return scene.name if len(scene.rainy) == 1 else f"{scene.name}-{version}"
