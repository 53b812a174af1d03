"""Signals that stop a run early: it saves its state and exits with a status of its own.

Schedulers send SIGTERM before a preemption and before the time limit of a job; SIGINT is Ctrl-C.
Neither interrupts a step: the loop asks after each one whether to stop.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
from collections.abc import Callable, Iterator

from manas_jax.errors import UserError

PREEMPTED = 75
"""Exit status after SIGTERM: the same command resumes the run (EX_TEMPFAIL of BSD's sysexits)."""

CANCELLED = 130
"""Exit status after Ctrl-C, as in shells."""

_STATUS = {signal.SIGTERM: PREEMPTED, signal.SIGINT: CANCELLED}


class Stopped(Exception):
    """A signal stopped the run; its state is saved.

    Attributes:
      status: the exit status.
    """

    def __init__(self, status: int):
        super().__init__(f"stopped with status {status}")
        self.status = status


class _Signals:
    """The signals received so far, and whether they interrupt the current work."""

    def __init__(self):
        self.status: int | None = None
        self.interruptible = False
        self.steps = itertools.count(1)

    def receive(self, number: int, _frame: object) -> None:
        """Records the first signal; a second Ctrl-C interrupts at once."""
        if number == signal.SIGINT and self.status is not None:
            raise KeyboardInterrupt
        self.status = self.status or _STATUS[number]
        if number == signal.SIGINT:  # of several processes JAX tells the others of SIGTERM alone
            signal.raise_signal(signal.SIGTERM)
        if self.interruptible:
            raise Stopped(self.status)


_signals = _Signals()


def listen() -> None:
    """Installs the handlers, for commands; must be called before `distributed.start`.

    With several processes JAX then replaces that of SIGTERM, so that all stop at the same step: of
    it only `requested` tells.
    """
    for number in _STATUS:
        signal.signal(number, _signals.receive)


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP raise SystemExit within, so that temporary files are removed.

    For commands that write files one by one and have no state to save. The exit status is 128 + N
    for signal N, as in shells. Signals that are ignored stay so, such as SIGHUP under nohup.
    """

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_command(body: Callable[[], None]) -> int:
    """Runs a command that writes files as a whole or not at all, and has no state to save.

    Args:
      body: what it does.

    Returns:
      Its exit status: 0, 1 after a UserError, `CANCELLED` after Ctrl-C; these are one line on
      standard error.
    """
    try:
        with unwinding():
            body()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was written is complete", file=sys.stderr)
        return CANCELLED
    return 0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Lets signals interrupt the work within: for long work that has no state to save.

    Raises:
      Stopped: a signal came, now or before.
    """
    check()
    _signals.interruptible = True
    try:
        yield
    finally:
        _signals.interruptible = False


def check() -> None:
    """Stops after a signal, at a point that has no state to save.

    Raises:
      Stopped: a signal came.
    """
    if _signals.status is not None:
        raise Stopped(_signals.status)


def requested() -> int | None:
    """The exit status if the run is to stop after this step, else None; call it once per step.

    All processes stop after the same step, whichever of them received the signal: after Ctrl-C with
    `CANCELLED` in that process, else with `PREEMPTED`.
    """
    # Loaded by who runs steps; commands without them need not wait for it.
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return _signals.status
    due = multihost_utils.reached_preemption_sync_point(next(_signals.steps))
    return (_signals.status or PREEMPTED) if due else None
