"""Scenes from photographs that come inside installed packages."""

import importlib.util
import pathlib

import numpy as np

from manas_jax.data import images
from manas_jax.data.scene import Scene
from manas_jax.errors import UserError

# Photographs that come inside packages this project requires: (package, path below it).
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
_TILE = 192  # pixels; the least side of a scene cut from a training photograph


def load(crop: int) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Training and test scenes from photographs that ship inside installed packages.

    Nothing is downloaded. Training photographs are cut into tiles that do not overlap (at least
    192 pixels and at least `crop` a side), one scene each; test photographs stay whole. No scene
    has rainy versions.

    Raises:
      UserError: a package comes without its photographs.
    """
    tiles = [
        scene
        for package, file in TRAINING_PHOTOGRAPHS
        for scene in _tiles(path_in_package(package, file), max(_TILE, crop))
    ]
    whole = [path_in_package(package, file) for package, file in TEST_PHOTOGRAPHS]
    return tuple(tiles), tuple(Scene(pathlib.Path(p).stem, p) for p in whole)


def path_in_package(package: str, file: str) -> str:
    """The path of a file inside an installed package, which is not imported.

    Raises:
      UserError: it is not there.
    """
    spec = importlib.util.find_spec(package)
    path = pathlib.Path(spec.origin).parent / file if spec else None
    if path is None or not path.is_file():
        raise UserError(
            f"data.source: the photograph {file} is missing from the package {package}; "
            f"reinstall it with pip"
        )
    return str(path)


def _tiles(path: str, side: int) -> list[Scene]:
    """Non-overlapping scenes of at least `side` pixels, as equal as can be, covering a picture."""
    pixels = images.read(path)
    name = pathlib.Path(path).stem
    rows = np.array_split(pixels, max(1, pixels.shape[0] // side), axis=0)
    return [
        Scene(f"{name}-{i}-{j}", np.ascontiguousarray(tile), photograph=name)
        for i, row in enumerate(rows)
        for j, tile in enumerate(np.array_split(row, max(1, pixels.shape[1] // side), axis=1))
    ]
