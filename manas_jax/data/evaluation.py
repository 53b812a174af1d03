"""Pairs of whole images to score on."""

from __future__ import annotations

import itertools
import pathlib
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from manas_jax.data import rain
from manas_jax.data.scene import Scene, read
from manas_jax.errors import UserError


def evaluation_pairs(
    scenes: Sequence[Scene], config, *, first: int = 0, every: int = 1
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields every rainy version of every scene with the scene's clean image.

    A scene without rainy versions gets one synthetic rain, seeded by its name.

    Args:
      scenes: the scenes to score on.
      config: the `data` part of a run's configuration, of which `evaluation_level` and `veil`
        determine the synthetic rain.
      first: the number of the first pair to read.
      every: read only each `every`-th pair from there on.

    Yields:
      Name, rainy image, clean image; the images are uint8 (height, width, 3).

    Raises:
      UserError: an image cannot be decoded, or the images of a pair differ in size.
    """
    for scene, version in itertools.islice(_versions(scenes), first, None, every):
        name, clean = _version_name(scene, version), read(scene.clean)
        if scene.rainy:
            rainy = read(scene.rainy[version])
            if rainy.shape != clean.shape:
                raise UserError(
                    f"{name}: rainy {rainy.shape} and clean {clean.shape} differ in size"
                )
            yield name, rainy, clean
        else:
            level = rain.check_level(config.evaluation_level, "data.evaluation_level")
            seed = np.array([0, zlib.crc32(scene.name.encode())])
            yield name, rain.synthesize_8_bits(clean, seed, level, config.veil), clean


def pair_names(scenes: Sequence[Scene]) -> list[str]:
    """The names that `evaluation_pairs` yields, without reading an image."""
    return [_version_name(scene, version) for scene, version in _versions(scenes)]


def _versions(scenes: Sequence[Scene]) -> Iterator[tuple[Scene, int]]:
    return ((scene, i) for scene in scenes for i in range(max(1, len(scene.rainy))))


def _version_name(scene: Scene, version: int) -> str:
    """The scene's name, with the stem of the rainy file as its last part; else SCENE-VERSION."""
    image = scene.rainy[version] if scene.rainy else None
    if isinstance(image, str):
        return str(pathlib.PurePath(scene.name).with_name(pathlib.PurePath(image).stem))
    return scene.name if len(scene.rainy) < 2 else f"{scene.name}-{version}"
