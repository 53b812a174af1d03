"""Scenes of a folder whose layout is detected."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from manas_jax.data import catalog, images, pairing
from manas_jax.data.scene import Scene
from manas_jax.errors import UserError
from manas_jax.files import first_few, natural_order


def load(root) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Loads training and test scenes below the folder `root`.

    `root` has a train folder, a test folder or both; if it has neither, all of it is for training.
    Each of them, by the folder names in `catalog`, is one of

    - a folder of clean images and one of rainy images, paired by name (see `pairing`);
    - images whose names tell the role (`norain-1.png` and `rain-1.png`, `7_clean.png` and
      `7_rain.png`);
    - clean photographs;
    - several such folders.

    Returns:
      Training scenes, test scenes.

    Raises:
      UserError: the folder is missing or empty, or images lack their counterpart.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    folders = _folders(root)
    train = _named(folders, catalog.TRAIN_FOLDERS, root)
    test = _named(folders, catalog.TEST_FOLDERS, root)
    if train is None and test is None:
        return _scenes_in(root), ()
    return (_scenes_in(train) if train else ()), (_scenes_in(test) if test else ())


def _scenes_in(folder: pathlib.Path) -> tuple[Scene, ...]:
    folders = _folders(folder)
    clean = _named(folders, catalog.CLEAN_FOLDERS, folder)
    rainy = _named(folders, catalog.RAINY_FOLDERS, folder)
    if clean and rainy:
        return _pairs(_images(clean), _images(rainy))
    if clean or rainy:
        present, absent = (clean, "rainy") if clean else (rainy, "clean")
        raise UserError(
            f"{present}: there is no folder of {absent} images beside it; name it one of "
            f"{sorted(catalog.RAINY_FOLDERS if clean else catalog.CLEAN_FOLDERS)}"
        )
    files = _images(folder, may_be_empty=bool(folders))
    if files:
        return _scenes_of_files(files)
    return tuple(
        dataclasses.replace(scene, name=f"{inner.name}/{scene.name}")
        for inner in folders
        for scene in _scenes_in(inner)
    )


def _scenes_of_files(files: Sequence[pathlib.Path]) -> tuple[Scene, ...]:
    """Scenes of a folder whose file names tell the role, or of clean photographs."""
    roles = collections.defaultdict(list)
    for path in files:
        roles[pairing.role_and_key(path.stem)[0]].append(path)
    others = roles[""] + roles["restored"]
    if roles["clean"] and others:
        raise UserError(
            f"{first_few(others)}: the name says neither clean nor rainy, unlike others in the "
            "folder"
        )
    if roles["clean"] or not others:
        return _pairs(roles["clean"], roles["rainy"])
    photographs = pairing.by_unique_key((path.stem, str(path)) for path in files)
    return tuple(Scene(name, path) for name, path in photographs.items())


def _pairs(clean: Iterable[pathlib.Path], rainy: Iterable[pathlib.Path]) -> tuple[Scene, ...]:
    def keyed(paths: Iterable[pathlib.Path]) -> list[tuple[str, str]]:
        return [(pairing.role_and_key(path.stem)[1], str(path)) for path in paths]

    by_key = pairing.by_unique_key(keyed(clean))
    versions = pairing.group_versions(
        by_key, ((pairing.clean_keys(key), path) for key, path in keyed(rainy))
    )
    return tuple(Scene(key, path, tuple(versions[key])) for key, path in by_key.items())


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    inner = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(inner, key=natural_order)


def _images(folder: pathlib.Path, *, may_be_empty: bool = False) -> list[pathlib.Path]:
    found = sorted(filter(images.is_image, folder.iterdir()), key=natural_order)
    if not found and not may_be_empty:
        raise UserError(f"{folder}: no images in this folder")
    return found


def _named(
    folders: Iterable[pathlib.Path], names: frozenset[str], parent: pathlib.Path
) -> pathlib.Path | None:
    """The folder with one of `names`, if there is one."""
    found = [path for path in folders if path.name.lower() in names]
    if len(found) > 1:
        listed = " and ".join(path.name for path in found)
        raise UserError(f"{parent}: has both {listed}; keep one of them")
    return found[0] if found else None
