"""Scenes in a folder whose layout is detected."""

import collections
import dataclasses
import pathlib
import re

from manas_jax.data import catalog, images
from manas_jax.data.scene import Scene
from manas_jax.errors import UserError
from manas_jax.files import first_few, natural_order


def load(root) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Training and test scenes below a folder, whose layout is detected.

    `root` holds a train and/or a test folder, or is itself what those would be (then there is no
    test): a pair folder (one folder of clean pictures and one of rainy ones, by the names in
    `catalog`, rainy files named like the clean one or with a version behind: `7.jpg`, `7_2.jpg`),
    a folder of marked files (`norain-1.png` and `rain-1.png`, `7_clean.png` and `7_rain.png`), a
    folder of clean photographs, or a folder of several such folders.

    Raises:
      UserError: the folder is missing or empty, or pictures lack their counterpart.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    folders = _folders(root)
    train = _one(folders, catalog.TRAIN_FOLDERS, root)
    test = _one(folders, catalog.TEST_FOLDERS, root)
    if train is None and test is None:
        return _scenes_in(root), ()
    return (_scenes_in(train) if train else ()), (_scenes_in(test) if test else ())


def _scenes_in(folder: pathlib.Path) -> tuple[Scene, ...]:
    """The scenes of one pair folder, folder of marked files or photographs, or of several."""
    folders = _folders(folder)
    clean = _one(folders, catalog.CLEAN_FOLDERS, folder)
    rainy = _one(folders, catalog.RAINY_FOLDERS, folder)
    if clean and rainy:
        return _paired(
            {_role(path)[1]: path for path in _unique(_pictures(clean), clean)},
            [(_role(path)[1], path) for path in _pictures(rainy)],
        )
    if clean or rainy:
        present, absent = (clean, "rainy") if clean else (rainy, "clean")
        raise UserError(
            f"{present}: there is no folder of {absent} pictures beside it; name it one of "
            f"{sorted(catalog.RAINY_FOLDERS if clean else catalog.CLEAN_FOLDERS)}"
        )
    files = _pictures(folder, may_be_empty=bool(folders))
    if not files:
        return tuple(
            dataclasses.replace(scene, name=f"{inner.name}/{scene.name}")
            for inner in folders
            for scene in _scenes_in(inner)
        )
    return _marked(files, folder)


def _marked(files: list[pathlib.Path], folder: pathlib.Path) -> tuple[Scene, ...]:
    """Scenes of a folder whose file names tell the role, or of clean photographs."""
    roles = collections.defaultdict(list)
    for path in files:
        roles[_role(path)[0]].append(path)
    if roles["clean"]:
        if roles[""]:
            raise UserError(
                f"{first_few(roles[''])}: neither marked clean nor rainy, unlike the other files "
                "there"
            )
        return _paired(
            {_role(path)[1]: path for path in _unique(roles["clean"], folder)},
            [(_role(path)[1], path) for path in roles["rainy"]],
        )
    if roles["rainy"] and not roles[""]:
        raise UserError(f"{first_few(roles['rainy'])}: rainy without its clean picture")
    return tuple(Scene(path.stem, str(path)) for path in _unique(files, folder))


def _paired(clean: dict[str, pathlib.Path], rainy: list) -> tuple[Scene, ...]:
    """Scenes from clean pictures by key and (key, rainy picture) pairs."""
    versions = {key: [] for key in clean}
    orphans = []
    for key, path in rainy:
        base = next((k for k in _bases(key) if k in versions), None)
        if base is None:
            orphans.append(path)
        else:
            versions[base].append(path)
    if orphans:
        raise UserError(f"{first_few(orphans)}: rainy without its clean picture")
    lonely = [clean[key] for key, found in versions.items() if not found]
    if lonely:
        raise UserError(f"{first_few(lonely)}: clean without a rainy version")
    return tuple(
        Scene(key, str(path), tuple(str(version) for version in versions[key]))
        for key, path in clean.items()
    )


def _role_pattern() -> re.Pattern:
    words = "|".join((*catalog.CLEAN_WORDS, *catalog.RAINY_WORDS))
    return re.compile(
        rf"(?P<before>{words})[-_](?P<behind>.+)"
        rf"|(?P<ahead>.+)[-_](?P<after>{words})(?P<version>[-_]?\d+)?",
        re.IGNORECASE,
    )


_ROLE = _role_pattern()


def _role(path: pathlib.Path) -> tuple[str, str]:
    """('clean', 'rainy' or '', key) as a file's name tells: pairs share keys (see `_bases`)."""
    match = _ROLE.fullmatch(path.stem)
    if match is None:
        return "", path.stem
    word = (match["before"] or match["after"]).lower()
    key = match["behind"] or match["ahead"] + (
        f"_{match['version'].strip('-_')}" if match["version"] else ""
    )
    return ("clean" if word in catalog.CLEAN_WORDS else "rainy"), key


def _bases(key: str) -> tuple[str, str]:
    """The keys that the clean picture of a rainy one may have: its own, or less the version."""
    return key, re.sub(r"([-_]|x)\d+$", "", key)


def _unique(files: list[pathlib.Path], folder: pathlib.Path) -> list[pathlib.Path]:
    seen = {}
    for path in files:
        key = _role(path)[1]
        if key in seen:
            raise UserError(f"{folder}: {seen[key].name} and {path.name} have one name; keep one")
        seen[key] = path
    return files


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    inner = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(inner, key=natural_order)


def _pictures(folder: pathlib.Path, *, may_be_empty: bool = False) -> list[pathlib.Path]:
    found = sorted((p for p in folder.iterdir() if images.is_picture(p)), key=natural_order)
    if not found and not may_be_empty:
        raise UserError(f"{folder}: no pictures in this folder")
    return found


def _one(folders, names: frozenset[str], parent: pathlib.Path) -> pathlib.Path | None:
    found = [path for path in folders if path.name.lower() in names]
    if len(found) > 1:
        listed = " and ".join(path.name for path in found)
        raise UserError(f"{parent}: both {listed} are there; keep one of them")
    return found[0] if found else None
