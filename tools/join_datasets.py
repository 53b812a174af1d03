"""Joins datasets into one folder to train on, with scenes of each held out for scoring.

python -m tools.join_datasets OUT NAME=DIR:HELD_OUT...

Writes links OUT/train/NAME/{ground_truth,rainy_image} and, of HELD_OUT scenes of each dataset,
OUT/test/NAME/{ground_truth,rainy_image}. They are the scenes that `data.validation_scenes` holds
out of a training on the dataset alone, so weights of such a training have not seen them either. A
test folder of a dataset is left out. Training leaves out scenes whose clean image is held out
elsewhere.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from manas_jax.config import default
from manas_jax.data import pairing
from manas_jax.data.scene import Scene
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError, one_line

CROP = 64  # the least side of a scene to train on


def join(out: pathlib.Path, name: str, root: str, held_out: int) -> tuple[int, int]:
    """Links the scenes of a dataset; returns how many are to train on and how many held out."""
    data = default().data
    data.update(root=root, validation_scenes=held_out)
    splits = load_splits(data, CROP)
    training = splits.weights + splits.architecture
    _link(out / "train" / name, training)
    _link(out / "test" / name, splits.validation)
    return len(training), len(splits.validation)


def _link(folder: pathlib.Path, scenes: Sequence[Scene]) -> None:
    if not scenes:
        return
    clean_folder, rainy_folder = folder / "ground_truth", folder / "rainy_image"
    clean_folder.mkdir(parents=True)
    rainy_folder.mkdir()
    stems = _stems([pathlib.Path(scene.clean).stem for scene in scenes])
    keys = set(map(_key, stems))
    for stem, scene in zip(stems, scenes, strict=True):
        clean = pathlib.Path(os.path.abspath(scene.clean))
        (clean_folder / f"{stem}{clean.suffix}").symlink_to(clean)
        # A version may not have the name of another clean picture: of street and street_1, say.
        versions = (f"{stem}_{number}" for number in itertools.count(1))
        versions = (version for version in versions if _key(version) not in keys)
        for version, rainy in zip(versions, map(pathlib.Path, scene.rainy), strict=False):
            (rainy_folder / f"{version}{rainy.suffix}").symlink_to(os.path.abspath(rainy))


def _stems(stems: Sequence[str]) -> list[str]:
    """Stems that differ, also of pictures in several folders of the dataset."""
    namesakes, unique = collections.Counter(), []
    for stem in stems:
        namesakes[stem] += 1
        repeated = namesakes[stem] > 1
        unique.append(f"{stem}-namesake{namesakes[stem]}" if repeated else stem)
    return unique


def _key(stem: str) -> str:
    return pairing.role_and_key(stem)[1]


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path, help="a new folder")
    parser.add_argument("datasets", nargs="+", metavar="NAME=DIR:HELD_OUT")
    options = parser.parse_args()
    datasets = _parse(options.datasets)
    if options.out.exists():
        raise UserError(f"{options.out} exists: name a new folder")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".joining-", dir=options.out.parent) as folder:
            unfinished = pathlib.Path(folder) / "joined"
            unfinished.mkdir()
            for name, (root, held_out) in datasets.items():
                training, held = join(unfinished, name, root, held_out)
                print(f"{name}: {training} scenes to train on, {held} held out")
            unfinished.rename(options.out)
    except OSError as error:
        raise UserError(f"{options.out}: cannot be written ({one_line(error)})") from error


def _parse(arguments: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Folder and number of held-out scenes of each dataset, by its name.

    Raises:
      UserError: an argument is not NAME=DIR:HELD_OUT, or a name is given twice.
    """
    datasets = {}
    for argument in arguments:
        name, _, rest = argument.partition("=")
        root, _, held_out = rest.rpartition(":")
        if not (name and root and held_out.isdecimal()) or "/" in name:
            raise UserError(f"{argument}: give NAME=DIR:HELD_OUT")
        if name in datasets:
            raise UserError(f"{argument}: another dataset is called {name}; rename one of them")
        datasets[name] = root, int(held_out)
    return datasets


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
