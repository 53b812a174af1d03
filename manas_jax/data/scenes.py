"""Scenes: one clean picture and its rainy versions, found in folders, packages and TFDS.

A scene is what multi-to-one training draws. Splitting goes by scene (and by photograph, where one
photograph yields several scenes), so no background is ever on two sides of a split.
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import logging
import os
import pathlib
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol

import numpy as np

from manas_jax.data import catalog, images
from manas_jax.errors import UserError
from manas_jax.files import first_few, natural_order


class Lazy(Protocol):
    """A picture that is decoded when asked for; `str()` of it says what it is."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), without decoding."""

    @property
    def identity(self) -> Hashable:
        """Equal for equal pictures, without decoding."""

    def read(self) -> np.ndarray:
        """The pixels, uint8 (height, width, 3)."""


# The path of a file, pixels (uint8, height, width, 3), or something that knows how to get them.
Picture = str | np.ndarray | Lazy


@dataclasses.dataclass(frozen=True)
class Half:
    """One half of a file that holds two pictures side by side.

    Attributes:
      path: the file.
      side: 'left' or 'right'.
    """

    path: str
    side: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the half.

        Raises:
          UserError: the file has an odd width or is unreadable.
        """
        height, width = images.size(self.path)
        if width % 2:
            raise UserError(f"{self.path}: {width} pixels wide, which two halves cannot share")
        return height, width // 2

    @property
    def identity(self) -> Hashable:
        """The halves on one side of byte-identical files are identical."""
        return (self.side, _file_digest(self.path))

    def read(self) -> np.ndarray:
        """The pixels, uint8 (height, width, 3).

        Raises:
          UserError: the file has an odd width or cannot be decoded.
        """
        pixels = images.read(self.path)
        _, width = self.size
        return pixels[:, :width] if self.side == "left" else pixels[:, width:]

    def __str__(self) -> str:
        return f"{self.path} ({self.side} half)"


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """One background, seen clean and through rain.

    Attributes:
      name: unique among the scenes of a split.
      clean: the picture without rain; None for a photograph of rain, which has no such.
      rainy: its rainy versions, all of the clean picture's size; may be empty (synthetic rain).
      photograph: the photograph it was cut from, for splitting; a scene that is a whole photograph
        of its own leaves it empty.
    """

    name: str
    clean: Picture | None
    rainy: tuple[Picture, ...] = ()
    photograph: str = ""

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """(height, width), from the header of the clean picture (of a rainy one if none)."""
        return _size(self.rainy[0] if self.clean is None else self.clean)


@dataclasses.dataclass(frozen=True)
class Splits:
    """Disjoint scenes: for the weights, for the architecture, for choosing, for reporting."""

    weights: tuple[Scene, ...]
    architecture: tuple[Scene, ...]
    validation: tuple[Scene, ...]
    test: tuple[Scene, ...]


def load(config, crop: int) -> Splits:
    """The scenes that `config` (the `data` part of a run's configuration) names, split.

    Pictures are opened for their headers alone (and, where two clean files are equally long, for
    their bytes: pairs with byte-identical clean pictures are one scene, and a training scene whose
    clean picture is also a test scene's is left out). Without a test folder `test` is empty;
    without training scenes all but `test` are.

    Args:
      config: `source`, `root`, `tfds_name`, `validation_scenes`, `architecture_share`,
        `split_seed` and `limit` are read. `source` is photographs, folder, tfds or the name of a
        benchmark (see `datasets`) that lies in the folder `root`. `limit` bounds weights and
        architecture scenes together; validation stays what it is without a limit.
      crop: side of the training patches in pixels; training scenes must hold one.

    Raises:
      UserError: nothing found, unmatched or unequal pairs, unreadable headers, pictures smaller
        than the crop, too few scenes for the split.
    """
    training, test = _found(config, crop)
    for scene in (*training, *test):
        if scene.clean is None:
            raise UserError(
                f"{_label(scene.rainy[0], scene)}: has no clean picture, so it can be neither "
                "trained nor measured on; de-rain it with `python -m manas_jax.derain`"
            )
    training, test = merge_identical(training), merge_identical(test)
    training = _without(training, test)
    for scene in (*training, *test):
        _check_sizes(scene)
    for scene in training:
        if min(scene.size) < crop:
            height, width = scene.size
            raise UserError(
                f"{_label(scene.clean, scene)}: {height}x{width} pixels do not hold a patch of "
                f"{crop}x{crop}; reduce the crop or remove the picture"
            )
    if not training:
        return Splits((), (), (), test)
    return split(
        training,
        test=test,
        validation_scenes=config.validation_scenes,
        architecture_share=config.architecture_share,
        seed=config.split_seed,
        limit=config.limit,
    )


def split(
    training: Sequence[Scene],
    *,
    test: Sequence[Scene] = (),
    validation_scenes: int,
    architecture_share: float,
    seed: int,
    limit: int = 0,
) -> Splits:
    """Splits training scenes into those for validation, for the architecture and for the weights.

    A pure function of its arguments. Scenes cut from one photograph stay together, so where there
    are such, validation and architecture may get a few scenes more than asked for.

    Args:
      training: the scenes to split.
      test: handed through; none of it enters the other three.
      validation_scenes: how many to hold out, 0 for none.
      architecture_share: share of the others that the architecture sees, 0 to 1.
      seed: which shuffle.
      limit: if positive, keep at most that many for weights and architecture together.

    Raises:
      UserError: a value is out of range or there are too few scenes.
    """
    if validation_scenes < 0 or not 0 <= architecture_share <= 1 or limit < 0:
        raise UserError(
            "data.validation_scenes and data.limit must not be negative and "
            "data.architecture_share must lie between 0 and 1"
        )
    photographs = collections.defaultdict(list)
    for scene in training:
        photographs[scene.photograph or scene.name].append(scene)
    groups = list(photographs.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    groups = [groups[i] for i in order]

    validation, groups = _take(groups, validation_scenes)
    if limit:
        groups, _ = _take(groups, limit)
        groups = _cut(groups, limit)
    remaining = sum(map(len, groups))
    architecture, groups = _take(groups, round(architecture_share * remaining))
    starved = (architecture_share > 0 and not architecture) or (
        architecture_share < 1 and not groups
    )
    if len(_flat(validation)) < validation_scenes or not remaining or starved:
        raise UserError(
            f"{len(training)} training scenes of {len(photographs)} photographs are too few to "
            f"hold out {validation_scenes} for validation and share the rest between weights and "
            f"architecture (limit {limit or 'none'}); reduce data.validation_scenes or add pictures"
        )
    return Splits(_flat(groups), _flat(architecture), _flat(validation), tuple(test))


def merge_identical(scenes: Iterable[Scene]) -> tuple[Scene, ...]:
    """Makes scenes with byte-identical clean pictures one scene with all their rainy versions."""
    scenes = tuple(scenes)
    merged: dict[object, Scene] = {}
    for scene, identity in zip(scenes, _identities([s.clean for s in scenes]), strict=True):
        known = merged.get(identity)
        if known is not None:
            scene = dataclasses.replace(known, rainy=known.rainy + scene.rainy)
        merged[identity] = scene
    return tuple(merged.values())


def find_folder(root) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Training and test scenes below a folder, whose layout is detected.

    `root` holds a train and/or a test folder, or is itself what those would be (then there is no
    test): a pair folder (one folder of clean pictures and one of rainy ones, by the names in
    `datasets`, rainy files named like the clean one or with a version behind: `7.jpg`, `7_2.jpg`),
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


def find_photographs(crop: int) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
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
        for scene in _tiles(_packaged(package, file), max(_TILE, crop))
    ]
    whole = [_packaged(package, file) for package, file in TEST_PHOTOGRAPHS]
    return tuple(tiles), tuple(Scene(pathlib.Path(p).stem, p) for p in whole)


def find_tfds(name: str, data_dir: str = "") -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Training and test scenes from a prepared TensorFlow Datasets data set.

    What `manas_jax.data.prepare` wrote (`derain/...`) stays on disk and is decoded when read. Any
    other data set is held in memory: image features named like the folders in `datasets` (`rainy`,
    `clean`, ...) are pairs, a single image feature is one of clean photographs; the splits `train`
    and `test` are read, or `validation` where there is no `test`.

    Raises:
      UserError: the data set is not there, or has no such features.
    """
    import tensorflow_datasets as tfds  # seconds to import, and only this source needs it

    how = "set data.root to the folder that holds it, or make it with " + (
        "`python -m manas_jax.data.prepare`" if name.startswith("derain/") else "tfds.load"
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
        prepared = dict(builder.info.splits)
    except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"data.tfds_name: no TFDS data set {name!r} ({reason}); {how}") from error
    if not prepared:
        raise UserError(f"data.tfds_name: {name!r} is not prepared in {builder.data_dir}; {how}")
    if builder.name == "derain":
        from manas_jax.data import finder, tfds_builder  # they import this module

        return finder.join_splits(tfds_builder.scenes(builder))
    if not isinstance(builder.info.features, tfds.features.FeaturesDict):
        raise UserError(f"data.tfds_name: {name!r} has no named features; need an image")
    features = [
        key
        for key, feature in sorted(builder.info.features.items())  # TFDS keeps no order
        if isinstance(feature, tfds.features.Image)
    ]
    clean = [key for key in features if key.lower() in catalog.CLEAN_FOLDERS]
    rainy = [key for key in features if key.lower() in catalog.RAINY_FOLDERS]
    if len(features) == 1 and not rainy:
        clean = features
    if len(clean) != 1 or (len(features) > 1 and not rainy):
        raise UserError(
            f"data.tfds_name: {name!r} has the image features {features}; need one alone, or a "
            f"clean one (of {sorted(catalog.CLEAN_FOLDERS)}) and rainy ones (of "
            f"{sorted(catalog.RAINY_FOLDERS)})"
        )

    def scenes(part: str) -> tuple[Scene, ...]:
        examples = tfds.as_numpy(builder.as_dataset(split=part, shuffle_files=False))
        return tuple(
            Scene(
                f"{part}-{i}",
                _rgb(example[clean[0]], name),
                tuple(_rgb(example[key], name) for key in rainy),
            )
            for i, example in enumerate(examples)
        )

    test = next((part for part in ("test", "validation") if part in prepared), None)
    return (scenes("train") if "train" in prepared else ()), (scenes(test) if test else ())


def read(picture: Picture) -> np.ndarray:
    """The pixels of a picture, uint8 (height, width, 3)."""
    if isinstance(picture, np.ndarray):
        return picture
    return images.read(picture) if isinstance(picture, str) else picture.read()


def _found(config, crop: int) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    if config.source == "photographs":
        return find_photographs(crop)
    if config.source == "folder":
        if not config.root:
            raise UserError("data.root: name the folder that holds the pictures")
        return find_folder(os.path.expanduser(config.root))
    if config.source == "tfds":
        if not config.tfds_name:
            raise UserError("data.tfds_name: name the TFDS data set")
        return find_tfds(config.tfds_name, os.path.expanduser(config.root))
    if config.source in catalog.BENCHMARKS:
        from manas_jax.data import finder  # it imports this module

        if not config.root:
            raise UserError(f"data.root: name the folder that holds {config.source}")
        return finder.load(config.source, config.root)
    raise UserError(
        f"data.source: {config.source!r} is none of 'photographs', 'folder', 'tfds' and "
        f"{', '.join(catalog.BENCHMARKS)}"
    )


# --- folders ---------------------------------------------------------------------------------


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


# --- photographs in packages, arrays ---------------------------------------------------------


def _packaged(package: str, file: str) -> str:
    spec = importlib.util.find_spec(package)  # finds the folder without importing the package
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


def _rgb(pixels: np.ndarray, source: str) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise UserError(
            f"data.tfds_name: {source!r} has images of {pixels.dtype} {pixels.shape}; need uint8 "
            "with 1 or 3 channels"
        )
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


# --- scenes ----------------------------------------------------------------------------------


def _size(picture: Picture) -> tuple[int, int]:
    if isinstance(picture, np.ndarray):
        return picture.shape[:2]
    return images.size(picture) if isinstance(picture, str) else picture.size


def _label(picture: Picture, scene: Scene) -> str:
    return f"scene {scene.name}" if isinstance(picture, np.ndarray) else str(picture)


def _check_sizes(scene: Scene) -> None:
    clean_size = scene.size
    for picture in scene.rainy:
        size = _size(picture)
        if size != clean_size:
            raise UserError(
                f"{_label(picture, scene)}: {size[0]}x{size[1]} pixels, but its clean picture "
                f"{_label(scene.clean, scene)} has {clean_size[0]}x{clean_size[1]}; pairs must be "
                "of one size"
            )


def _identities(pictures: Sequence[Picture]) -> list:
    """Equal for byte-identical pictures only. Files are read only where two are equally long."""
    lengths = [_length(picture) for picture in pictures]
    shared = collections.Counter(lengths)
    return [
        _identity(picture) if shared[length] > 1 else length
        for picture, length in zip(pictures, lengths, strict=True)
    ]


def _length(picture: Picture) -> Hashable:
    """Unequal only for pictures that are not identical; cheaper than `_identity`."""
    if isinstance(picture, np.ndarray):
        return picture.nbytes
    if isinstance(picture, str):
        return os.path.getsize(picture)
    return os.path.getsize(picture.path) if isinstance(picture, Half) else picture.identity


def _identity(picture: Picture) -> Hashable:
    if isinstance(picture, np.ndarray):
        return picture.shape, hashlib.sha256(np.ascontiguousarray(picture)).digest()
    return _file_digest(picture) if isinstance(picture, str) else picture.identity


def _file_digest(path: str) -> Hashable:
    with open(path, "rb") as file:
        return ("file", hashlib.file_digest(file, "sha256").digest())


def _without(training: tuple[Scene, ...], test: tuple[Scene, ...]) -> tuple[Scene, ...]:
    """Training scenes less those whose clean picture is byte for byte a test scene's."""
    identities = _identities([scene.clean for scene in (*training, *test)])
    tested = set(identities[len(training) :])
    kept = tuple(
        scene
        for scene, i in zip(training, identities[: len(training)], strict=True)
        if i not in tested
    )
    if len(kept) < len(training):
        logging.warning(
            "%d training scenes left out: their clean pictures are also test pictures",
            len(training) - len(kept),
        )
    return kept


def _take(groups: list[list[Scene]], wanted: int) -> tuple[list, list]:
    """Splits off the shortest head of `groups` that holds `wanted` scenes."""
    held = np.concatenate([[0], np.cumsum([len(group) for group in groups], dtype=int)])
    cut = int(np.searchsorted(held, wanted))
    return groups[:cut], groups[cut:]


def _cut(groups: list[list[Scene]], limit: int) -> list[list[Scene]]:
    """The first `limit` scenes of `groups`, still in groups."""
    excess = max(0, sum(map(len, groups)) - limit)
    return [*groups[:-1], groups[-1][: len(groups[-1]) - excess]] if groups else groups


def _flat(groups: Iterable[Iterable[Scene]]) -> tuple[Scene, ...]:
    return tuple(scene for group in groups for scene in group)
