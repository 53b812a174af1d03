"""Measures what de-raining changes for a detector or a segmenter.

python -m manas_jax.downstream detection --detector FILE.onnx --clean DIR --rainy DIR
python -m manas_jax.downstream segmentation --segmenter FILE.onnx --clean DIR --rain heavy
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from manas_jax import registry
from manas_jax.buckets import check_local_options
from manas_jax.downstream import detection, pictures, segmentation
from manas_jax.errors import UserError, one_line
from manas_jax.files import write_json
from manas_jax.runtime import compilation, log, malloc, signals
from manas_jax.workdir import provenance

TASKS = {"detection": detection, "segmentation": segmentation}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 after an error, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    log.escape_stdout()
    logging.getLogger("jax").setLevel(logging.ERROR)
    try:
        check_local_options(options)
        registry.import_modules(options.imports)
        with signals.unwinding():
            _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if options.pictures and os.path.lexists(options.pictures):
            print(f"interrupted; remove the unfinished {options.pictures}", file=sys.stderr)
        else:
            print("interrupted; nothing was written", file=sys.stderr)
        return signals.CANCELLED
    return 0


def _run(options: argparse.Namespace) -> None:
    """Measures, prints the table and writes the JSON.

    Raises:
      UserError: what the user can correct.
    """
    task = TASKS[options.task]
    malloc.tune()
    compared = pictures.comparison(options)
    prepared = task.prepare(options, compared)
    compilation.use_cache()
    try:
        result = task.run(options, prepared, compared)
        if options.json:
            write_json(options.json, result | {"provenance": provenance.describe()})
    except OSError as error:
        raise UserError(f"--json or --pictures: cannot be written ({one_line(error)})") from error
    print(task.table(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.downstream", description=__doc__.split("\n\n", 1)[0]
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    for name, task in TASKS.items():
        described = task.__doc__.split("\n\n", 1)
        added = tasks.add_parser(name, description=described[0], epilog=described[1])
        task.add_arguments(added)
        pictures.add_arguments(added)
        registry.add_import_option(added)
    return parser


if __name__ == "__main__":
    sys.exit(main())
