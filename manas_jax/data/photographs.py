"""Scenes of photographs that ship inside installed packages."""

import importlib.util
import pathlib

import numpy as np

from manas_jax.data import images
from manas_jax.data.scene import Scene
from manas_jax.errors import UserError

# (required package, path below it).
TRAINING_PHOTOGRAPHS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("skimage", "data/brick.png"),
    ("skimage", "data/gravel.png"),
    ("skimage", "data/grass.png"),
    ("skimage", "data/coins.png"),
)
TEST_PHOTOGRAPHS = (
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/camera.png"),
)
_MIN_TILE = 192  # pixels; the least side of a scene of a training photograph


def load(crop: int) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Loads training and test scenes; nothing is downloaded.

    A training photograph is split into tiles that do not overlap, with sides of at least 192
    pixels and at least `crop`, one scene each; test photographs stay whole. No scene has rainy
    versions.

    Returns:
      Training scenes, test scenes.

    Raises:
      UserError: a photograph is missing from its package.
    """
    tiles = [
        scene
        for package, file in TRAINING_PHOTOGRAPHS
        for scene in _tiles(path_in_package(package, file), max(_MIN_TILE, crop))
    ]
    whole = [path_in_package(package, file) for package, file in TEST_PHOTOGRAPHS]
    return tuple(tiles), tuple(Scene(pathlib.Path(p).stem, p) for p in whole)


def path_in_package(package: str, file: str) -> str:
    """Finds a photograph inside an installed package, without importing the package.

    Raises:
      UserError: it is missing.
    """
    spec = importlib.util.find_spec(package)
    path = pathlib.Path(spec.origin).parent / file if spec else None
    if path is None or not path.is_file():
        raise UserError(
            f"data.source: the photograph {file} is missing from the package {package}; "
            "reinstall it with pip"
        )
    return str(path)


def _tiles(path: str, side: int) -> list[Scene]:
    """Splits a photograph into scenes with sides of at least `side`, as equal as possible."""
    pixels = images.read(path)
    name = pathlib.Path(path).stem
    rows = np.array_split(pixels, max(1, pixels.shape[0] // side), axis=0)
    return [
        Scene(f"{name}-{i}-{j}", np.ascontiguousarray(tile), photograph=name)
        for i, row in enumerate(rows)
        for j, tile in enumerate(np.array_split(row, max(1, pixels.shape[1] // side), axis=1))
    ]
