"""Removes rain from images and videos.

python -m manas_jax.derain INPUT... -o OUT

INPUT is an image, a video, a folder with everything below it, or - for an image on standard
input. OUT is a folder, for a single file the file to write, or - for standard output. Only pixel
values change: images keep size, bit depth, transparency and metadata, and their format unless OUT
or --format names another one; videos keep audio and frame rate. Existing outputs are skipped, so
the same command resumes an interrupted one, long videos also. INPUT, OUT and weights may be in a
bucket, gs://BUCKET/NAME.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import pathlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from manas_jax import __version__, buckets, files, metrics, registry
from manas_jax.data import images
from manas_jax.errors import UserError
from manas_jax.inference import image_files, page, video
from manas_jax.inference.derainer import ENGINES, Derainer
from manas_jax.inference.pretrained import describe, list_pretrained
from manas_jax.runtime import devices, malloc, signals

COMPARISON = ".compare.png"  # ends the name of an output and its original side by side
STREAM = "-"
DEFAULT_WEIGHTS = "general"

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Failed to allocate memory", "bad_alloc")  # of the engines

Restore = Callable[[np.ndarray], np.ndarray]
"""RGB, uint8 or uint16, (H, W, 3) or (N, H, W, 3) -> restored, in the same shape and type."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to de-rain.

    Attributes:
      source: file to read, or None for standard input.
      target: file to write, or None for standard output.
      compare: whether to write an image of before and after as well.
      format: Pillow's name of the format to write an image in; None for that of the input.
      shown: what messages call the source, if it is a copy.
    """

    source: buckets.Path | None
    target: buckets.Path | None
    compare: bool = False
    format: str | None = None
    shown: str = ""

    def __str__(self) -> str:
        return "standard input" if self.source is None else self.shown or str(self.source)

    @property
    def is_video(self) -> bool:
        """Whether the input has the suffix of a video."""
        return self.source is not None and video.is_video(self.source)

    @property
    def targets(self) -> list[buckets.Path]:
        """The files that are written."""
        return [path for path in (self.target, self.comparison) if path]

    @property
    def comparison(self) -> buckets.Path | None:
        """The file of before and after, if one is written."""
        if not self.compare or self.target is None or self.is_video:
            return None
        return self.target.with_name(f"{self.target.name}{COMPARISON}")


@dataclasses.dataclass
class Plan:
    """What a command is to do.

    Attributes:
      jobs: one per file, in the order of the inputs.
      problems: folders that cannot be read, one line each.
      others: files in the folders that are neither images nor videos, or hidden; linked folders.
    """

    jobs: list[Job] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    others: list[buckets.Path] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where outputs go, and their names and formats.

    Attributes:
      out: a path or '-'.
      suffix: what the names of files in a folder get before the last dot.
      format: of images, by a suffix such as '.png'; None for that of OUT or of the input.
      compare: see `Job`.
    """

    out: str
    suffix: str = ""
    format: str | None = None
    compare: bool = False

    def job(self, source: buckets.Path | None, target: buckets.Path | None) -> Job:
        """The job that writes a file of this name, in the format that the name stands for.

        Raises:
          UserError: the name stands for another format than `format`.
        """
        wanted = self.format and image_files.format_of(self.format)
        named = target and image_files.format_of(target)
        if wanted and named not in (wanted, None):
            raise UserError(f"{target}: its suffix is not that of --format {self.format[1:]}")
        if source and target and source.suffix == target.suffix:  # also where that is wrong
            named = None
        if wanted or named:
            image_files.check_available(wanted or named)
        return Job(source, target, self.compare, wanted or named)

    def in_folder(self, source: buckets.Path, place: buckets.Path) -> Job:
        """The job that writes a file into a folder, under a name made of its own."""
        ending, wanted = source.suffix, self.format and image_files.format_of(self.format)
        if wanted and not video.is_video(source) and image_files.format_of(source) != wanted:
            ending = self.format
        return self.job(source, place / f"{source.stem}{self.suffix}{ending}")

    def is_earlier(self, file: buckets.Path) -> bool:
        """Whether a file has the name of an output."""
        output = file.name.removesuffix(COMPARISON)
        return bool(self.suffix) and pathlib.PurePath(output).stem.endswith(self.suffix)


def plan(inputs: Sequence[str], outputs: Outputs) -> Plan:
    """Finds the files to de-rain and names their outputs; writes nothing.

    Files keep their path below their folder; with several inputs each folder gets one of its name
    in OUT. Links to folders are not followed, and OUT is skipped where it is below an input; so are
    files in folders whose names end in `outputs.suffix`.

    Args:
      inputs: paths, or '-' alone.
      outputs: where they go.

    Raises:
      UserError: an input is missing or of unknown kind, a folder holds nothing to de-rain, an
        output is an input or belongs to two inputs, or OUT is a file where a folder is needed.
    """
    if os.path.basename(outputs.suffix) != outputs.suffix:
        raise UserError(f"--suffix {outputs.suffix}: give a part of a file name, without folders")
    planned, several = Plan(), len(inputs) > 1
    for name in inputs:
        if name == STREAM:
            planned.jobs.append(outputs.job(None, _stream_target(outputs, several)))
        elif buckets.is_folder(name):
            _add_folder(planned, buckets.as_path(name), outputs, several)
        else:
            planned.jobs.append(_file_job(name, outputs, several))
    if outputs.compare and planned.jobs and not any(job.comparison for job in planned.jobs):
        raise UserError("--compare: neither videos nor standard output have one; leave it out")
    if outputs.format and planned.jobs and all(job.is_video for job in planned.jobs):
        raise UserError(f"--format {outputs.format[1:]}: is for images; leave it out")
    _check_targets(planned.jobs)
    return planned


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
      job: the job.
      seconds: that it took.
      size: width and height of its upright frames, if it was de-rained.
      problem: why it failed, in one line.
    """

    job: Job
    seconds: float
    size: tuple[int, int] | None = None
    problem: str | None = None


def run(
    jobs: Sequence[Job],
    restore: Restore,
    *,
    progress: bool = True,
    claim: Mapping[str, Any] | None = None,
) -> Iterator[Outcome]:
    """Runs jobs in turn; one that fails writes nothing and does not stop the others.

    Args:
      jobs: what to do; existing targets are replaced.
      restore: removes rain from the frames of images and batches of frames of videos.
      progress: whether to show a progress bar on a terminal.
      claim: what `restore` depends on, for videos that resume; see `video.derain`.

    Yields:
      What became of each.
    """
    with tqdm(total=len(jobs), unit="file", disable=None if progress else True) as bar:
        for job in jobs:
            bar.set_postfix_str(_printable(job.source.name if job.source else ""), refresh=True)
            start, size, problem = time.monotonic(), None, None
            try:
                with _local(job) as local:
                    show = _frame_progress(bar, job, verbose=progress)
                    size = _derain(local, restore, show, claim)
            except Exception as error:  # one file may not stop the others
                problem = _error_line(job, error)
                tqdm.write(problem, file=sys.stderr)
            bar.update()
            yield Outcome(job, time.monotonic() - start, size, problem)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 if a file failed, 2 for wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.serve is None and not (options.inputs and options.out):
        parser.error("give INPUT and -o OUT, or --serve")
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("warning: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("jax").setLevel(logging.ERROR)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # repeats what its exceptions say
    try:
        with warnings.catch_warnings(), signals.unwinding():
            warnings.filterwarnings("ignore", module="PIL")  # about files that it reads anyway
            registry.import_modules(options.imports)
            return _main(options) if options.serve is None else _serve(options)
    except UserError as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; all files written are complete, rerun to resume", file=sys.stderr)
        return 130


def _main(options: argparse.Namespace) -> int:
    buckets.check(*options.inputs, options.out)
    buckets.check_local(options.json)
    outputs = Outputs(options.out, options.suffix, options.format, options.compare)
    planned = plan(options.inputs, outputs)
    jobs = [job for job in planned.jobs if options.overwrite or not _exists(job)]
    if not jobs and len(planned.jobs) == 1 and not buckets.is_folder(options.inputs[0]):
        raise UserError(f"{planned.jobs[0].target} exists; --overwrite replaces it")
    obstacles = {job: _obstacle(job.targets) for job in jobs}
    if options.json == STREAM:
        raise UserError("--json -: standard output is not supported; give a file")
    if options.json:
        _check_report(pathlib.Path(options.json), planned.jobs)
    # Files share a line where it is their folder that cannot be written.
    problems = [*planned.problems, *dict.fromkeys(filter(None, obstacles.values()))]
    problems = [_printable(line) for line in problems]
    for line in problems:
        print(line, file=sys.stderr)
    outcomes = [Outcome(job, 0.0, problem=line) for job, line in obstacles.items() if line]
    free = [job for job in jobs if not obstacles[job]]
    restore, claim = _network(options) if free else (None, None)  # before the report is replaced
    try:
        if free:
            for outcome in run(free, restore, progress=not options.quiet, claim=claim):
                outcomes.append(outcome)
                problems += filter(None, [outcome.problem])
    finally:
        if options.json:
            _write_json(options, planned, outcomes)
    one_line_says_all = problems and len(planned.jobs) == 1 and not planned.problems
    if not options.quiet and not one_line_says_all:
        failed = len(planned.problems) + sum(outcome.problem is not None for outcome in outcomes)
        print(_summary(planned, len(jobs), failed), file=sys.stderr)
    return 1 if problems else 0


def _network(options: argparse.Namespace) -> tuple[Restore, dict[str, Any]]:
    """Opens the network; also gives what its outputs depend on, see `run`."""
    malloc.tune()
    engine, device = options.engine, options.device
    if device == "cpu" and engine != "jax" and options.dtype != "bfloat16":
        engine, device = "onnx", None  # it has no other device
    derainer = Derainer.from_pretrained(
        options.weights,
        tile=options.tile,
        engine=engine,
        devices=devices.find(device) if device else None,
        dtype=options.dtype,
    )
    claim = {
        "version": __version__,
        "weights": files.sha256(derainer.source),
        "engine": derainer.engine,
        "platform": derainer.platform,
        "tile": derainer.tile,
        "dtype": options.dtype,
        "self_ensemble": options.self_ensemble,
    }
    return functools.partial(derainer, self_ensemble=options.self_ensemble), claim


def _serve(options: argparse.Namespace) -> int:
    """Serves the page until it is interrupted."""
    host, _, port = options.serve.rpartition(":")
    is_port = port.isdecimal() and int(port) < 2**16
    if options.inputs or (not is_port and options.serve):
        raise UserError(f"--serve {options.serve}: give [HOST:]PORT, and no INPUT")

    @functools.cache
    def network(weights: str) -> Restore:
        return _network(argparse.Namespace(**{**vars(options), "weights": weights}))[0]

    def derain_file(
        weights: str, source: pathlib.Path, target: pathlib.Path, progress: video.Progress
    ) -> None:
        job = Job(source, target)
        try:
            _derain(job, network(weights), progress)
        except Exception as error:  # one file may not stop the page
            raise UserError(_error_line(job, error)) from error

    network(options.weights)  # what is wrong with them comes out now
    page.serve(derain_file, options.weights, host or None, int(port) if port else None)
    return 0


def _write_json(options: argparse.Namespace, planned: Plan, outcomes: Sequence[Outcome]) -> None:
    """Writes what became of each file, in the order of the inputs; files not reached are left out.

    Raises:
      UserError: the file cannot be written.
    """
    made = {outcome.job: outcome for outcome in outcomes}
    records = [
        _record(job, made.get(job), options.weights)
        for job in planned.jobs
        if job in made or (not options.overwrite and _exists(job))
    ]
    for path in filter(image_files.is_other_image, planned.others):
        records.append(
            {"file": str(path), "output": None, "status": "skipped", "seconds": None}
            | {"size": None, "weights": options.weights, "error": image_files.how_to_read(path)}
        )
    try:
        pathlib.Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        files.write_json(options.json, records)
    except OSError as error:
        raise UserError(f"cannot write {options.json}: {error.strerror or error}") from error


def _record(job: Job, outcome: Outcome | None, weights: str) -> dict[str, Any]:
    status = "existing" if outcome is None else "failed" if outcome.problem else "de-rained"
    return {
        "file": STREAM if job.source is None else str(job.source),
        "output": STREAM if job.target is None else str(job.target),
        "status": status,
        "seconds": outcome and round(outcome.seconds, 3),
        "size": outcome and outcome.size,
        "weights": weights,
        "error": outcome and outcome.problem,
    }


def _summary(planned: Plan, tried: int, failed: int) -> str:
    """How many files were de-rained, failed and skipped.

    Args:
      planned: the plan.
      tried: number of its jobs whose outputs did not exist.
      failed: number of jobs that failed and folders that cannot be read.
    """
    done = tried + len(planned.problems) - failed
    existing = len(planned.jobs) - tried
    without_comparison = sum(
        _exists(job) and not buckets.exists(job.comparison)
        for job in planned.jobs
        if job.comparison
    )
    unread = list(filter(image_files.is_other_image, planned.others))
    others = list(itertools.filterfalse(image_files.is_other_image, planned.others))
    counts = {
        f"{done} of {len(planned.jobs)} de-rained": True,
        f"{failed} failed, see above": failed,
        f"{existing} existing skipped (--overwrite replaces them)": existing,
        f"{without_comparison} of them without a comparison": existing and without_comparison,
        f"images skipped ({len(unread)}): {_kinds(unread)}": unread,
        f"{len(others)} of other kinds ignored ({_kinds(others)})": others,
    }
    return "; ".join(text for text, applies in counts.items() if applies)


def _kinds(paths: Sequence[pathlib.Path]) -> str:
    """The suffixes of files, and how those can be read that need an extra."""
    kinds = {_kind(path): image_files.how_to_read(path) for path in paths}
    texts = (f"{kind} ({hint})" if hint else kind for kind, hint in sorted(kinds.items()))
    return _printable(", ".join(texts))


def _kind(path: pathlib.Path) -> str:
    if os.path.isdir(path):
        return "linked folders"
    return "hidden" if path.name.startswith(".") else path.suffix.lower() or "no suffix"


@contextlib.contextmanager
def _local(job: Job) -> Iterator[Job]:
    """The job on local files, copied from a bucket before and to a bucket after it."""
    with contextlib.ExitStack() as stack:
        source, target = job.source, job.target
        if buckets.is_remote(source):
            source = stack.enter_context(buckets.reading_copy(source))
        if buckets.is_remote(target):
            target = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / target.name
        local = dataclasses.replace(job, source=source, target=target, shown=str(job))
        yield local
        # The output last: its presence says that a picture is done.
        for file, output in reversed(list(zip(local.targets, job.targets, strict=True))):
            if buckets.is_remote(output):
                buckets.upload(file, output)


def _derain(
    job: Job, restore: Restore, progress: video.Progress, claim: Mapping[str, Any] | None = None
) -> tuple[int, int]:
    """De-rains a file; returns width and height of its upright frames."""
    if job.source and not job.source.is_file():  # reading from a pipe would block
        raise UserError(f"{job}: no file, or a link to none")
    if job.is_video:
        return video.derain(job.source, job.target, restore, progress, claim=claim)
    if not job.source and sys.stdin is None:
        raise UserError("standard input is closed")
    with _without_library_messages():
        file = image_files.read(job.source or sys.stdin.buffer.read(), str(job))
    if job.format not in (file.format, None):
        file = image_files.converted(file, job.format)
    if job.target:
        image_files.check_suffix(file, job.target)
    restored = [restore(frame) for frame in file.frames]
    if job.comparison:  # before the output, whose presence says that a picture is done
        before_and_after = [metrics.in_8_bits(frame) for frame in (file.frames[0], restored[0])]
        both = np.concatenate(before_and_after, axis=1)
        images.write_png(job.comparison, both, like=job.source, icc_profile=file.rgb_profile)
    if job.target:
        image_files.write(file, restored, job.target, like=job.source)
    else:
        _write_to_standard_output(file, restored)
    if file.left_out:
        line = f"{job}: warning: written without its {' and '.join(file.left_out)}"
        tqdm.write(_printable(line), file=sys.stderr)
    height, width = file.frames[0].shape[:2]
    return width, height


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
    if sys.stdout is None:
        raise UserError("cannot write to standard output (it is closed)")
    try:
        # Not sys.stdout: what its buffer could not write would fail once more at exit.
        with open(sys.stdout.fileno(), "wb", closefd=False) as stream:
            image_files.write(file, restored, stream)
    except OSError as error:
        raise UserError(f"cannot write to standard output ({error.strerror})") from error


def _frame_progress(bar: tqdm, job: Job, verbose: bool) -> video.Progress:
    is_told = not verbose

    def show(done: int, total: int, resumed: int) -> None:
        nonlocal is_told
        bar.set_postfix_str(f"{_printable(job.source.name)}, frame {done} of {total}")
        if done > resumed > 0 and not is_told:
            is_told = True
            line = f"{job}: goes on after frame {resumed} of {total}"
            tqdm.write(_printable(line), file=sys.stderr)

    return show


def _stream_target(outputs: Outputs, several: bool) -> buckets.Path | None:
    out = outputs.out
    if several:
        raise UserError("standard input cannot be combined with other inputs")
    if outputs.suffix:
        raise UserError("--suffix is for outputs in a folder; leave it out")
    if out == STREAM:
        return None
    if buckets.is_folder(out):
        raise UserError(f"{out} is a folder: give -o a file")
    if video.is_video(out):
        raise UserError(f"standard input and {out}: videos are read from files only")
    _check_written(place := buckets.as_path(out))
    return place


def _check_written(place: buckets.Path) -> None:
    """Raises UserError for the name of an image of a kind that is only known."""
    if image_files.is_other_image(place):
        hint = image_files.how_to_read(place) or "give -o another suffix"
        raise UserError(f"{place}: images of this kind are not written; {hint}")


def _file_job(name: str, outputs: Outputs, several: bool) -> Job:
    source, place = buckets.as_path(name), buckets.as_path(outputs.out)
    try:
        if not (buckets.is_remote(source) and buckets.exists(source)):
            os.lstat(name)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file or folder") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    if image_files.is_other_image(source):
        hint = image_files.how_to_read(source) or "convert it first"
        raise UserError(f"{name}: images of this kind are not read; {hint}")
    if not _is_known(_unhidden(source)):
        raise UserError(f"{name}: has the suffix of neither an image nor a video")
    if outputs.out == STREAM:
        if several or video.is_video(source):
            raise UserError("standard output takes a single image")
        return outputs.job(source, None)
    is_folder = buckets.is_folder(place)
    if not is_folder:
        _check_written(place)
    if several or is_folder or not _is_known(_unhidden(place)):
        return outputs.in_folder(source, _folder(outputs.out))
    if outputs.suffix:
        raise UserError(f"{place} is the output's name: --suffix is for outputs in a folder")
    if video.is_video(source) != video.is_video(place):
        raise UserError(f"{name} and {place}: images stay images and videos videos")
    return outputs.job(source, place)


def _add_folder(planned: Plan, folder: buckets.Path, outputs: Outputs, several: bool) -> None:
    """Adds everything below a folder except what is below OUT, sorted by name."""
    if outputs.out == STREAM:
        raise UserError(f"{folder} is a folder: give -o a folder, not standard output")
    base = _folder(outputs.out)
    skipped = buckets.real_path(base)
    if several:
        base /= os.path.basename(buckets.real_path(folder))

    def add_problem(error: OSError) -> None:
        planned.problems.append(f"{error.filename}: cannot be read ({error.strerror})")

    before = len(planned.jobs) + len(planned.problems)
    for here, folders, names in buckets.walk(folder, add_problem):
        folders[:] = sorted(
            f for f in folders if f[0] != "." and buckets.real_path(here / f) != skipped
        )
        planned.others += [here / f for f in folders if os.path.islink(here / f)]
        for file in sorted(here / name for name in names):
            if not _is_known(file):
                planned.others.append(file)
            elif not outputs.is_earlier(file):
                place = base / file.parent.relative_to(folder)
                planned.jobs.append(outputs.in_folder(file, place))
    if before == len(planned.jobs) + len(planned.problems):
        raise UserError(f"{folder}: holds no images or videos{_unread(planned.others)}")


def _unread(others: Sequence[pathlib.Path]) -> str:
    """The end of a message on what a folder holds instead of known files."""
    kinds = _kinds([path for path in others if image_files.is_other_image(path)])
    return f" of a kind that is read; skipped: {kinds}" if kinds else ""


def _unhidden(path: buckets.Path) -> buckets.Path:
    """A path whose name has no dot before it: hidden files are left out of folders alone."""
    return path.with_name(path.name.lstrip(".")) if path.name.strip(".") else path


def _folder(out: str) -> buckets.Path:
    """OUT as a folder. A new one whose name is like that of a file, `clean.jpg`, needs a slash."""
    place = buckets.as_path(out)
    if not buckets.exists(place):
        if place.suffix and not out.endswith("/"):
            raise UserError(
                f"{out}: a folder is needed; give -o another name, or {out}/ if it is one"
            )
    elif not buckets.is_folder(place):
        raise UserError(f"{place} is a file, but a folder is needed: give -o another path")
    return place


def _is_known(path: buckets.Path) -> bool:
    return image_files.is_image(path) or video.is_video(path)


def _exists(job: Job) -> bool:
    return job.target is not None and buckets.exists(job.target)


def _obstacle(targets: Sequence[buckets.Path]) -> str | None:
    """Why an output cannot be written, if that is known beforehand."""
    for target in itertools.filterfalse(buckets.is_remote, targets):
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
    sources = {buckets.real_path(job.source) for job in jobs if job.source}
    writers: dict[str, Job] = {}
    for job in jobs:
        for target in job.targets:
            path = buckets.real_path(target)
            if path in sources:
                raise UserError(f"{target} is an input: give -o another path")
            if path in writers:
                raise UserError(f"{writers[path]} and {job} would both be written to {target}")
            writers[path] = job


def _check_report(file: pathlib.Path, jobs: Sequence[Job]) -> None:
    """Refuses a report that cannot be written, or would replace an input or an output."""
    paths = (path for job in jobs for path in (job.source, *job.targets) if path)
    if os.path.realpath(file) in map(buckets.real_path, paths):
        raise UserError(f"--json {file} is an input or an output: give another path")
    if os.path.isdir(file):
        raise UserError(f"--json {file} is a folder: give a file")
    if obstacle := _obstacle([file]):
        raise UserError(f"--json: {obstacle}")


def _error_line(job: Job, error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        text = "not enough memory; give a smaller --tile"
    return _printable(text if str(job) in text else f"{job}: {text}")


def _printable(text: str) -> str:
    """The text on one line, with control characters of file names escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Printable(logging.Formatter):
    """Log records on one line, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return _printable(super().format(record))


class _ListWeights(argparse.Action):
    """Lists the pretrained weights and exits, as --version and --help do."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            print(*map(describe, list_pretrained()), sep="\n", flush=True)
        except BrokenPipeError:  # who reads has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parser.exit()


def _format(name: str) -> str:
    """The suffix of a kind of images: `--format webp`."""
    suffix = f".{name.lower().removeprefix('.')}"
    if suffix not in image_files.SUFFIXES:
        known = ", ".join(sorted(known[1:] for known in image_files.SUFFIXES))
        raise argparse.ArgumentTypeError(f"{name!r} is none of {known}")
    return suffix


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.derain",
        description=__doc__.split("\n\n", 1)[0],
        epilog=__doc__.split("\n\n", 2)[2],
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="image, video, folder or -")
    parser.add_argument("-o", "--out", metavar="OUT", help="file, folder or -")
    parser.add_argument(
        "--serve",
        nargs="?",
        const="",
        metavar="[HOST:]PORT",
        help="serve a web page that removes rain, on 127.0.0.1 unless HOST says otherwise",
    )
    parser.add_argument(
        "--weights",
        default=DEFAULT_WEIGHTS,
        help=f"{', '.join(list_pretrained())}, a weights file, a folder of save_pretrained or "
        f"hf://OWNER/NAME (default: {DEFAULT_WEIGHTS})",
    )
    registry.add_import_option(parser)
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
        "--engine",
        choices=ENGINES,
        help="onnx: ONNX Runtime on the CPU, which compiles nothing; jax: the devices of JAX "
        "(default: jax where it has an accelerator, else onnx)",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average over flips and rotations: a little better, eight times slower",
    )
    parser.add_argument(
        "--compare", action="store_true", help="also write before and after side by side"
    )
    parser.add_argument(
        "--format",
        type=_format,
        metavar="KIND",
        help="write images as png, jpg, webp, tif, ... (default: as OUT is named, else as read)",
    )
    parser.add_argument(
        "--suffix", default="", metavar="TEXT", help="add TEXT to the names of files in a folder"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write what became of each file, also of those that failed"
    )
    parser.add_argument(
        "--device",
        metavar="KIND",
        help="cpu, gpu or tpu, or one of several such as gpu:1 (default: all that JAX prefers)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="type of the computation (default: float32); bfloat16 is for accelerators",
    )
    parser.add_argument("--version", action="version", version=f"manas_jax {__version__}")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
