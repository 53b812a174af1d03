"""Removes rain from images and videos.

python -m manas_jax.derain INPUT... -o OUT

INPUT is an image, a video, a folder with everything below it, or - for an image on standard
input. OUT is a folder, for a single file the file to write, or - for standard output. Only pixel
values change: images keep format, size, bit depth, transparency and metadata, videos audio and
frame rate. Existing outputs are skipped, so the same command resumes an interrupted one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from manas_jax import metrics
from manas_jax.buckets import check_local_options
from manas_jax.data import images
from manas_jax.errors import UserError
from manas_jax.inference import image_files, video
from manas_jax.inference.derainer import Derainer
from manas_jax.inference.pretrained import describe, list_pretrained
from manas_jax.runtime import compilation, malloc, signals

STREAM = "-"
DEFAULT_WEIGHTS = "general"

Restore = Callable[[np.ndarray], np.ndarray]
"""RGB, uint8 or uint16, (H, W, 3) or (N, H, W, 3) -> restored, in the same shape and type."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to de-rain.

    Attributes:
      source: file to read, or None for standard input.
      target: file to write, or None for standard output.
      compare: whether to write an image of before and after as well.
    """

    source: pathlib.Path | None
    target: pathlib.Path | None
    compare: bool = False

    def __str__(self) -> str:
        return "standard input" if self.source is None else str(self.source)

    @property
    def is_video(self) -> bool:
        """Whether the input has the suffix of a video."""
        return self.source is not None and video.is_video(self.source)

    @property
    def comparison(self) -> pathlib.Path | None:
        """The file of before and after, if one is written."""
        if not self.compare or self.target is None or self.is_video:
            return None
        return self.target.with_name(f"{self.target.name}.compare.png")


@dataclasses.dataclass
class Plan:
    """What a command is to do.

    Attributes:
      jobs: one per file, in the order of the inputs.
      problems: folders that cannot be read, one line each.
      others: files in the folders that are neither images nor videos, or hidden: their suffixes.
    """

    jobs: list[Job] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)


def plan(inputs: Sequence[str], out: str, *, compare: bool = False) -> Plan:
    """Finds the files to de-rain and names their outputs; writes nothing.

    Files keep their path below their folder; with several inputs each folder gets one of its name
    in OUT. Links to folders are not followed, and OUT is skipped where it is below an input.

    Args:
      inputs: paths, or '-' alone.
      out: a path or '-'.
      compare: see `Job`.

    Raises:
      UserError: an input is missing or of unknown kind, a folder holds nothing to de-rain, an
        output is an input or belongs to two inputs, or OUT is a file where a folder is needed.
    """
    planned, several = Plan(), len(inputs) > 1
    for name in inputs:
        if name == STREAM:
            planned.jobs.append(Job(None, _stream_target(out, several), compare))
        elif os.path.isdir(name):
            _add_folder(planned, pathlib.Path(name), out, several, compare)
        else:
            job = Job(pathlib.Path(name), _file_target(name, out, several), compare)
            planned.jobs.append(job)
    _check_targets(planned.jobs)
    return planned


def run(jobs: Sequence[Job], restore: Restore, *, progress: bool = True) -> list[str]:
    """Runs jobs in turn; one that fails writes nothing and does not stop the others.

    Args:
      jobs: what to do; existing targets are replaced.
      restore: removes rain from the frames of images and batches of frames of videos.
      progress: whether to show a progress bar on a terminal.

    Returns:
      Errors, one line each.
    """
    problems = []
    with tqdm(total=len(jobs), unit="file", disable=None if progress else True) as bar:
        for job in jobs:
            bar.set_postfix_str(_printable(job.source.name if job.source else ""), refresh=True)
            try:
                _derain(job, restore, bar)
            except Exception as error:  # one file may not stop the others
                problems.append(_error_line(job, error))
                tqdm.write(problems[-1], file=sys.stderr)
            bar.update()
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 if a file failed, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="warning: %(message)s")
    logging.getLogger("jax").setLevel(logging.ERROR)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # repeats what its exceptions say
    try:
        with warnings.catch_warnings(), signals.unwinding():
            warnings.filterwarnings("ignore", module="PIL")  # about files that it reads anyway
            return _main(options)
    except UserError as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; all files written are complete, rerun to resume", file=sys.stderr)
        return 130


def _main(options: argparse.Namespace) -> int:
    check_local_options(options)
    planned = plan(options.inputs, options.out, compare=options.compare)
    jobs = [job for job in planned.jobs if options.overwrite or not _exists(job)]
    if not jobs and len(planned.jobs) == 1 and not os.path.isdir(options.inputs[0]):
        raise UserError(f"{planned.jobs[0].target} exists; --overwrite replaces it")
    obstacles = {job: _obstacle(job) for job in jobs}
    jobs = [job for job in jobs if not obstacles[job]]
    # Files share a line where it is their folder that cannot be written.
    problems = [*planned.problems, *dict.fromkeys(filter(None, obstacles.values()))]
    problems = [_printable(line) for line in problems]
    for line in problems:
        print(line, file=sys.stderr)
    failed = len(planned.problems) + len(obstacles) - len(jobs)
    if jobs:
        malloc.tune()
        derainer = Derainer.from_pretrained(options.weights, tile=options.tile)
        compilation.use_cache()

        def restore(pixels: np.ndarray) -> np.ndarray:
            return derainer(pixels, self_ensemble=options.self_ensemble)

        failures = run(jobs, restore, progress=not options.quiet)
        problems += failures
        failed += len(failures)
    one_line_says_all = problems and len(planned.jobs) == 1 and not planned.problems
    if not options.quiet and not one_line_says_all:
        print(_summary(planned, len(obstacles), failed), file=sys.stderr)
    return 1 if problems else 0


def _summary(planned: Plan, tried: int, failed: int) -> str:
    """How many files were de-rained, failed and skipped.

    Args:
      planned: the plan.
      tried: number of its jobs whose outputs did not exist.
      failed: number of jobs that failed and folders that cannot be read.
    """
    done = tried + len(planned.problems) - failed
    existing = len(planned.jobs) - tried
    suffixes = ", ".join(sorted({suffix or "no suffix" for suffix in planned.others}))
    counts = {
        f"{done} of {len(planned.jobs)} de-rained": True,
        f"{failed} failed, see above": failed,
        f"{existing} existing skipped (--overwrite replaces them)": existing,
        f"{len(planned.others)} of other kinds ignored ({_printable(suffixes)})": planned.others,
    }
    return "; ".join(text for text, applies in counts.items() if applies)


def _derain(job: Job, restore: Restore, bar: tqdm) -> None:
    if job.source and not job.source.is_file():  # reading from a pipe would block
        raise UserError(f"{job}: no file, or a link to none")
    if job.is_video:
        video.derain(job.source, job.target, restore, _frame_progress(bar, job.source.name))
        return
    with _without_library_messages():
        file = image_files.read(job.source or sys.stdin.buffer.read(), str(job))
    _check_suffix(job, file.format)
    restored = [restore(frame) for frame in file.frames]
    if job.target:
        image_files.write(file, restored, job.target, like=job.source)
    else:
        _write_to_standard_output(file, restored)
    if job.comparison:
        both = np.concatenate([_to_8_bits(file.frames[0]), _to_8_bits(restored[0])], axis=1)
        images.write_png(job.comparison, both, like=job.source)
    if file.left_out:
        line = f"{job}: warning: written without its {' and '.join(file.left_out)}"
        tqdm.write(_printable(line), file=sys.stderr)


@contextlib.contextmanager
def _without_library_messages() -> Iterator[None]:
    """Silences what libraries in C, such as libtiff, print about damaged files."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # standard error is closed
            original = os.dup(2)
            stack.callback(os.close, original)
            stack.callback(os.dup2, original, 2)
            os.dup2(stack.enter_context(open(os.devnull, "wb")).fileno(), 2)
        yield


def _write_to_standard_output(file: image_files.ImageFile, restored: Sequence[np.ndarray]) -> None:
    try:
        # Not sys.stdout: what its buffer could not write would fail once more at exit.
        with open(sys.stdout.fileno(), "wb", closefd=False) as stream:
            image_files.write(file, restored, stream)
    except OSError as error:
        raise UserError(f"cannot write to standard output ({error.strerror})") from error


def _check_suffix(job: Job, format: str) -> None:
    """Refuses a target with the suffix of another format, unless the input has the same suffix."""
    if not job.target or (job.source and job.source.suffix == job.target.suffix):
        return
    expected = Image.registered_extensions().get(job.target.suffix.lower(), format)
    if expected != format:
        raise UserError(f"{job}: is {format} and stays so, but {job.target} is named as {expected}")


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else metrics.to_uint8(pixels / np.float32(65535))


def _frame_progress(bar: tqdm, name: str) -> video.Progress:
    def show(done: int, total: int) -> None:
        bar.set_postfix_str(f"{_printable(name)}, frame {done} of {total}")

    return show


def _stream_target(out: str, several: bool) -> pathlib.Path | None:
    if several:
        raise UserError("standard input cannot be combined with other inputs")
    if out == STREAM:
        return None
    if os.path.isdir(out):
        raise UserError(f"{out} is a folder: give -o a file")
    return pathlib.Path(out)


def _file_target(name: str, out: str, several: bool) -> pathlib.Path | None:
    source, place = pathlib.Path(name), pathlib.Path(out)
    try:
        source.lstat()
    except FileNotFoundError:
        raise UserError(f"{name}: no such file or folder") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    if not _is_known(source):
        raise UserError(f"{name}: has the suffix of neither an image nor a video")
    if out == STREAM:
        if several or video.is_video(source):
            raise UserError("standard output takes a single image")
        return None
    if several or os.path.isdir(place) or not _is_known(place):
        return _folder(place) / source.name
    if video.is_video(source) != video.is_video(place):
        raise UserError(f"{name} and {out}: images stay images and videos videos")
    return place


def _add_folder(
    planned: Plan, folder: pathlib.Path, out: str, several: bool, compare: bool
) -> None:
    """Adds everything below a folder except what is below `out`, sorted by name."""
    if out == STREAM:
        raise UserError(f"{folder} is a folder: give -o a folder, not standard output")
    base = _folder(pathlib.Path(out))
    skipped = os.path.realpath(base)
    if several:
        base /= os.path.basename(os.path.realpath(folder))

    def add_problem(error: OSError) -> None:
        planned.problems.append(f"{error.filename}: cannot be read ({error.strerror})")

    before = len(planned.jobs) + len(planned.problems)
    for path, folders, files in os.walk(folder, onerror=add_problem):
        here = pathlib.Path(path)
        folders[:] = sorted(f for f in folders if os.path.realpath(here / f) != skipped)
        known = [here / file for file in sorted(files) if _is_known(here / file)]
        planned.jobs += [Job(file, base / file.relative_to(folder), compare) for file in known]
        others = (here / file for file in files if not _is_known(here / file))
        planned.others += ["hidden" if f.name.startswith(".") else f.suffix.lower() for f in others]
    if before == len(planned.jobs) + len(planned.problems):
        raise UserError(f"{folder}: holds no images or videos")


def _folder(place: pathlib.Path) -> pathlib.Path:
    if os.path.lexists(place) and not os.path.isdir(place):
        raise UserError(f"{place} is a file, but a folder is needed: give -o another path")
    return place


def _is_known(path: pathlib.Path) -> bool:
    return image_files.is_image(path) or video.is_video(path)


def _exists(job: Job) -> bool:
    return job.target is not None and os.path.lexists(job.target)


def _obstacle(job: Job) -> str | None:
    """Why an output cannot be written, if that is known beforehand."""
    for target in filter(None, (job.target, job.comparison)):
        folder = next(folder for folder in target.parents if os.path.lexists(folder))
        if os.path.isdir(folder) and not os.access(folder, os.W_OK | os.X_OK):
            return f"cannot write to the folder {folder}"
        try:
            (folder / target.name).lstat()
        except FileNotFoundError:
            pass
        except OSError as error:  # such as a name that is too long
            return f"cannot write {target}: {error.strerror}"
    return None


def _check_targets(jobs: Sequence[Job]) -> None:
    """Refuses outputs that are inputs, or outputs of two inputs."""
    sources = {os.path.realpath(job.source) for job in jobs if job.source}
    writers: dict[str, Job] = {}
    for job in jobs:
        for target in filter(None, (job.target, job.comparison)):
            path = os.path.realpath(target)
            if path in sources:
                raise UserError(f"{target} is an input: give -o another path")
            if path in writers:
                raise UserError(f"{writers[path]} and {job} would both be written to {target}")
            writers[path] = job


def _error_line(job: Job, error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        text = "not enough memory; give a smaller --tile"
    return _printable(text if str(job) in text else f"{job}: {text}")


def _printable(text: str) -> str:
    """The text on one line, with control characters of file names escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _ListWeights(argparse.Action):
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
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, video, folder or -")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="file, folder or -")
    parser.add_argument(
        "--weights",
        default=DEFAULT_WEIGHTS,
        help=f"{', '.join(list_pretrained())} or a weights file (default: {DEFAULT_WEIGHTS})",
    )
    parser.add_argument(
        "--list", action=_ListWeights, nargs=0, help="list the weights that ship with the package"
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="split larger images into tiles of N x N pixels; smaller ones need less memory "
        "(default: as large as memory allows)",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average over flips and rotations: a little better, eight times slower",
    )
    parser.add_argument(
        "--compare", action="store_true", help="also write before and after side by side"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
