"""Scenes of a folder whose layout is detected."""

import collections
import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from manas_jax.data import catalog, images, pairing
from manas_jax.data.scene import Scene
from manas_jax.errors import UserError
from manas_jax.files import Listing, first_few, list_folder

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
"""Words of a name: RainTrainL has Rain, Train and L."""


def load(root) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Loads training and test scenes below the folder `root`.

    `root` has a training folder, a test folder or both, by the names in `catalog`; or it has
    folders that do; or all of it is for training. Each of these folders is one of

    - a folder of clean images and one of rainy images, paired by name (see `pairing`);
    - images whose names tell the role (`norain-1.png` and `rain-1.png`, `7_clean.png` and
      `7_rain.png`);
    - clean photographs;
    - several such folders.

    Returns:
      Training scenes, test scenes.

    Raises:
      UserError: the folder is missing, empty or cannot be read, or images lack their counterpart.
    """
    root = pathlib.Path(root)
    if not os.path.isdir(root):  # unlike `is_dir`, also for a path that no folder can have
        raise UserError(f"data.root: {root} is not a folder")
    return _splits_in(root)


def split_role(name: str) -> str:
    """'train', 'test' or '', by the words in the name of a folder.

    A name with words of both, such as `train_test`, has no role.
    """
    words = {word.lower() for word in _WORDS.findall(name)}
    train, test = words & catalog.TRAIN_WORDS, words & catalog.TEST_WORDS
    return "" if bool(train) == bool(test) else "train" if train else "test"


def _splits_in(folder: pathlib.Path) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    listing = _list(folder)
    splits = _split_folders(listing, folder)
    if splits:
        others = [inner for inner in listing.folders if inner not in splits.values()]
        _warn_ignored([*others, *listing.files], "training and test data")
        train, test = (_scenes_in(splits[role]) if role in splits else () for role in _ROLES)
        return train, test
    if listing.files or not listing.folders or _pair_folders(listing, folder):
        return _scenes_in(folder), ()
    parts = [(inner, _splits_in(inner)) for inner in listing.folders]
    train, test = (_join([(inner, part[i]) for inner, part in parts]) for i in range(2))
    return train, test


def _warn_ignored(ignored: Sequence[pathlib.Path], beside: str) -> None:
    if ignored:
        logging.warning("data: %s: beside %s, ignored", first_few(ignored), beside)


_ROLES = ("train", "test")


def _split_folders(listing: Listing, parent: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of training and of test images, by role."""
    published = dict.fromkeys(catalog.TRAIN_FOLDERS, "train")
    published |= dict.fromkeys(catalog.TEST_FOLDERS, "test")
    found = collections.defaultdict(list)
    for folder in listing.folders:
        role = split_role(folder.name)
        # Rain100L may be the test split, or the dataset with both.
        if not role and folder.name.lower() in published:
            holds_splits = any(split_role(inner.name) for inner in _list(folder).folders)
            role = "" if holds_splits else published[folder.name.lower()]
        if role:
            found[role].append(folder)
    return {role: _only(folders, parent) for role, folders in found.items()}


def _pair_folders(listing: Listing, parent: pathlib.Path) -> tuple[pathlib.Path | None, ...]:
    """The folders of clean and of rainy images; empty if there is neither."""
    found = tuple(
        _only([path for path in listing.folders if path.name.lower() in names], parent)
        for names in (catalog.CLEAN_FOLDERS, catalog.RAINY_FOLDERS)
    )
    return found if any(found) else ()


def _scenes_in(folder: pathlib.Path) -> tuple[Scene, ...]:
    listing = _list(folder)
    if pair := _pair_folders(listing, folder):
        clean, rainy = pair
        if clean and rainy:
            others = [inner for inner in listing.folders if inner not in pair]
            _warn_ignored([*others, *listing.files], "folders of clean and rainy images")
            return _pairs(_images(clean), _images(rainy))
        present, absent = (clean, "rainy") if clean else (rainy, "clean")
        raise UserError(
            f"{present}: there is no folder of {absent} images beside it; name it one of "
            f"{sorted(catalog.RAINY_FOLDERS if clean else catalog.CLEAN_FOLDERS)}"
        )
    if listing.files or not listing.folders:
        _warn_ignored(listing.folders, "images")
        return _scenes_of_files(_images(folder))
    return _join([(inner, _scenes_in(inner)) for inner in listing.folders])


def _join(parts: Sequence[tuple[pathlib.Path, Sequence[Scene]]]) -> tuple[Scene, ...]:
    """The scenes of several folders, named FOLDER/NAME where more than one has any."""
    parts = [(folder, scenes) for folder, scenes in parts if scenes]
    if len(parts) == 1:
        return tuple(parts[0][1])
    return tuple(
        dataclasses.replace(scene, name=f"{folder.name}/{scene.name}")
        for folder, scenes in parts
        for scene in scenes
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
    names = {path.stem for path in roles[""]}
    keys = (pairing.role_and_key(path.stem)[1] for path in roles["rainy"])
    if any(names.intersection(pairing.clean_keys(key)) for key in keys):  # 1.png and 1_rain.png
        if roles["restored"]:
            raise UserError(f"{first_few(roles['restored'])}: restored ones among pairs: move them")
        return _pairs(roles[""], roles["rainy"])
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


def _list(folder: pathlib.Path) -> Listing:
    return list_folder(folder, images.SUFFIXES)


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    if not (found := images.files_in(folder)):
        raise UserError(f"{folder}: no images in this folder")
    return found


def _only(folders: Sequence[pathlib.Path], parent: pathlib.Path) -> pathlib.Path | None:
    """The only folder, or None without any."""
    if len(folders) > 1:
        listed = " and ".join(path.name for path in folders)
        raise UserError(f"{parent}: has both {listed}; keep one of them")
    return folders[0] if folders else None
