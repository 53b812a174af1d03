"""Which files a command de-rains, and where their outputs go."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import stat
from collections.abc import Sequence

from manas_jax import buckets
from manas_jax.errors import UserError, printable
from manas_jax.inference import image_files, video

COMPARISON = ".compare.png"  # ends the name of an output and its original side by side
STREAM = "-"  # standard input or output


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
    def exists(self) -> bool:
        """Whether its output is there; a comparison may be missing."""
        return self.target is not None and buckets.exists(self.target)

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
      earlier: files that have the name of an output and lie where outputs go; not de-rained.
      others: files in the folders that are neither images nor videos, or hidden; linked folders.
    """

    jobs: list[Job] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    earlier: list[buckets.Path] = dataclasses.field(default_factory=list)
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
    in OUT. Links to folders are not followed, and OUT is skipped where it is below an input; where
    outputs lie beside their inputs, so are files whose names end in `outputs.suffix`.

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


def obstacle(targets: Sequence[buckets.Path]) -> str | None:
    """Why an output cannot be written, if that is known beforehand."""
    for target in itertools.filterfalse(buckets.is_remote, targets):
        folder = next(folder for folder in target.parents if os.path.lexists(folder))
        if os.path.islink(folder) and not os.path.exists(folder):
            return f"cannot write to the folder {folder}: a link to nothing"
        if os.path.isdir(folder) and not os.access(folder, os.W_OK | os.X_OK):
            return f"cannot write to the folder {folder}"
        try:
            status = (folder / target.name).lstat()
            if folder == target.parent and stat.S_ISDIR(status.st_mode):
                return f"cannot write {target}: it is a folder"
        except FileNotFoundError:
            pass
        except OSError as error:  # such as a name that is too long
            return f"cannot write {target}: {error.strerror}"
    return None


def kinds(paths: Sequence[pathlib.Path]) -> str:
    """The suffixes of files, and how those can be read that need an extra."""
    hints = {_kind(path): image_files.how_to_read(path) for path in paths}
    texts = (f"{kind} ({hint})" if hint else kind for kind, hint in sorted(hints.items()))
    return printable(", ".join(texts))


def _kind(path: pathlib.Path) -> str:
    if os.path.isdir(path):
        return "linked folders"
    return "hidden" if path.name.startswith(".") else path.suffix.lower() or "no suffix"


def _stream_target(outputs: Outputs, several: bool) -> buckets.Path | None:
    out = outputs.out
    if several:
        raise UserError("standard input cannot be combined with other inputs")
    if outputs.suffix:
        raise UserError("--suffix is for outputs in a folder; leave it out")
    if out == STREAM:
        return None
    if buckets.is_folder(out) or out.endswith("/"):
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

    found = planned.jobs, planned.problems, planned.earlier
    before = sum(map(len, found))
    for here, folders, names in buckets.walk(folder, add_problem):
        folders[:] = sorted(
            f for f in folders if f[0] != "." and buckets.real_path(here / f) != skipped
        )
        planned.others += [here / f for f in folders if os.path.islink(here / f)]
        place = base / here.relative_to(folder)
        is_in_place = buckets.real_path(place) == buckets.real_path(here)
        for file in sorted(here / name for name in names):
            if not _is_known(file):
                planned.others.append(file)
            elif is_in_place and outputs.is_earlier(file):
                planned.earlier.append(file)
            else:
                planned.jobs.append(outputs.in_folder(file, place))
    if before == sum(map(len, found)):
        raise UserError(f"{folder}: holds no images or videos{_unread(planned.others)}")


def _unread(others: Sequence[pathlib.Path]) -> str:
    """The end of a message on what a folder holds instead of known files."""
    skipped = kinds([path for path in others if image_files.is_other_image(path)])
    return f" of a kind that is read; skipped: {skipped}" if skipped else ""


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
