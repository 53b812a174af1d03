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
    pairs = ((scene, i) for scene in scenes for i in range(max(1, len(scene.rainy))))
    for scene, version in itertools.islice(pairs, first, None, every):
        clean = read(scene.clean)
        if scene.rainy:
            name, rainy = _version_name(scene, version), read(scene.rainy[version])
            if rainy.shape != clean.shape:
                raise UserError(
                    f"{name}: rainy {rainy.shape} and clean {clean.shape} differ in size"
                )
            yield name, rainy, clean
        else:
            level = rain.check_level(config.evaluation_level, "data.evaluation_level")
            seed = np.array([0, zlib.crc32(scene.name.encode())])
            yield scene.name, rain.synthesize_8_bits(clean, seed, level, config.veil), clean


def _version_name(scene: Scene, version: int) -> str:
    """The scene's name, with the stem of the rainy file as its last part; else SCENE-VERSION."""
    image = scene.rainy[version]
    if isinstance(image, str):
        return str(pathlib.PurePath(scene.name).with_name(pathlib.PurePath(image).stem))
    return scene.name if len(scene.rainy) == 1 else f"{scene.name}-{version}"
