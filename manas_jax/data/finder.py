"""Finds the files of a published dataset, in whichever layout it was unpacked."""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from manas_jax.data import catalog, duplicates, images, pairing
from manas_jax.data.scene import Half, Scene, read
from manas_jax.data.splits import train_and_test
from manas_jax.errors import UserError
from manas_jax.files import list_folder, natural_order


@dataclasses.dataclass(frozen=True)
class FoundSplit:
    """A split as it was found.

    Attributes:
      scenes: one per clean file.
      layout: the layout that the files are in.
    """

    scenes: tuple[Scene, ...]
    layout: catalog.Layout

    @property
    def pairs(self) -> int:
        """The number of rainy images."""
        return sum(len(scene.rainy) for scene in self.scenes)


def get(name: str) -> catalog.Dataset:
    """Returns the catalog's entry.

    Raises:
      UserError: there is none of this name.
    """
    if name not in catalog.DATASETS:
        raise UserError(f"unknown dataset {name!r}; known are {', '.join(catalog.DATASETS)}")
    return catalog.DATASETS[name]


def find(name: str, root) -> tuple[dict[str, FoundSplit], tuple[str, ...]]:
    """Finds the splits of a dataset below the folder `root`, each in the layout that fits best.

    Opens no image and checks no counts (`prepare` does that).

    Returns:
      The splits by name, without those that have no files; and the images that belong to no
      split, as paths relative to `root`.

    Raises:
      UserError: no such dataset or folder, nothing found, two files of one name, or images
        without their counterpart.
    """
    dataset = get(name)
    root = pathlib.Path(os.path.expanduser(root))
    if not os.path.isdir(root):  # unlike `is_dir`, also for a path that no folder can have
        raise UserError(f"{root} is not a folder; name the one that holds {dataset.title}")
    files = _images_below(root)
    splits, used = {}, set()
    for split, entry in dataset.splits.items():
        match = max((_match(files, layout) for layout in entry.layouts), key=lambda m: m.fit)
        if match.fit[0]:
            splits[split] = FoundSplit(_scenes(match, root), match.layout)
            used.update(path for path, _ in (*match.clean, *match.rainy))
    if not splits:
        first = next(iter(dataset.splits.values())).layouts[0]
        raise UserError(
            f"{root}: no files of {dataset.title} among {len(files)} images, such as "
            f"{first.clean or first.rainy}; `python -m manas_jax.data.prepare {name}` lists the "
            "layouts"
        )
    return splits, tuple(path for path in files if path not in used)


def load(name: str, root) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Loads training and test scenes of a dataset from its folder.

    With several test splits, a scene's name starts with that of its split. Clean images are
    decoded only if their pixels decide which scenes share a background (`near_identical`); a
    dataset that `prepare` wrote does not need this.

    Returns:
      Training scenes, test scenes.

    Raises:
      UserError: as `find`, or an image cannot be decoded.
    """
    near_identical = get(name).near_identical
    splits = {
        split: _merge(found.scenes) if near_identical and split == "train" else found.scenes
        for split, found in find(name, root)[0].items()
    }
    return train_and_test(splits)


def _merge(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        fingerprints = pool.map(lambda scene: duplicates.fingerprint(read(scene.clean)), scenes)
        return duplicates.merge(scenes, fingerprints, near_identical=True)[0]


# --- matching ----------------------------------------------------------------------------------

_Matches = list[tuple[str, re.Match]]  # (path, match of the template)


@dataclasses.dataclass(frozen=True)
class _Match:
    layout: catalog.Layout
    clean: _Matches
    rainy: _Matches

    @functools.cached_property
    def fit(self) -> tuple[int, int]:
        """(rainy files with all they need, all files matched); the greatest fits best."""
        if self.layout.clean and not self.layout.clean_half:
            keys = {_key(match) for _, match in self.clean}
            complete = sum(_key(match) in keys for _, match in self.rainy)
        else:
            complete = len(self.clean) or len(self.rainy)
        matched = len(self.clean) + len(self.rainy)
        # With one role alone, the split is present and lacks the other role: an error to report.
        return (complete or min(matched, 1)), matched


def _match(files: Iterable[str], layout: catalog.Layout) -> _Match:
    def matching(template: str) -> _Matches:
        if not template:
            return []
        found = ((path, _pattern(template).fullmatch(path)) for path in files)
        return [
            (path, match)
            for path, match in found
            if match and (not layout.numbers or _number(match) in layout.numbers)
        ]

    return _Match(layout, matching(layout.clean), matching(layout.rainy))


def _scenes(match: _Match, root: pathlib.Path) -> tuple[Scene, ...]:
    """The scenes of a split, one per clean file."""

    def full(path: str) -> str:
        return str(root / path)

    if not match.layout.clean:
        return tuple(Scene(_key(m), None, (full(path),)) for path, m in match.rainy)
    clean = pairing.by_unique_key((_key(m), full(path)) for path, m in match.clean)
    photographs = {_key(m): m.groupdict().get("photograph", "") for _, m in match.clean}
    if half := match.layout.clean_half:
        other = {"left": "right", "right": "left"}[half]
        return tuple(
            Scene(key, Half(path, half), (Half(path, other),), photographs[key])
            for key, path in clean.items()
        )
    versions = pairing.group_versions(clean, (((_key(m),), full(path)) for path, m in match.rainy))
    return tuple(
        Scene(key, path, tuple(versions[key]), photographs[key]) for key, path in clean.items()
    )


@functools.cache
def _pattern(template: str) -> re.Pattern:
    """Compiles a template of `catalog.Layout` to a regular expression for paths below the root."""
    folders = {"clean": catalog.CLEAN_FOLDERS, "rainy": catalog.RAINY_FOLDERS}
    suffixes = {suffix[1:] for suffix in images.SUFFIXES}
    pattern, seen = "", set()
    for i, part in enumerate(re.split(r"[{}]", template)):  # odd ones were in braces
        if i % 2 == 0:
            pattern += re.escape(part)
        elif "|" in part or part in folders or part == "ext":
            words = part.split("|") if "|" in part else sorted(folders.get(part, suffixes))
            pattern += "(?:" + "|".join(map(re.escape, words)) + ")"
        elif part == "version":
            pattern += r"\d+"
        elif part in seen:
            pattern += f"(?P={part})"
        else:
            pattern += f"(?P<{part}>.+?)" if part == "path" else f"(?P<{part}>[^/]+?)"
            seen.add(part)
    return re.compile(pattern, re.IGNORECASE)


def _key(match: re.Match) -> str:
    return "/".join(match.groups())


def _number(match: re.Match) -> int:
    name = match["scene"]
    return int(name) if name.isdecimal() else -1


def _images_below(root: pathlib.Path) -> list[str]:
    """Paths relative to `root`, with forward slashes, in natural order."""
    found, folders = [], [root]
    while folders:
        listing = list_folder(folders.pop(), images.SUFFIXES)
        found += [file.relative_to(root).as_posix() for file in listing.files]
        folders += listing.folders
    return sorted(found, key=natural_order)
