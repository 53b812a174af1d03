"""What a person sees while a command runs: a short line an event, no library's inner life."""

from __future__ import annotations

import logging

from absl import logging as absl_logging

_PROGRESS = "Setting work unit notes: "  # how clu's local platform introduces a progress line


# Who tells of every file, backend and array that it touches.
_TALKATIVE = ("orbax", "xla_bridge", "Got raw tensors")


class _Quiet(logging.Filter):
    """Lets through warnings, and what concerns the run."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not any(
            word in record.pathname or word in str(record.msg) for word in _TALKATIVE
        )


class _Short(logging.Formatter):
    """Time of day and message."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text.replace(_PROGRESS, "progress: ")


def setup_logging() -> None:
    """Makes absl's log, which clu writes to as well, fit for reading along."""
    absl_logging.set_verbosity(absl_logging.INFO)
    absl_logging.use_absl_handler()  # commands do by themselves, notebooks not
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(_Short("%(asctime)s  %(message)s", "%H:%M:%S"))
    handler.addFilter(_Quiet())
