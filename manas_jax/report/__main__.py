"""Writes the report of a run.

python -m manas_jax.report --workdir=DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from manas_jax import registry
from manas_jax.errors import UserError, check_extra, one_line
from manas_jax.report import page


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.report", description="Writes DIR/report.html."
    )
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="folder that a run has written to"
    )
    registry.add_import_option(parser)
    options = parser.parse_args(arguments)
    try:
        check_extra("train", "jinja2", "matplotlib", "tensorboard")
        registry.import_modules(options.imports)
        print(page.write(options.workdir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {options.workdir}: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
