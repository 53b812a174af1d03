"""Checks a published dataset and writes it as a TensorFlow dataset.

    python -m manas_jax.data.prepare rain100l --root ~/Rain100L --data_dir ~/data

finds the layout, decodes all images, checks counts, sizes and pairs, looks for duplicate
backgrounds and for those in both training and test, prints a summary and writes
`~/data/derain/rain100l`. To train on it: `data.source=tfds`, `data.tfds_name=derain/rain100l` and
`data.root=~/data`. Nothing is downloaded: without --root it prints where to get the dataset.

An error is one line and exit status 1; nothing is written then.
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

from manas_jax.buckets import check_local_options
from manas_jax.data import catalog, duplicates, finder
from manas_jax.data.duplicates import Fingerprint
from manas_jax.data.scene import Scene, read
from manas_jax.errors import UserError, check_extra
from manas_jax.files import first_few
from manas_jax.runtime import log, signals

_PENDING = 64  # scenes being decoded or decoded and not yet used: bounds the memory
_LISTED = 5  # of a long list in the summary


@dataclasses.dataclass(frozen=True)
class InspectedSplit:
    """A split whose images have been decoded.

    Attributes:
      layout: of its files.
      scenes: one per background, as scenes with duplicate clean images are merged.
      fingerprints: of their clean images, of the first rainy image if there is none.
      pairs: the number of rainy images.
      duplicates: the number of clean images whose scene was merged into another.
      sizes: the number of pairs by (height, width).
      clean_rougher: share of pairs whose clean image has more contrast between neighbouring pixels
        than the rainy one, which suggests that the two are swapped.
      similar: names of two scenes and the distance in bits, for those of similar backgrounds.
    """

    layout: catalog.Layout
    scenes: tuple[Scene, ...]
    fingerprints: tuple[Fingerprint, ...]
    pairs: int
    duplicates: int
    sizes: collections.Counter
    clean_rougher: float
    similar: tuple[tuple[str, str, int], ...]


@dataclasses.dataclass(frozen=True)
class Leak:
    """A training scene and a test scene of similar background.

    Attributes:
      scene: name of the training scene.
      split: the test split.
      test_scene: name of the test scene.
      distance: between the perceptual hashes, in bits.
    """

    scene: str
    split: str
    test_scene: str
    distance: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found of a dataset.

    Attributes:
      name: of the dataset.
      splits: by name.
      leaks: backgrounds that are in training and in test.
      unused: images that belong to no split, as paths relative to the root.
      wrong_counts: which numbers of pairs differ from the published ones, as messages.
    """

    name: str
    splits: dict[str, InspectedSplit]
    leaks: tuple[Leak, ...]
    unused: tuple[str, ...]
    wrong_counts: tuple[str, ...]

    def scenes(self, *, drop_leaks: bool) -> dict[str, tuple[Scene, ...]]:
        """Returns the scenes by split, with `drop_leaks` without leaked training scenes."""
        leaked = {leak.scene for leak in self.leaks} if drop_leaks else set()
        return {
            name: tuple(s for s in split.scenes if name != "train" or s.name not in leaked)
            for name, split in self.splits.items()
        }


def inspect(name: str, root, *, partial: bool = False) -> Inspection:
    """Decodes and checks all of a dataset below the folder `root`.

    Args:
      name: of the dataset, a key of `catalog.DATASETS`.
      root: the folder that it was unpacked in.
      partial: whether other numbers of pairs than the published ones are accepted.

    Raises:
      UserError: nothing found, a wrong count, an image without its counterpart, a pair of unequal
        sizes, or an unreadable image.
    """
    dataset = finder.get(name)
    found, unused = finder.find(name, root)
    wrong_counts = tuple(_wrong_counts(dataset, found))
    if wrong_counts and not partial:
        raise UserError(
            f"{root} is not all of {dataset.title}: {'; '.join(wrong_counts)}. Complete it, or "
            "accept it as it is with --partial"
        )
    splits = {
        split: _inspect_split(split, each, near_identical=dataset.near_identical)
        for split, each in found.items()
    }
    return Inspection(name, splits, tuple(_leaks(splits)), unused, wrong_counts)


def describe(name: str) -> str:
    """Formats the catalog's entry of a dataset as text.

    Raises:
      UserError: there is none of this name.
    """
    dataset = finder.get(name)
    lines = [f"{name}: {dataset.title}", f"  from     {dataset.url}"]
    lines += [f"  cite     {dataset.citation}", f"  scenes   {dataset.backgrounds}"]
    for split, entry in dataset.splits.items():
        counts = " or ".join(f"{pairs:,}" for pairs in entry.pairs) or "any number of"
        lines.append(f"  {split:<9}{counts} pairs, with file names below the root in one of:")
        for layout in entry.layouts:
            side = f" (side by side, clean {layout.clean_half})" if layout.clean_half else ""
            some = f", scenes {layout.numbers[0]} to {layout.numbers[-1]}" if layout.numbers else ""
            names = " + ".join(filter(None, (layout.clean, layout.rainy)))
            lines.append(f"             {names}{side}{some}")
    lines += [f"  beware   {trap}" for trap in dataset.traps]
    lines += [f"  checked  {source}" for source in dataset.sources]
    return "\n".join(lines)


def summary(inspection: Inspection) -> str:
    """Formats what was found as text."""
    lines = [
        catalog.DATASETS[inspection.name].title,
        f"  {'split':<10}{'pairs':>9}{'scenes':>9}{'versions':>10}  {'size':<20}layout",
    ]
    for name, split in inspection.splits.items():
        versions = sorted({len(scene.rainy) for scene in split.scenes})
        span = f"{versions[0]}" if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
        sizes = first_few([f"{h}x{w}" for (h, w), _ in split.sizes.most_common()], 1)
        files = split.layout.clean or split.layout.rainy
        lines.append(
            f"  {name:<10}{split.pairs:>9,}{len(split.scenes):>9,}{span:>10}  {sizes:<20}{files}"
        )
    lines += [f"  wrong count: {text}" for text in inspection.wrong_counts]
    if inspection.unused:
        lines.append(f"  unused: {len(inspection.unused):,} images, {_examples(inspection.unused)}")
    for name, split in inspection.splits.items():
        lines += [f"  {text}" for text in _remarks(name, split)]
    pairs = [f"{leak.scene} = {leak.split} {leak.test_scene}" for leak in inspection.leaks]
    if pairs:
        scenes = len({leak.scene for leak in inspection.leaks})
        lines.append(f"  LEAKS: {scenes:,} training scenes are also tested, {_examples(pairs)}")
    elif len(inspection.splits) > 1 and "train" in inspection.splits:
        lines.append("  no training background is also tested")
    return "\n".join(lines)


def _remarks(name: str, split: InspectedSplit) -> Iterator[str]:
    if split.duplicates:
        yield f"duplicates: {split.duplicates:,} clean images of {name} repeat another one"
    several = [scene for scene in split.scenes if len(scene.rainy) > 1]
    if several:
        examples = _examples([f"{scene.name} ({len(scene.rainy)})" for scene in several])
        yield (
            f"multi-to-one: {len(several):,} scenes of {name} have several rainy versions, "
            f"{examples}"
        )
    if split.similar:
        pairs = [f"{a} and {b} (distance {distance} bits)" for a, b, distance in split.similar]
        yield f"similar within {name}: {len(pairs):,} pairs of scenes, {_examples(pairs)}"
    if split.clean_rougher > 0.5:
        yield (
            f"suspicious: in {split.clean_rougher:.0%} of {name} the clean image is rougher than "
            "the rainy one; are the two folders (or halves) swapped?"
        )


def _examples(items: Sequence[str]) -> str:
    return f"such as {first_few(items, _LISTED)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _parser().parse_args(arguments)
    log.escape_stdout()
    return signals.run_command(lambda: _prepare(args))


def _prepare(args: argparse.Namespace) -> None:
    """Describes, checks or writes the dataset that the options name.

    Raises:
      UserError: what the user can correct.
    """
    check_local_options(args)
    check_extra("train", "tensorflow", "tensorflow_datasets")
    if not args.root:
        if args.check or args.partial or args.drop_leaks or args.data_dir:
            raise UserError("--root is missing: name the folder of the dataset")
        print(describe(args.name))
        return
    if args.check and (args.data_dir or args.drop_leaks):
        given = "--data_dir" if args.data_dir else "--drop_leaks"
        raise UserError(f"{given}: nothing is written with --check; leave one of them out")
    if not args.check:
        from manas_jax.data import tfds_builder  # imports TFDS, which takes seconds

        tfds_builder.check_target(args.name, args.data_dir)
    inspection = inspect(args.name, args.root, partial=args.partial)
    print(summary(inspection))
    if not args.check:
        _write(args.name, inspection.scenes(drop_leaks=args.drop_leaks), args.data_dir)


# --- inspecting --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What is needed of a scene once its images are decoded.

    Attributes:
      fingerprint: of the clean image, of the first rainy one if there is none.
      size: (height, width).
      clean_rougher: the number of rainy versions that are smoother than the clean image.
    """

    fingerprint: Fingerprint
    size: tuple[int, int]
    clean_rougher: int


def _inspect_split(name: str, found: finder.FoundSplit, *, near_identical: bool) -> InspectedSplit:
    progress = tqdm(
        _in_order(_measure, found.scenes),
        f"reading {name}",
        len(found.scenes),
        unit=" scenes",
        disable=None,  # hidden unless on a terminal
    )
    measured = list(progress)
    sizes = collections.Counter()
    for scene, each in zip(found.scenes, measured, strict=True):
        sizes[each.size] += len(scene.rainy)
    scenes, fingerprints = duplicates.merge(
        found.scenes, [each.fingerprint for each in measured], near_identical=near_identical
    )
    return InspectedSplit(
        layout=found.layout,
        scenes=scenes,
        fingerprints=fingerprints,
        pairs=found.pairs,
        duplicates=len(found.scenes) - len(scenes),
        sizes=sizes,
        clean_rougher=sum(each.clean_rougher for each in measured) / found.pairs,
        similar=tuple(
            (scenes[i].name, scenes[j].name, distance)
            for i, j, distance in duplicates.find_similar(fingerprints)
        ),
    )


def _measure(scene: Scene) -> _Measured:
    """Decodes all images of a scene and compares their sizes."""
    if scene.clean is None:
        pixels = read(scene.rainy[0])
        return _Measured(duplicates.fingerprint(pixels), pixels.shape[:2], 0)
    clean = read(scene.clean)
    roughness, clean_rougher = _roughness(clean), 0
    for image in scene.rainy:
        rainy = read(image)
        if rainy.shape != clean.shape:
            raise UserError(
                f"{image}: {rainy.shape[0]}x{rainy.shape[1]} pixels, but its clean image "
                f"{scene.clean} has {clean.shape[0]}x{clean.shape[1]}; remove or replace the pair"
            )
        clean_rougher += _roughness(rainy) < roughness
    return _Measured(duplicates.fingerprint(clean), clean.shape[:2], clean_rougher)


def _roughness(pixels: np.ndarray) -> float:
    """Mean absolute difference of green between horizontal neighbours, as streaks are upright."""
    green = pixels[..., 1].astype(np.int16)
    return float(np.abs(np.diff(green, axis=1)).mean()) if green.shape[1] > 1 else 0.0


def _in_order(function, scenes: Sequence[Scene]) -> Iterator:
    """Maps over threads, with a bounded number of pending results."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        pending = collections.deque()
        try:
            for scene in scenes:
                pending.append(pool.submit(function, scene))
                if len(pending) >= _PENDING:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _wrong_counts(dataset: catalog.Dataset, found: dict[str, finder.FoundSplit]) -> Iterator[str]:
    for split, entry in dataset.splits.items():
        pairs = found[split].pairs if split in found else 0
        if entry.pairs and pairs not in entry.pairs:
            expected = " or ".join(f"{count:,}" for count in entry.pairs)
            yield f"{split} has {pairs:,} pairs instead of {expected}"


def _leaks(splits: dict[str, InspectedSplit]) -> Iterator[Leak]:
    train = splits.get("train")
    for name, split in splits.items():
        if train is not None and name != "train":
            for i, j, distance in duplicates.find_similar(train.fingerprints, split.fingerprints):
                yield Leak(train.scenes[i].name, name, split.scenes[j].name, distance)


# --- the command -------------------------------------------------------------------------------


def _write(name: str, splits: dict[str, tuple[Scene, ...]], data_dir: str | None) -> None:
    from manas_jax.data import tfds_builder  # imports TFDS, which takes seconds

    if empty := [split for split, scenes in splits.items() if not scenes]:
        raise UserError(
            f"no scenes left in {', '.join(empty)}; leave out --drop_leaks or get more data"
        )
    target = tfds_builder.write(name, splits, data_dir)
    root = target.parents[2]
    print(f"Wrote {target}")
    print(f"Use it with data.source=tfds data.tfds_name=derain/{name} data.root={root}")


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:<11}{dataset.title}" for name, dataset in catalog.DATASETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.data.prepare",
        description=__doc__,
        epilog=f"datasets:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="a dataset, see below")
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="the folder it was unpacked in; without it, describe the dataset",
    )
    parser.add_argument(
        "--data_dir", metavar="DIR", help="where to write; by default the folder of TFDS"
    )
    parser.add_argument(
        "--partial", action="store_true", help="accept other numbers of pairs than published"
    )
    parser.add_argument(
        "--drop_leaks",
        action="store_true",
        help="leave out training scenes whose background is also in a test split",
    )
    parser.add_argument("--check", action="store_true", help="check only, write nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
