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
import functools
import itertools
import logging
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from manas_jax import __version__, buckets, files, registry
from manas_jax.errors import UserError, printable
from manas_jax.inference import image_files, page, video
from manas_jax.inference.derainer import ENGINES, Derainer
from manas_jax.inference.jobs import STREAM, Job, Outputs, Plan, kinds, obstacle, plan
from manas_jax.inference.pretrained import describe, list_pretrained
from manas_jax.inference.processing import Outcome, Restore, error_line, process, run
from manas_jax.runtime import devices, malloc, signals

DEFAULT_WEIGHTS = "general"
_NOT_SERVED = ("out", "format", "compare", "suffix", "json", "overwrite", "quiet")  # options


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
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; all files written are complete, rerun to resume", file=sys.stderr)
        return 130


def _main(options: argparse.Namespace) -> int:
    buckets.check(*options.inputs, options.out)
    buckets.check_local(options.json)
    outputs = Outputs(options.out, options.suffix, options.format, options.compare)
    planned = plan(options.inputs, outputs)
    jobs = [job for job in planned.jobs if options.overwrite or not job.exists]
    if not jobs and len(planned.jobs) == 1 and not buckets.is_folder(options.inputs[0]):
        raise UserError(f"{planned.jobs[0].target} exists; --overwrite replaces it")
    obstacles = {job: obstacle(job.targets) for job in jobs}
    if options.json == STREAM:
        raise UserError("--json -: standard output is not supported; give a file")
    if options.json:
        _check_report(options.json, planned.jobs)
    # Files share a line where it is their folder that cannot be written.
    problems = [*planned.problems, *dict.fromkeys(filter(None, obstacles.values()))]
    problems = [printable(line) for line in problems]
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
    for name in _NOT_SERVED:
        if getattr(options, name):
            raise UserError(f"--{name}: the page of --serve has none; leave it out")

    @functools.cache
    def network(weights: str) -> Restore:
        return _network(argparse.Namespace(**{**vars(options), "weights": weights}))[0]

    def derain_file(
        weights: str, source: pathlib.Path, target: pathlib.Path, progress: video.Progress
    ) -> list[str]:
        job, losses = Job(source, target), []
        try:
            process(job, network(weights), progress, note=losses.append)
        except Exception as error:  # one file may not stop the page
            raise UserError(error_line(job, error)) from error
        return losses

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
        if job in made or (not options.overwrite and job.exists)
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
        job.exists and not buckets.exists(job.comparison) for job in planned.jobs if job.comparison
    )
    unread = list(filter(image_files.is_other_image, planned.others))
    others = list(itertools.filterfalse(image_files.is_other_image, planned.others))
    counts = {
        f"{done} of {len(planned.jobs)} de-rained": True,
        f"{failed} failed, see above": failed,
        f"{existing} existing skipped (--overwrite replaces them)": existing,
        f"{without_comparison} of them without a comparison": existing and without_comparison,
        f"{len(planned.earlier)} named like outputs skipped": planned.earlier,
        f"images skipped ({len(unread)}): {kinds(unread)}": unread,
        f"{len(others)} of other kinds ignored ({kinds(others)})": others,
    }
    return "; ".join(text for text, applies in counts.items() if applies)


def _check_report(file: str, jobs: Sequence[Job]) -> None:
    """Refuses a report that cannot be written, or would replace an input or an output."""
    paths = {buckets.real_path(path) for job in jobs for path in (job.source, *job.targets) if path}
    folders = {str(folder) for path in paths for folder in pathlib.PurePath(path).parents}
    real = os.path.realpath(file)
    if real in paths or any(str(parent) in paths for parent in pathlib.PurePath(real).parents):
        raise UserError(f"--json {file} is an input or an output: give another path")
    if os.path.isdir(file) or file.endswith("/") or real in folders:
        raise UserError(f"--json {file} is a folder: give a file")
    if problem := obstacle([pathlib.Path(file)]):
        raise UserError(f"--json: {problem}")


class _Printable(logging.Formatter):
    """Log records on one line, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


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
        help="process images larger than N x N in tiles of N x N pixels; lower N to save memory "
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
        "--json", metavar="FILE", help="write the status of each file, also of those that failed"
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
