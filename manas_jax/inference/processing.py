"""De-rains files, one after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from manas_jax import buckets, metrics
from manas_jax.data import images
from manas_jax.errors import UserError, printable
from manas_jax.inference import image_files, video
from manas_jax.inference.jobs import Job

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Failed to allocate memory", "bad_alloc")  # of the engines

Restore = Callable[[np.ndarray], np.ndarray]
"""RGB, uint8 or uint16, (H, W, 3) or (N, H, W, 3) -> restored, in the same shape and type."""


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
            bar.set_postfix_str(printable(job.source.name if job.source else ""), refresh=True)
            start, size, problem = time.monotonic(), None, None
            try:
                with _local(job) as local:
                    show = _frame_progress(bar, job, verbose=progress)
                    size = process(local, restore, show, claim)
            except Exception as error:  # one file may not stop the others
                problem = error_line(job, error)
                tqdm.write(problem, file=sys.stderr)
            bar.update()
            yield Outcome(job, time.monotonic() - start, size, problem)


def process(
    job: Job,
    restore: Restore,
    progress: video.Progress,
    claim: Mapping[str, Any] | None = None,
    note: video.Note | None = None,
) -> tuple[int, int]:
    """De-rains one file; returns width and height of its upright frames.

    Args:
      job: on local files.
      restore: see `run`.
      progress: is told of the frames of a video.
      claim: see `run`.
      note: called with a line on what the output does not keep; None to print a warning.

    Raises:
      UserError: the file cannot be read or written. Other exceptions pass, such as those of an
        engine without memory; `error_line` describes all.
    """
    if job.source and not job.source.is_file():  # reading from a pipe would block
        raise UserError(f"{job}: no file, or a link to none")
    if job.is_video:
        return video.derain(job.source, job.target, restore, progress, claim=claim, note=note)
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
        line = f"written without its {' and '.join(file.left_out)}"
        if note:
            note(f"{job}: {line}")
        else:
            tqdm.write(printable(f"{job}: warning: {line}"), file=sys.stderr)
    height, width = file.frames[0].shape[:2]
    return width, height


def error_line(job: Job, error: Exception) -> str:
    """What went wrong with a job, in one line."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        text = "not enough memory; give a smaller --tile"
    return printable(text if str(job) in text else f"{job}: {text}")


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
        bar.set_postfix_str(f"{printable(job.source.name)}, frame {done} of {total}")
        if done > resumed > 0 and not is_told:
            is_told = True
            line = f"{job}: goes on after frame {resumed} of {total}"
            tqdm.write(printable(line), file=sys.stderr)

    return show
