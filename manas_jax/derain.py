"""Removes rain from pictures and videos.

python -m manas_jax.derain INPUT... -o OUT

INPUT is a picture, a video, a folder of them (with all folders below it), or - for a picture on
standard input. OUT is a folder, or for a single file the file to write, or - for standard output.
What comes out is what went in with other colours: same format, size, depth, transparency,
metadata; videos keep their sound and their frames a second. What is there already is left as it
is, so that the same command started again goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from manas_jax import metrics
from manas_jax.data import images
from manas_jax.errors import UserError
from manas_jax.inference import image_files, video
from manas_jax.inference.derainer import Derainer
from manas_jax.inference.pretrained import describe, list_pretrained
from manas_jax.runtime import compilation, malloc

STREAM = "-"
DEFAULT_WEIGHTS = "general"

Restore = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to make.

    Attributes:
      source: file to read, or None for standard input.
      target: file to write, or None for standard output.
      compare: whether a picture gets a second file that shows it before and after.
    """

    source: pathlib.Path | None
    target: pathlib.Path | None
    compare: bool = False

    def __str__(self) -> str:
        return "standard input" if self.source is None else str(self.source)

    @property
    def is_video(self) -> bool:
        """Whether the input is one by its name."""
        return self.source is not None and video.is_video(self.source)

    @property
    def comparison(self) -> pathlib.Path | None:
        """Where the picture before and after is written, if it is."""
        if not self.compare or self.target is None or self.is_video:
            return None
        return self.target.with_name(f"{self.target.name}.compare.png")


@dataclasses.dataclass
class Plan:
    """What is to be made of some inputs.

    Attributes:
      jobs: the files to make, in the order of the inputs.
      problems: folders that cannot be looked into, a line each.
      others: how many files in the folders are neither pictures nor videos.
    """

    jobs: list[Job] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    others: int = 0


def plan(inputs: Sequence[str], out: str, *, compare: bool = False) -> Plan:
    """What is to be made; writes nothing.

    A folder's files keep their place below it; with several inputs each folder's come into a
    folder of its name. Links to folders are not followed, and OUT below a folder is not looked
    into.

    Raises:
      UserError: an input is missing or of no kind that is known, a folder holds nothing to do, an
        output would replace an input, two inputs would become one output, or OUT is a file where
        a folder is needed.
    """
    made, place = Plan(), pathlib.Path(out)
    for name in inputs:
        source = pathlib.Path(name)
        if name == STREAM:
            if len(inputs) > 1:
                raise UserError("standard input cannot be mixed with other inputs")
            if out != STREAM and place.is_dir():
                raise UserError(f"{out} is a folder: name the file to write")
            made.jobs.append(Job(None, None if out == STREAM else place, compare))
        elif os.path.isdir(source):
            if out == STREAM:
                raise UserError(f"{name} is a folder: give -o a folder, not standard output")
            base = _folder(place)
            if len(inputs) > 1:
                base /= os.path.basename(os.path.realpath(source))
            _add_files(made, source, base, place, compare)
        elif not os.path.lexists(source):
            raise UserError(f"{name}: no such file or folder")
        elif not _is_known(source):
            raise UserError(f"{name}: its ending is none of a picture or video")
        elif out == STREAM:
            if len(inputs) > 1 or video.is_video(source):
                raise UserError("standard output takes one picture")
            made.jobs.append(Job(source, None, compare))
        elif len(inputs) > 1 or place.is_dir() or not _is_known(place):
            made.jobs.append(Job(source, _folder(place) / source.name, compare))
        elif video.is_video(source) != video.is_video(place):
            raise UserError(f"{name} and {out}: pictures stay pictures and videos videos")
        else:
            made.jobs.append(Job(source, place, compare))
    _check(made.jobs)
    return made


def run(jobs: Sequence[Job], restore: Restore, *, progress: bool = True) -> list[str]:
    """Does the jobs one after the other; one that fails leaves nothing and stops no other.

    Args:
      jobs: what to do; targets that are there are replaced.
      restore: uint8 or uint16 (H, W, 3), or several (N, H, W, 3), to the same without rain.
      progress: whether to show on a terminal how far it is and what time is left.

    Returns:
      What went wrong, a line each.
    """
    problems = []
    with tqdm(total=len(jobs), unit="file", disable=None if progress else True) as bar:
        for job in jobs:
            bar.set_postfix_str(_printable(job.source.name if job.source else ""), refresh=True)
            try:
                _derain(job, restore, bar)
            except (UserError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
                problems.append(_line(job, error))
                tqdm.write(problems[-1], file=sys.stderr)
            bar.update()
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, 1 if a file failed, 2 for wrong use."""
    options = _parser().parse_args(arguments)
    logging.getLogger("jax").setLevel(logging.ERROR)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # says of damage what the exception says
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # of what it reads all the same
            return _main(options)
    except UserError as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is written is whole, the same command goes on", file=sys.stderr)
        return 130


def _main(options: argparse.Namespace) -> int:
    planned = plan(options.inputs, options.out, compare=options.compare)
    jobs = [job for job in planned.jobs if options.overwrite or not _is_there(job)]
    there = len(planned.jobs) - len(jobs)
    if there and len(planned.jobs) == 1 and not os.path.isdir(options.inputs[0]):
        raise UserError(f"{planned.jobs[0].target} is there already; --overwrite makes it again")
    problems = [_printable(line) for line in planned.problems]
    for line in problems:
        print(line, file=sys.stderr)
    if jobs:
        malloc.tune()
        derainer = Derainer.from_pretrained(options.weights, tile=options.tile)
        compilation.use_cache()

        def restore(pixels: np.ndarray) -> np.ndarray:
            return derainer(pixels, self_ensemble=options.self_ensemble)

        problems += run(jobs, restore, progress=not options.quiet)
    is_said = problems and len(planned.jobs) == 1 and not planned.problems
    if not options.quiet and not is_said:
        done = len(jobs) + len(planned.problems) - len(problems)
        counts = {
            f"{done} of {len(planned.jobs)} de-rained": True,
            f"{len(problems)} failed, see above": problems,
            f"{there} there already, --overwrite makes them again": there,
            f"{planned.others} of other kinds left alone": planned.others,
        }
        print("; ".join(text for text, is_any in counts.items() if is_any), file=sys.stderr)
    return 1 if problems else 0


def _derain(job: Job, restore: Restore, bar: tqdm) -> None:
    if job.source and not job.source.is_file():  # to read from a pipe would be to wait
        raise UserError(f"{job}: no file, or a link to none")
    if job.is_video:
        video.derain(job.source, job.target, restore, _frame_progress(bar, job.source.name))
        return
    picture = image_files.read(job.source or sys.stdin.buffer.read(), str(job))
    _check_name(job, picture.format)
    restored = [restore(frame) for frame in picture.frames]
    if job.target:
        image_files.write(picture, restored, job.target)
    else:
        _write_to_standard_output(picture, restored)
    if job.comparison:
        both = np.concatenate([_to_8_bits(picture.frames[0]), _to_8_bits(restored[0])], axis=1)
        images.write_png(job.comparison, both)


def _write_to_standard_output(picture: image_files.Picture, restored: Sequence[np.ndarray]) -> None:
    try:
        # A buffer of its own: what is left in that of sys.stdout would fail once more at the exit.
        with open(sys.stdout.fileno(), "wb", closefd=False) as stream:
            image_files.write(picture, restored, stream)
    except OSError as error:
        raise UserError(f"standard output cannot be written to ({error.strerror})") from error


def _check_name(job: Job, format: str) -> None:
    """Refuses a new name that promises another format; a wrong ending of the input's own stays."""
    if not job.target or (job.source and job.source.suffix == job.target.suffix):
        return
    promised = Image.registered_extensions().get(job.target.suffix.lower(), format)
    if promised != format:
        raise UserError(f"{job} is {format} and stays it: {job.target} promises {promised}")


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else metrics.to_uint8(pixels / np.float32(65535))


def _frame_progress(bar: tqdm, name: str) -> Callable[[int, int | None], None]:
    def show(done: int, total: int | None) -> None:
        frames = f"{done} of {total}" if total else str(done)
        bar.set_postfix_str(f"{_printable(name)}, frame {frames}")

    return show


def _folder(place: pathlib.Path) -> pathlib.Path:
    if os.path.lexists(place) and not place.is_dir():
        raise UserError(f"{place} is a file, where a folder is needed: give -o another place")
    return place


def _add_files(
    made: Plan, folder: pathlib.Path, base: pathlib.Path, place: pathlib.Path, compare: bool
) -> None:
    """Adds what lies below a folder, in order of its names, without what lies below `place`."""

    def refused(error: OSError) -> None:
        made.problems.append(f"{error.filename}: cannot be looked into ({error.strerror})")

    skipped, before = os.path.realpath(place), (len(made.jobs), len(made.problems))
    for path, folders, files in os.walk(folder, onerror=refused):
        here = pathlib.Path(path)
        folders[:] = sorted(f for f in folders if os.path.realpath(here / f) != skipped)
        known = [here / file for file in sorted(files) if _is_known(here / file)]
        made.jobs += [Job(file, base / file.relative_to(folder), compare) for file in known]
        made.others += len(files) - len(known)
    if before == (len(made.jobs), len(made.problems)):
        raise UserError(f"{folder}: holds no pictures or videos")


def _is_known(path: pathlib.Path) -> bool:
    return image_files.is_picture(path) or video.is_video(path)


def _is_there(job: Job) -> bool:
    return job.target is not None and os.path.lexists(job.target)


def _check(jobs: Sequence[Job]) -> None:
    """No output is an input, and no output is made twice."""
    sources = {os.path.realpath(job.source) for job in jobs if job.source}
    makers: dict[str, Job] = {}
    for job in jobs:
        for target in filter(None, (job.target, job.comparison)):
            path = os.path.realpath(target)
            if path in sources:
                raise UserError(f"{target} is an input: give -o another place")
            if path in makers:
                raise UserError(f"{makers[path]} and {job} would both become {target}")
            makers[path] = job


def _line(job: Job, error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        text = "not enough memory; give a smaller --tile"
    return _printable(text if str(job) in text else f"{job}: {text}")


def _printable(text: str) -> str:
    """The text in one line that leaves terminals alone, whatever a file's name holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _List(argparse.Action):
    """Lists the pretrained weights and exits, as --version and --help do."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(*map(describe, list_pretrained()), sep="\n")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.derain",
        description=__doc__.split("\n\n", 1)[0],
        epilog=__doc__.split("\n\n", 2)[2],
    )
    parser.add_argument(
        "--list",
        action=_List,
        nargs=0,
        help="show the weights that come with the package, and exit",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, video, folder or -")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="file, folder or -")
    parser.add_argument(
        "--weights",
        default=DEFAULT_WEIGHTS,
        help=f"{', '.join(list_pretrained())} or a weights file (default: {DEFAULT_WEIGHTS})",
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
