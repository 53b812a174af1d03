"""Runs the stages of the method: search, train, evaluate, or all in turn.

python -m manas_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import errno
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from manas_jax import compilation, console, provenance, report
from manas_jax.config import STAGES, claim_workdir, validate
from manas_jax.errors import UserError
from manas_jax.evaluate import evaluate
from manas_jax.search import search
from manas_jax.train import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "File of an experiment, see configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that the run leaves.")

_RUN: dict[str, Callable] = {"search": search, "train": train, "evaluate": evaluate}
_FINISHED = {
    "search": "search/summary.json",
    "train": "train/summary.json",
    "evaluate": "evaluate/scores.json",
}


def run(config: ConfigDict, workdir: str | os.PathLike) -> pathlib.Path:
    """Runs the configured stage, or with 'all' those that the workdir has not finished yet.

    Returns:
      The report, `report.html` in the workdir.

    Raises:
      UserError: what the user can mend; the message says how.
    """
    validate(config)
    workdir = claim_workdir(config, workdir)
    provenance.note(workdir / "provenance.json", config.stage)
    for stage in STAGES if config.stage == "all" else (config.stage,):
        if config.stage == "all" and (workdir / _FINISHED[stage]).exists():
            logging.info("%s: done before, skipped", stage)
            continue
        _RUN[stage](config, workdir)
    return report.write(workdir)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with a line in place of a traceback where a config key or file is wrong."""
    try:
        rest = app.parse_flags_with_usage(argv)
        _ = _CONFIG.value and _CONFIG.value.stage  # a missing file is noticed only when used
    except (AttributeError, KeyError) as error:
        cause = error.args[0] if error.args else error
        hint = " ".join(str(cause.args[0] if isinstance(cause, KeyError) else cause).split())
        sys.exit(f"error: unknown config key {hint}; see manas_jax/config.py for all of them")
    except OSError:
        sys.exit(f"error: --config={flags.FLAGS['config'].config_filename}: no such file")
    return rest


def main(argv: Sequence[str]) -> None:
    """Flags in, report out."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        path = run(_CONFIG.value, _WORKDIR.value)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"error: {error}: free some space and start again; what was saved is kept")
    logging.info("report: %s", path)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    console.show_progress()
    compilation.use_cache()
    jax.config.config_with_absl()
    app.run(main, flags_parser=parse_flags)
