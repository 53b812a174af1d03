"""Signals that end a run early: it saves what it has and says so in its exit status.

SIGTERM is what schedulers send ahead of a preemption or of the end of a job's time, SIGINT is
Ctrl-C. Neither breaks into a step: the loop asks after each one whether it is to stop.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

PREEMPTED = 75
"""Exit status after SIGTERM: started again, the run goes on (EX_TEMPFAIL of BSD's sysexits)."""

CANCELLED = 130
"""Exit status after Ctrl-C, as shells have it."""

_STATUS = {signal.SIGTERM: PREEMPTED, signal.SIGINT: CANCELLED}


class Stopped(Exception):
    """A signal ended the run; what was done is saved.

    Attributes:
      status: the exit status.
    """

    def __init__(self, status: int):
        super().__init__(f"stopped with status {status}")
        self.status = status


class _Signals:
    """What came so far, and whether it breaks into what is being done."""

    def __init__(self):
        self.status: int | None = None
        self.interruptible = False
        self.questions = itertools.count(1)

    def receive(self, number: int, _frame: object) -> None:
        """Remembers the first signal; a second Ctrl-C is meant."""
        if number == signal.SIGINT and self.status is not None:
            raise KeyboardInterrupt
        self.status = self.status or _STATUS[number]
        if self.interruptible:
            raise Stopped(self.status)


_signals = _Signals()


def listen() -> None:
    """Takes the signals from now on, for commands; comes before `distributed.start`.

    JAX takes SIGTERM over where there are several processes, so that they stop at the same step.
    """
    for number in _STATUS:
        signal.signal(number, _signals.receive)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, a signal is followed at once: for long work that leaves nothing to save.

    Raises:
      Stopped: a signal came, also if it was before.
    """
    check()
    _signals.interruptible = True
    try:
        yield
    finally:
        _signals.interruptible = False


def check() -> None:
    """Follows a signal that came, where there is nothing to save.

    Raises:
      Stopped: one did.
    """
    if _signals.status is not None:
        raise Stopped(_signals.status)


def requested() -> int | None:
    """The exit status if the run is to stop after this step, else None; ask once a step.

    Several processes get the same answer after the same step, whichever of them had the signal.
    """
    if jax.process_count() == 1:
        return _signals.status
    due = multihost_utils.reached_preemption_sync_point(next(_signals.questions))
    return PREEMPTED if due else None
