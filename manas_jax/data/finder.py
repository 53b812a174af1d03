"""Finding the files of a published benchmark, in whichever layout it was unpacked."""

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
from manas_jax.files import natural_order


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found of a split: its scenes (one per clean file) and the layout they are in."""

    scenes: tuple[Scene, ...]
    layout: catalog.Layout

    @property
    def pairs(self) -> int:
        """How many rainy pictures there are."""
        return sum(len(scene.rainy) for scene in self.scenes)


def get(name: str) -> catalog.Benchmark:
    """The entry of that name.

    Raises:
      UserError: there is none.
    """
    if name not in catalog.BENCHMARKS:
        raise UserError(f"no benchmark {name!r}; known are {', '.join(catalog.BENCHMARKS)}")
    return catalog.BENCHMARKS[name]


def find(name: str, root) -> tuple[dict[str, Found], tuple[str, ...]]:
    """The splits of benchmark `name` below the folder `root`, each in the layout that fits best.

    No picture is opened. Counts are not checked (`prepare` does that).

    Returns:
      What was found, by the name of the split (splits without files are left out), and the
      pictures below `root`, as paths relative to it, that belong to none.

    Raises:
      UserError: no such benchmark or folder, nothing found, two files of one name, or pictures
        without their counterpart.
    """
    benchmark = get(name)
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; name the one that holds {benchmark.title}")
    files = _pictures_below(root)
    splits, used = {}, set()
    for split, entry in benchmark.splits.items():
        match = max((_match(files, layout) for layout in entry.layouts), key=lambda m: m.fit)
        if match.fit[0]:
            splits[split] = Found(_scenes(match, root), match.layout)
            used.update(path for path, _ in (*match.clean, *match.rainy))
    if not splits:
        first = next(iter(benchmark.splits.values())).layouts[0]
        raise UserError(
            f"{root}: no files of {benchmark.title} among {len(files)} pictures, such as "
            f"{first.clean or first.rainy}; `python -m manas_jax.data.prepare {name}` lists the "
            "layouts"
        )
    return splits, tuple(path for path in files if path not in used)


def load(name: str, root) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Training and test scenes of a benchmark, read straight from its folder.

    Where the benchmark has several test splits, scenes are named after theirs. Clean pictures are
    decoded only if the entry says that their pixels decide what is one background
    (`near_identical`): `prepare` once, then reading what it wrote, spares that.

    Raises:
      UserError: as `find`; or a picture cannot be decoded.
    """
    near_identical = get(name).near_identical
    splits = {
        split: _merged(found.scenes) if near_identical and split == "train" else found.scenes
        for split, found in find(name, root)[0].items()
    }
    return train_and_test(splits)


def _merged(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        prints = pool.map(lambda scene: duplicates.fingerprint(read(scene.clean)), scenes)
        return duplicates.merge(scenes, prints, near_identical=True)[0]


# --- matching ----------------------------------------------------------------------------------

_Keyed = list[tuple[str, re.Match]]  # (path, how the template matched it)


@dataclasses.dataclass(frozen=True)
class _Match:
    layout: catalog.Layout
    clean: _Keyed
    rainy: _Keyed

    @functools.cached_property
    def fit(self) -> tuple[int, int]:
        """(rainy files that have what they need, all files matched); more is better."""
        if self.layout.clean and not self.layout.clean_half:
            keys = {_key(found) for _, found in self.clean}
            whole = sum(_key(found) in keys for _, found in self.rainy)
        else:
            whole = len(self.clean) or len(self.rainy)
        matched = len(self.clean) + len(self.rainy)
        # One role alone is a split that lost the other: an error to tell of, not an absent split.
        return (whole or min(matched, 1)), matched


def _match(files: Iterable[str], layout: catalog.Layout) -> _Match:
    def matching(template: str) -> _Keyed:
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
    """The scenes of a split; each clean file is one."""

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
    """The regular expression of a `catalog.Layout` template, for a path below the root."""
    folders = {"clean": catalog.CLEAN_FOLDERS, "rainy": catalog.RAINY_FOLDERS}
    suffixes = {suffix[1:] for suffix in images.SUFFIXES}
    pattern, seen = "", set()
    for i, part in enumerate(re.split(r"[{}]", template)):
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


def _pictures_below(root: pathlib.Path) -> list[str]:
    """Paths relative to `root`, with forward slashes, 2.png before 10.png."""
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        above = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if above == "." else above + "/"
        found += [prefix + name for name in names if images.is_picture(name)]
    return sorted(found, key=natural_order)
