"""Removes rain from pictures and videos.

python -m manas_jax.derain INPUT... -o OUT

INPUT is a picture, a video, a folder of them (with all folders below it), or - for a picture on
standard input. OUT is a folder, or for a single file the file to write, or - for standard output.
What comes out is what went in with other colours: same format, size, depth, transparency,
metadata; videos keep their sound and their frames a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from manas_jax import compilation, metrics
from manas_jax.data import images
from manas_jax.errors import UserError
from manas_jax.inference import pictures, video
from manas_jax.inference.derainer import Derainer, pretrained

STREAM = "-"
DEFAULT_WEIGHTS = "general"

Restore = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to make.

    Attributes:
      source: file to read, or None for standard input.
      target: file to write, or None for standard output.
    """

    source: pathlib.Path | None
    target: pathlib.Path | None

    def __str__(self) -> str:
        return "standard input" if self.source is None else str(self.source)


def plan(inputs: Sequence[str], out: str) -> list[Job]:
    """What is to be made, in the order of the inputs; writes nothing.

    A folder's files keep their place below it; with several inputs each folder's come into a
    folder of its name. Links to folders are not followed.

    Raises:
      UserError: an input is missing or of no kind that is known, a folder holds nothing to do, an
        output would replace an input, or two inputs would become one output.
    """
    place = pathlib.Path(out)
    jobs: list[Job] = []
    for name in inputs:
        source = pathlib.Path(name)
        if name == STREAM:
            if len(inputs) > 1:
                raise UserError("standard input cannot be mixed with other inputs")
            if out != STREAM and place.is_dir():
                raise UserError(f"{out} is a folder: name the file to write")
            jobs.append(Job(None, None if out == STREAM else place))
        elif source.is_dir():
            if out == STREAM:
                raise UserError(f"{name} is a folder: give -o a folder, not standard output")
            base = place / source.resolve().name if len(inputs) > 1 else place
            found = [Job(file, base / file.relative_to(source)) for file in _files(source, place)]
            if not found:
                raise UserError(f"{name}: holds no pictures or videos")
            jobs += found
        elif not (os.path.lexists(source)):
            raise UserError(f"{name}: no such file or folder")
        elif not _is_known(source):
            raise UserError(f"{name}: its ending is none of a picture or video")
        elif out == STREAM:
            if len(inputs) > 1 or video.is_video(source):
                raise UserError("standard output takes one picture")
            jobs.append(Job(source, None))
        else:
            folder = len(inputs) > 1 or place.is_dir() or not _is_known(place)
            jobs.append(Job(source, place / source.name if folder else place))
    _check(jobs)
    return jobs


def run(
    jobs: Sequence[Job],
    restore: Restore,
    *,
    overwrite: bool = False,
    compare: bool = False,
    progress: bool = True,
) -> list[str]:
    """Does the jobs one after the other; one that fails leaves nothing and stops no other.

    Args:
      jobs: what to do.
      restore: uint8 or uint16 (H, W, 3), or several (N, H, W, 3), to the same without rain.
      overwrite: whether what is there already is made again.
      compare: whether pictures get a second file that shows them before and after.
      progress: whether to show how far it is and what time is left.

    Returns:
      What went wrong, a line each.
    """
    problems = []
    with tqdm(total=len(jobs), unit="file", disable=not progress or None, file=sys.stderr) as bar:
        for job in jobs:
            bar.set_postfix_str(job.source.name if job.source else "", refresh=True)
            try:
                if job.target and job.target.exists() and not overwrite:
                    raise UserError(f"{job.target} is there already; --overwrite makes it again")
                _derain(job, restore, compare, bar)
            except (UserError, OSError, MemoryError) as error:
                line = _line(job, error)
                problems.append(line)
                tqdm.write(f"skipped: {line}", file=sys.stderr)
            bar.update()
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, 1 if a file failed, 2 for wrong use."""
    options = _parser().parse_args(arguments)
    logging.getLogger("jax").setLevel(logging.ERROR)
    try:
        jobs = plan(options.inputs, options.out)
        derainer = Derainer.from_pretrained(options.weights, tile=options.tile)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    compilation.use_cache()

    def restore(pixels: np.ndarray) -> np.ndarray:
        return derainer(pixels, self_ensemble=options.self_ensemble)

    try:
        problems = run(
            jobs,
            restore,
            overwrite=options.overwrite,
            compare=options.compare,
            progress=not options.quiet and sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        print("stopped; what is written is whole, the same command goes on", file=sys.stderr)
        return 130
    if not options.quiet or problems:
        done = len(jobs) - len(problems)
        print(f"{done} of {len(jobs)} de-rained", end="", file=sys.stderr)
        print(f"; skipped {len(problems)}, see above" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def _derain(job: Job, restore: Restore, compare: bool, bar: tqdm) -> None:
    if job.source and video.is_video(job.source):
        video.derain(job.source, job.target, restore, _frame_progress(bar, job.source.name))
        return
    content = sys.stdin.buffer.read() if job.source is None else job.source
    picture = pictures.read(content, str(job))
    restored = [restore(frame) for frame in picture.frames]
    pictures.write(picture, restored, job.target or sys.stdout.buffer)
    if compare and job.target:
        both = np.concatenate([_to_8_bits(picture.frames[0]), _to_8_bits(restored[0])], axis=1)
        images.write_png(comparison(job.target), both)


def comparison(target: pathlib.Path) -> pathlib.Path:
    """Where the before-and-after picture of an output lies."""
    return target.with_name(f"{target.name}.compare.png")


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else metrics.to_uint8(pixels / np.float32(65535))


def _frame_progress(bar: tqdm, name: str) -> Callable[[int, int | None], None]:
    def show(done: int, total: int | None) -> None:
        bar.set_postfix_str(f"{name}, frame {done}" + (f" of {total}" if total else ""))

    return show


def _files(folder: pathlib.Path, place: pathlib.Path) -> Iterator[pathlib.Path]:
    """Pictures and videos below a folder, in order of their names, without those of `place`."""
    skipped = place.resolve()
    for path, folders, files in os.walk(folder):
        here = pathlib.Path(path)
        folders[:] = sorted(f for f in folders if (here / f).resolve() != skipped)
        yield from (here / file for file in sorted(files) if _is_known(here / file))


def _is_known(path: pathlib.Path) -> bool:
    return pictures.is_picture(path) or video.is_video(path)


def _check(jobs: Sequence[Job]) -> None:
    """No output is an input, and no output is made twice."""
    sources = {os.path.realpath(job.source) for job in jobs if job.source}
    targets: dict[str, Job] = {}
    for job in jobs:
        if job.target is None:
            continue
        path = os.path.realpath(job.target)
        if path in sources:
            raise UserError(f"{job.target} is an input: give -o another place")
        if path in targets:
            raise UserError(f"{targets[path]} and {job} would both become {job.target}")
        targets[path] = job


def _line(job: Job, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        text = "not enough memory; give a smaller --tile"
    return text if str(job) in text else f"{job}: {text}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.derain",
        description=__doc__.split("\n\n", 1)[0],
        epilog=__doc__.split("\n\n", 2)[2],
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, video, folder or -")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="file, folder or -")
    parser.add_argument(
        "--weights",
        default=DEFAULT_WEIGHTS,
        help=f"{', '.join(pretrained())} or a weights file (default: {DEFAULT_WEIGHTS})",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="cut larger pictures into tiles of N pixels: fewer need less memory "
        "(default: what memory allows)",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average over flips and turns: a little better, eight times slower",
    )
    parser.add_argument(
        "--compare", action="store_true", help="also write pictures before and after, side by side"
    )
    parser.add_argument("--overwrite", action="store_true", help="make again what is there already")
    parser.add_argument("--quiet", action="store_true", help="say only what went wrong")
    return parser


if __name__ == "__main__":
    sys.exit(main())
