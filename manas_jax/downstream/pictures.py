"""The pictures that are compared: clean, rainy, de-rained by networks and by other methods."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from manas_jax.data import images, pairing, rain
from manas_jax.downstream import overlays
from manas_jax.errors import UserError
from manas_jax.files import check_writable, first_few, sha256
from manas_jax.inference import pretrained
from manas_jax.inference.derainer import Derainer
from manas_jax.inference.jobs import obstacle

CLEAN, RAINY = "clean", "rainy"

Restore = Callable[[np.ndarray], np.ndarray]
"""RGB, uint8 (H, W, 3) -> de-rained, the same shape and type."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared on which pictures.

    Attributes:
      clean: the clean pictures.
      rain: names of kinds of rain -> rainy pictures, or a level of synthetic rain.
      networks: names of networks -> functions that de-rain.
      restored: names of other methods -> their pictures.
      seed: of synthetic rain.
      record: where all of this comes from, JSON-ready.
    """

    clean: Sequence[pathlib.Path]
    rain: Mapping[str, Sequence[pathlib.Path] | str]
    networks: Mapping[str, Restore]
    restored: Mapping[str, Sequence[pathlib.Path]]
    seed: int
    record: Mapping[str, Any]

    @property
    def variants(self) -> list[str]:
        """What every clean picture is compared with."""
        return [RAINY, *self.networks, *self.restored]

    def pictures(self, kind: str, number: int) -> Iterator[tuple[str, np.ndarray]]:
        """The variants of a clean picture, in one kind of rain: name, RGB uint8 (H, W, 3)."""
        source = self.rain[kind]
        if isinstance(source, str):
            clean = images.read(self.clean[number])
            rainy = rain.synthesize_8_bits(clean, (self.seed, number), source)
        else:
            rainy = images.read(source[number])
        yield RAINY, rainy
        for name, restore in self.networks.items():
            yield name, restore(rainy)
        for name, files in self.restored.items():
            yield name, images.read(files[number])


def measure_variants(
    compared: Comparison,
    kind: str,
    find: Callable[[np.ndarray], Any],
    draw: Callable[[np.ndarray, Any], np.ndarray],
    *,
    truth: tuple[str, Sequence[Any]],
    folder: str | None,
    keep: Callable[[Any, int], Any] = lambda found, number: found,
) -> dict[str, list[Any]]:
    """What is found in all pictures of every variant, in one kind of rain.

    Args:
      compared: the pictures.
      kind: of rain.
      find: (picture) -> what is found in it.
      draw: (picture, found) -> the picture with that drawn into it.
      truth: name and, per clean picture, what should be found; drawn beside the variants.
      folder: for pictures of the variants side by side; None or '' for none.
      keep: (found, number of the clean picture) -> what the result has of it.
    """
    results: dict[str, list[Any]] = {name: [] for name in compared.variants}
    for number, path in enumerate(tqdm(compared.clean, kind, disable=None)):
        panels = {}
        for name, picture in compared.pictures(kind, number):
            found = find(picture)
            results[name].append(keep(found, number))
            if folder:
                panels[name] = draw(picture, found)
        if folder:
            name, expected = truth
            panels[name] = draw(images.read(path), expected[number])
            target = pathlib.Path(folder) / kind / f"{path.stem}.png"
            images.write_png(target, overlays.side_by_side(panels))
    return results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `comparison` reads."""
    known = pretrained.list_pretrained()
    parser.add_argument("--clean", required=True, metavar="DIR", help="clean pictures")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--rainy", metavar="DIR", help="their rainy versions, paired by name")
    source.add_argument(
        "--rain", nargs="+", choices=tuple(rain.LEVELS), help="levels of synthetic rain instead"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the synthetic rain and the bootstrap"
    )
    parser.add_argument(
        "--weights",
        nargs="*",
        default=known,
        metavar="NAME|FILE|NAME=FILE",
        help=f"networks: {', '.join(known)}, or weights files (default: all that are shipped)",
    )
    parser.add_argument(
        "--restored",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="pictures that other methods made of those in --rainy, paired by name",
    )
    parser.add_argument(
        "--against", default=RAINY, metavar="NAME", help="what gains are counted from (rainy)"
    )
    parser.add_argument("--json", metavar="FILE", help="file to write the result to")
    parser.add_argument(
        "--pictures", metavar="DIR", help="new folder for pictures of what was found"
    )


def comparison(options: argparse.Namespace) -> Comparison:
    """Reads the options; compiles nothing and decodes no pictures.

    Raises:
      UserError: a folder is missing or empty, a picture has no partner, sizes differ, a network
        cannot be opened, two have one name, or an output cannot be written.
    """
    if options.restored and options.rain:
        raise UserError("--restored: give the pictures that it was made of as --rainy, not --rain")
    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed {options.seed}: give a number from 0 to {2**31 - 1}")
    _check_outputs(options)
    clean = picture_files(options.clean, "--clean")
    stems = [path.stem for path in clean]
    if options.pictures and (twice := sorted({s for s in stems if stems.count(s) > 1})):
        raise UserError(
            f"--pictures: would show two pictures of --clean as {first_few(twice)}; rename one"
        )
    folders = _named(options.restored, "--restored", needs_name=True)
    weights = _named(options.weights, "--weights")
    names = [RAINY, *weights, *folders]
    if twice := sorted({n for n in names if names.count(n) > 1 or n == CLEAN}):
        raise UserError(f"{first_few(twice)}: give each network and method a name of its own")
    if options.against not in names:
        raise UserError(f"--against {options.against}: give one of {', '.join(names)}")
    if options.rainy:
        name = pathlib.Path(options.rainy).resolve().name
        sources = {name: counterparts(options.rainy, clean, "--rainy")}
    else:
        sources = {level: level for level in options.rain}
    restored = {n: counterparts(f, clean, f"--restored {n}") for n, f in folders.items()}
    files = {name: pretrained.find(file) for name, file in weights.items()}
    networks = {name: Derainer.from_pretrained(file) for name, file in files.items()}
    record = {
        "clean": pathlib.Path(options.clean).resolve().name,
        "pictures": [path.name for path in clean],
        "rain": {
            name: {"level": name, "seed": options.seed, **dataclasses.asdict(rain.LEVELS[name])}
            if isinstance(source, str)
            else {"folder": name}
            for name, source in sources.items()
        },
        "networks": {
            name: {"sha256": sha256(files[name]), "provenance": network.provenance}
            for name, network in networks.items()
        },
        "restored": {n: pathlib.Path(f).resolve().name for n, f in folders.items()},
        "against": options.against,
        "seed": options.seed,
    }
    return Comparison(clean, sources, networks, restored, options.seed, record)


def picture_files(folder: str | os.PathLike, what: str) -> list[pathlib.Path]:
    """The pictures in a folder, in natural order.

    Raises:
      UserError: it is missing, unreadable or empty; begins with `what`.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{what} {folder}: no such folder")
    if not (files := images.files_in(folder)):
        raise UserError(f"{what} {folder}: holds no pictures; give the folder that holds them")
    return files


def counterparts(
    folder: str | os.PathLike, clean: Sequence[pathlib.Path], what: str
) -> list[pathlib.Path]:
    """The picture in a folder that belongs to each clean one, by the names.

    Raises:
      UserError: one is missing, is there twice or has another size; begins with `what`.
    """
    try:
        pairs = pairing.pair(picture_files(folder, what), clean)
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(what) else f"{what} {folder}: {error}") from None
    found: dict[pathlib.Path, pathlib.Path] = {}
    for path, partner in pairs:
        if partner in found:
            raise UserError(f"{what}: {found[partner]} and {path} both belong to {partner}")
        check_size(path, partner)
        found[partner] = path
    return [found[path] for path in clean]


def check_size(path: pathlib.Path, clean: pathlib.Path) -> None:
    """Raises UserError if a file has another size than the clean picture that it belongs to."""
    (height, width), (rows, columns) = images.size(path), images.size(clean)
    if (height, width) != (rows, columns):
        raise UserError(f"{path} has {width}x{height} pixels, but {clean} has {columns}x{rows}")


def _named(arguments: Sequence[str], option: str, needs_name: bool = False) -> dict[str, str]:
    """'NAME=PATH' -> {NAME: PATH}; of 'PATH' alone the name is its stem."""
    found: dict[str, str] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or pathlib.Path(argument).exists():
            name, path = "", argument
        if not path or (needs_name and not name):
            raise UserError(f"{option} {argument}: give NAME=PATH")
        name = name or pathlib.Path(path).stem
        if name in found:
            raise UserError(f"{option}: two are called {name}; give NAME=PATH")
        found[name] = path
    return found


def _check_outputs(options: argparse.Namespace) -> None:
    """Raises UserError for outputs that could not be written."""
    outputs = ("json", "pictures")
    inputs = [value for name, value in vars(options).items() if name not in outputs]
    if options.json:
        check_writable(options.json, "--json", [path for path in inputs if isinstance(path, str)])
    if not options.pictures:
        return
    if os.path.lexists(options.pictures):
        raise UserError(f"--pictures {options.pictures}: exists; give a new folder")
    if problem := obstacle([pathlib.Path(options.pictures)]):
        raise UserError(f"--pictures: {problem}")
    if options.json and os.path.realpath(options.json) == os.path.realpath(options.pictures):
        raise UserError(f"--pictures {options.pictures}: also given with --json; give another path")
