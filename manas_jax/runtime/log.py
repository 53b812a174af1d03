"""Log output of commands: one short line per event, without the details of libraries."""

from __future__ import annotations

import logging
import sys

from absl import logging as absl_logging

_PROGRESS = "Setting work unit notes: "  # prefix of clu's progress lines

# They log every file, backend and array that they use.
_VERBOSE = ("orbax", "xla_bridge", "Got raw tensors")


class _Quiet(logging.Filter):
    """Drops messages below warnings that are not about the run."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not any(
            word in record.pathname or word in str(record.msg) for word in _VERBOSE
        )


class _Short(logging.Formatter):
    """Time of day and message."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text.replace(_PROGRESS, "progress: ")


def setup_logging() -> None:
    """Formats absl's log, which clu writes to as well, for reading along."""
    absl_logging.set_verbosity(absl_logging.INFO)
    absl_logging.use_absl_handler()  # absl.app.run does so, too; notebooks do not run it
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(_Short("%(asctime)s  %(message)s", "%H:%M:%S"))
    handler.addFilter(_Quiet())


def escape_stdout() -> None:
    """Lets stdout escape what its encoding lacks, such as letters of file names, as stderr does."""
    if hasattr(sys.stdout, "reconfigure"):  # that of notebooks has not
        sys.stdout.reconfigure(errors="backslashreplace")
