"""Checks a benchmark's folder and writes it as a TensorFlow Datasets data set.

    python -m manas_jax.data.prepare rain100l --root ~/Rain100L --data_dir ~/data

finds the layout, decodes every picture, checks counts, sizes and pairs, looks for backgrounds that
occur twice and for those that are in training and in test, tells what it found and writes
`~/data/derain/rain100l`. To train on that: `data.source=tfds`, `data.tfds_name=derain/rain100l` and
`data.root=~/data`. Nothing is downloaded: without --root it says where to get the set.

A problem ends it with one line and status 1, before anything is written.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from manas_jax.data import catalog, duplicates, finder
from manas_jax.data.duplicates import Fingerprint
from manas_jax.data.scene import Scene, read
from manas_jax.errors import UserError
from manas_jax.files import first_few

_AHEAD = 64  # scenes being decoded or waiting to be used: bounds the memory
_LISTED = 5  # of a long list


@dataclasses.dataclass(frozen=True)
class Part:
    """A split, decoded once and for all.

    Attributes:
      layout: the one it was found in.
      scenes: one per background (identical clean pictures are one scene).
      prints: of their clean pictures (of the rainy one where there is none).
      pairs: rainy pictures.
      copies: clean pictures that show the background of another and were made one scene with it.
      sizes: how many pairs have which (height, width).
      rougher: share of the pairs whose clean picture varies more from pixel to pixel.
      alike: (scene, scene, bits apart) that look alike without being identical.
    """

    layout: catalog.Layout
    scenes: tuple[Scene, ...]
    prints: tuple[Fingerprint, ...]
    pairs: int
    copies: int
    sizes: collections.Counter
    rougher: float
    alike: tuple[tuple[str, str, int], ...]


@dataclasses.dataclass(frozen=True)
class Leak:
    """A background that is in training and in test: the scenes' names, how many bits apart."""

    scene: str
    split: str
    test_scene: str
    bits: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found of a benchmark: its parts by split, leaks, and files of no use."""

    name: str
    parts: dict[str, Part]
    leaks: tuple[Leak, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]  # what of the published counts is not met

    def splits(self, *, drop_leaks: bool) -> dict[str, tuple[Scene, ...]]:
        """The scenes by split, if asked for without the training scenes that are also tested."""
        leaked = {leak.scene for leak in self.leaks} if drop_leaks else set()
        return {
            split: tuple(s for s in part.scenes if split != "train" or s.name not in leaked)
            for split, part in self.parts.items()
        }


def inspect(name: str, root, *, partial: bool = False) -> Inspection:
    """Reads all of benchmark `name` below the folder `root` and checks it.

    Args:
      name: of the benchmark, see `catalog.BENCHMARKS`.
      root: the folder it was unpacked in.
      partial: whether fewer (or more) pairs than published are accepted.

    Raises:
      UserError: nothing found, a wrong count, a picture without its counterpart, a pair of unequal
        sizes, or an unreadable picture.
    """
    benchmark = finder.get(name)
    found, unused = finder.find(name, root)
    missing = tuple(_wrong_counts(benchmark, found))
    if missing and not partial:
        raise UserError(
            f"{root} is not all of {benchmark.title}: {'; '.join(missing)}. Complete it, or accept "
            "what is there with --partial"
        )
    parts = {
        split: _inspect_split(split, each, near_identical=benchmark.near_identical)
        for split, each in found.items()
    }
    leaks = tuple(_leaks(parts))
    return Inspection(name, parts, leaks, unused, missing)


def describe(name: str) -> str:
    """What is known of a benchmark, as text for people."""
    benchmark = finder.get(name)
    lines = [f"{name}: {benchmark.title}", f"  from     {benchmark.url}"]
    lines += [f"  cite     {benchmark.citation}", f"  scenes   {benchmark.backgrounds}"]
    for split, entry in benchmark.splits.items():
        counts = " or ".join(f"{pairs:,}" for pairs in entry.pairs) or "any number of"
        lines.append(f"  {split:<9}{counts} pairs, named below the root in one of these ways:")
        for layout in entry.layouts:
            side = f" (side by side, clean {layout.clean_half})" if layout.clean_half else ""
            some = f", scenes {layout.numbers[0]} to {layout.numbers[-1]}" if layout.numbers else ""
            names = " + ".join(filter(None, (layout.clean, layout.rainy)))
            lines.append(f"             {names}{side}{some}")
    lines += [f"  beware   {trap}" for trap in benchmark.traps]
    lines += [f"  checked  {source}" for source in benchmark.sources]
    return "\n".join(lines)


def summary(inspection: Inspection) -> str:
    """What was found, as text for people."""
    title = catalog.BENCHMARKS[inspection.name].title
    lines = [
        title,
        f"  {'split':<10}{'pairs':>9}{'scenes':>9}{'versions':>10}  {'size':<20}layout",
    ]
    for split, part in inspection.parts.items():
        versions = sorted({len(scene.rainy) for scene in part.scenes})
        spread = f"{versions[0]}" if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
        sizes = first_few([f"{h}x{w}" for (h, w), _ in part.sizes.most_common()], 1)
        names = part.layout.clean or part.layout.rainy
        lines.append(
            f"  {split:<10}{part.pairs:>9,}{len(part.scenes):>9,}{spread:>10}  {sizes:<20}{names}"
        )
    lines += [f"  incomplete: {text}" for text in inspection.missing]
    if inspection.unused:
        lines.append(
            f"  of no use: {len(inspection.unused):,} pictures, {_some(inspection.unused)}"
        )
    for split, part in inspection.parts.items():
        if part.copies:
            lines.append(f"  copies: {part.copies:,} clean pictures of {split} repeat another's")
        several = [scene for scene in part.scenes if len(scene.rainy) > 1]
        if several:
            lines.append(
                f"  multi-to-one: {len(several):,} scenes of {split} have several rainy versions, "
                f"{_some([f'{scene.name} ({len(scene.rainy)})' for scene in several])}"
            )
        if part.alike:
            pairs = [f"{a} and {b} ({bits} bits apart)" for a, b, bits in part.alike]
            lines.append(f"  look alike within {split}: {len(pairs):,}, {_some(pairs)}")
        if part.rougher > 0.5:
            lines.append(
                f"  suspicious: in {part.rougher:.0%} of {split} the clean picture is rougher than "
                "the rainy one; are the two folders (or halves) swapped?"
            )
    pairs = [f"{leak.scene} = {leak.split} {leak.test_scene}" for leak in inspection.leaks]
    if pairs:
        scenes = len({leak.scene for leak in inspection.leaks})
        lines.append(f"  LEAKS: {scenes:,} training scenes are also tested, {_some(pairs)}")
    elif len(inspection.parts) > 1 and "train" in inspection.parts:
        lines.append("  no training background is also tested")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _parser().parse_args(arguments)
    try:
        if not args.root:
            print(describe(args.name))
            return 0
        inspection = inspect(args.name, args.root, partial=args.partial)
        print(summary(inspection))
        if not args.check:
            splits = inspection.splits(drop_leaks=args.drop_leaks)
            _write(args.name, splits, args.data_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


# --- inspecting --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Measured:
    mark: Fingerprint
    size: tuple[int, int]
    rougher: int  # rainy versions that vary less than the clean picture


def _inspect_split(split: str, found: finder.Found, *, near_identical: bool) -> Part:
    progress = tqdm(
        _in_order(_measure, found.scenes),
        f"reading {split}",
        len(found.scenes),
        unit=" scenes",
        disable=None,  # shown on terminals alone
    )
    measured = list(progress)
    sizes = collections.Counter()
    for scene, each in zip(found.scenes, measured, strict=True):
        sizes[each.size] += len(scene.rainy)
    scenes, prints = duplicates.merge(
        found.scenes, [each.mark for each in measured], near_identical=near_identical
    )
    alike = tuple((scenes[i].name, scenes[j].name, b) for i, j, b in duplicates.alike(prints))
    rougher = sum(each.rougher for each in measured) / found.pairs
    copies = len(found.scenes) - len(scenes)
    return Part(found.layout, scenes, prints, found.pairs, copies, sizes, rougher, alike)


def _measure(scene: Scene) -> _Measured:
    """Decodes all pictures of a scene, compares their sizes and keeps what is needed later."""
    if scene.clean is None:
        pixels = read(scene.rainy[0])
        return _Measured(duplicates.fingerprint(pixels), pixels.shape[:2], 0)
    clean = read(scene.clean)
    roughness, rougher = _roughness(clean), 0
    for picture in scene.rainy:
        rainy = read(picture)
        if rainy.shape != clean.shape:
            raise UserError(
                f"{picture}: {rainy.shape[0]}x{rainy.shape[1]} pixels, but its clean picture "
                f"{scene.clean} has {clean.shape[0]}x{clean.shape[1]}; remove or replace the pair"
            )
        rougher += _roughness(rainy) < roughness
    return _Measured(duplicates.fingerprint(clean), clean.shape[:2], rougher)


def _roughness(pixels: np.ndarray) -> float:
    """Mean absolute difference of the green values of horizontal neighbours (streaks stand)."""
    green = pixels[..., 1].astype(np.int16)
    return float(np.abs(np.diff(green, axis=1)).mean()) if green.shape[1] > 1 else 0.0


def _in_order(function, scenes: Sequence[Scene]) -> Iterator:
    """`map` over threads with a bounded number of results waiting."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = collections.deque()
        try:
            for scene in scenes:
                waiting.append(pool.submit(function, scene))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _wrong_counts(benchmark: catalog.Benchmark, found: dict[str, finder.Found]) -> Iterator[str]:
    for split, entry in benchmark.splits.items():
        pairs = found[split].pairs if split in found else 0
        if entry.pairs and pairs not in entry.pairs:
            expected = " or ".join(f"{count:,}" for count in entry.pairs)
            yield f"{split} has {pairs:,} pairs instead of {expected}"


def _leaks(parts: dict[str, Part]) -> Iterator[Leak]:
    train = parts.get("train")
    for split, part in parts.items():
        if train is not None and split != "train":
            for i, j, bits in duplicates.alike(train.prints, part.prints):
                yield Leak(train.scenes[i].name, split, part.scenes[j].name, bits)


# --- the command -------------------------------------------------------------------------------


def _write(name: str, splits: dict[str, tuple[Scene, ...]], data_dir: str | None) -> None:
    from manas_jax.data import tfds_builder  # seconds to import

    if empty := [split for split, scenes in splits.items() if not scenes]:
        raise UserError(f"nothing is left of {', '.join(empty)}; keep the leaks or get more data")
    target = tfds_builder.write(name, splits, data_dir)
    root = target.parents[2]
    print(f"Wrote {target}")
    print(f"Use it with data.source=tfds data.tfds_name=derain/{name} data.root={root}")


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:<11}{b.title}" for name, b in catalog.BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.data.prepare",
        description=__doc__,
        epilog=f"benchmarks:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="a benchmark, see below")
    parser.add_argument(
        "--root", metavar="DIR", help="the folder it was unpacked in; without, tell about the set"
    )
    parser.add_argument(
        "--data_dir", metavar="DIR", help="where to write; without, where TFDS keeps its data sets"
    )
    parser.add_argument(
        "--partial", action="store_true", help="accept other counts than the published ones"
    )
    parser.add_argument(
        "--drop_leaks",
        action="store_true",
        help="leave out training scenes whose background is also tested",
    )
    parser.add_argument("--check", action="store_true", help="only check, write nothing")
    return parser


def _some(items: Sequence[str]) -> str:
    return f"as {first_few(items, _LISTED)}"


if __name__ == "__main__":
    sys.exit(main())
