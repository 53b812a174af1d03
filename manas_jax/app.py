"""What the commands that run a config share: --config, --workdir, start-up and exit status.

The exit status is 0 after success, 1 after an error, 75 after SIGTERM or the loss of another
process (the same command resumes the run), and 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from manas_jax import buckets, registry
from manas_jax.errors import UserError, check_extra, one_line
from manas_jax.runtime import checkout, compilation, distributed, log, malloc, signals

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File of an experiment, or the name of one of those in configs/."
)
_NAMED_CONFIG = re.compile(r"(--?config=)(\w+)(:.*)?\Z")
_SIMILAR = re.compile(r' Did you mean "(.*)" instead of ".*"\?\Z')  # ml_collections' words
_HELP = re.compile(r"--?(help\w*|\?)\Z")
_NO_VALUE = re.compile(r"flag (--\w+)=None: ")  # absl's words for a required flag without one
CONFIG_FOLDERS = (
    pathlib.Path(__file__).parents[1] / "configs",  # of a checkout
    pathlib.Path(sysconfig.get_path("data")) / "share/manas_jax/configs",  # of a wheel
)
_IMPORT = flags.DEFINE_multi_string("import", [], f"{registry.IMPORT_HELP}.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the run writes.")


def start(
    command: Callable[[ConfigDict, str], None],
    required: Sequence[str] = ("config", "workdir"),
) -> None:
    """Parses the flags, calls `command(config, workdir)`, and exits with its status.

    Args:
      command: is given None for a workdir that is neither required nor named.
      required: flags that have to be given.
    """
    try:
        packages = "clu", "jinja2", "tensorflow", "tensorflow_datasets"
        check_extra("train", *packages, subject="training")
    except UserError as error:
        sys.exit(f"error: {error}")
    flags.mark_flags_as_required(required)
    log.setup_logging()
    compilation.use_cache()
    malloc.tune_jax()
    jax.config.config_with_absl()
    signals.listen()
    app.run(functools.partial(_run, command), flags_parser=parse_flags)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, but whatever is wrong exits with one line, without a traceback."""
    try:
        argv = _named_configs(argv)
        rest = _parse(argv)
        config = _CONFIG.value
        getattr(config, "lock", None)  # a missing file is noticed only when used
        if not (config is None or isinstance(config, ConfigDict)):
            raise TypeError("get_config() has to return a ConfigDict")
    except Exception as error:
        file = _config_file(argv)
        if (line := _line_of(error, file)) is not None:
            sys.exit(
                f"error: --config={file}, line {line}: {type(error).__name__}: {one_line(error)}"
            )
        if isinstance(error, OSError):
            sys.exit(f"error: --config={file}: no such file")
        if isinstance(error, (SyntaxError, TypeError)) or "get_config" in str(error):
            sys.exit(f"error: --config={file}: {one_line(error)}")
        if not isinstance(error, (AttributeError, KeyError)):
            raise
        cause = error.args[0] if error.args else error
        hint = " ".join(str(cause.args[0] if isinstance(cause, KeyError) else cause).split())
        hint = _SIMILAR.sub(r" (did you mean '\1'?)", hint)
        sys.exit(f"error: unknown config key {hint}; see manas_jax/config.py for all of them")
    if _WORKDIR.value == "":
        sys.exit("error: --workdir= is empty: name a folder")
    try:
        buckets.check(_WORKDIR.value)
    except UserError as error:
        sys.exit(f"error: --workdir={error}")
    try:
        registry.import_modules(_IMPORT.value)
    except UserError as error:
        sys.exit(f"error: {error}")
    return rest


def _parse(argv: Sequence[str]) -> list[str]:
    """absl's parser alone; raises what the config file raised."""
    try:
        return flags.FLAGS(argv)
    except SystemExit as ended:  # absl's --help exits with 1
        sys.exit(0 if any(map(_HELP.match, argv)) else ended.code)
    except flags.Error as error:
        # config_flags raises a new error with the traceback as its text, and absl one more.
        raised = error.__context__ and error.__context__.__context__
        if raised is not None and _line_of(raised, _config_file(argv)) is not None:
            raise raised from None
        if missing := _NO_VALUE.match(str(error)):
            sys.exit(f"error: {missing[1]} is missing; --help lists the flags")
        sys.exit(f"error: {one_line(error).removeprefix('flag ')}; --help lists the flags")


def _config_file(argv: Sequence[str]) -> str:
    """The file that --config names, which the flag itself does not tell before it is parsed."""
    values = [argument.partition("=")[2] for argument in argv if re.match("--?config=", argument)]
    return values[-1].partition(":")[0] if values else ""


def _line_of(error: Exception, file: str) -> int | None:
    """The line of a config file that raised the error; None if it was not raised there."""
    if isinstance(error, SyntaxError):
        return error.lineno
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename) == os.path.abspath(file)
    ]
    return lines[-1] if lines else None


def _named_configs(argv: Sequence[str]) -> list[str]:
    """The arguments, with `--config=NAME[:VARIANT]` as the file that ships with the package.

    The value may be an argument of its own.
    """
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in ("--config", "-config"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return [_NAMED_CONFIG.sub(_shipped_config, argument) for argument in joined]


def _shipped_config(match: re.Match) -> str:
    flag, name, variant = match.groups()
    for folder in CONFIG_FOLDERS:
        if (file := folder / f"{name}.py").exists():
            return f"{flag}{file}{variant or ''}"
    return match[0]


def _run(command: Callable[[ConfigDict, str], None], argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    checkout.commit()  # results name that of the start
    status: int | str
    try:
        command(_CONFIG.value, _WORKDIR.value)
        return
    except signals.Stopped as stopped:
        status = stopped.status
    except KeyboardInterrupt:
        status = signals.CANCELLED
    except UserError as error:
        status = f"error: {error}"
    except Exception as error:
        if distributed.is_peer_failure(error):
            logging.error("another process is gone: restart all of them to resume (%s)", error)
            status = signals.PREEMPTED
        elif jax.process_count() > 1:  # an ordinary exit would wait for the others
            traceback.print_exc()
            status = 1
        else:
            raise
    distributed.exit_process(status)


@contextlib.contextmanager
def run_context(config: ConfigDict, workdir: str | os.PathLike) -> Iterator[None]:
    """Sets the configured precision of float32 products, and explains errors of the storage.

    Raises:
      UserError: in place of any other error that means that the disk is full or read-only, or the
        bucket cannot be reached.
    """
    try:
        with jax.default_matmul_precision(config.network.precision):
            yield
    except (UserError, signals.Stopped):
        raise
    except Exception as error:  # each library raises another one
        if (problem := buckets.storage_error(error, workdir)) is None:
            raise
        raise UserError(
            f"{problem} and start again; finished results and checkpoints in {workdir} are intact"
        ) from error
