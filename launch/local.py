"""Runs manas_jax in several processes on this machine, and restarts them after interruptions.

    python launch/local.py --processes 2 --restarts 10 -- --config=FILE --workdir=DIR

Needs nothing but Python. Each line of output is prefixed with the index of its process. When one
process fails, the others are told to save and exit; after a failure that a restart can mend (see
README.md) all of them are restarted with the same arguments. After SIGTERM, Ctrl-C and SIGHUP (a
closed terminal) the processes save and exit, and nothing is restarted; a second signal kills them.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from common import (
    ROOT,
    Parser,
    at_least,
    check_run_flags,
    redacted,
    restartable,
    shell_line,
    split_flags,
)

# Seconds of the longest wait. A signal's handler runs when a wait is interrupted; a signal that
# comes just before the wait begins interrupts nothing, and is handled when it ends.
TICK = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments; returns the exit status of the last group of processes."""
    own, flags = split_flags(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(own)
    if options.worker is None:
        check_run_flags(flags, pathlib.Path.cwd())
    default = [sys.executable, "-m", "manas_jax.main"]
    base = default if options.worker is None else shlex.split(options.worker)
    environment = additions(os.environ, options.devices_per_process)
    if options.dry_run:
        address = f"127.0.0.1:{options.port or free_port()}"
        shown = {name: " ".join(redacted(value.split(" "))) for name, value in environment.items()}
        for command in commands(redacted([*base, *flags]), options.processes, address):
            print(shell_line(command, shown))
        return 0

    events: queue.SimpleQueue = queue.SimpleQueue()  # its put() may be called by a signal handler
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP under nohup
            signal.signal(number, lambda number, _: events.put(("signal", number)))
    for left in range(options.restarts, -1, -1):
        address = f"127.0.0.1:{options.port or free_port()}"
        group = commands([*base, *flags], options.processes, address)
        status, stopped = run_group(group, {**os.environ, **environment}, options.grace, events)
        if stopped or not restartable(status) or not left:
            return status
        _say(f"status {status}: restarting, {left - 1} restarts left after this one")
    raise AssertionError("the last round returns")


def _parser() -> Parser:
    parser = Parser(
        prog="launch/local.py",
        usage="%(prog)s [OPTIONS] -- --config=FILE --workdir=DIR [--config.KEY=VALUE ...]",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument("--processes", type=at_least(1), default=1, help="default: 1")
    parser.add_argument(
        "--devices-per-process",
        type=at_least(1),
        metavar="D",
        help="simulate this many CPU devices",
    )
    parser.add_argument(
        "--restarts", type=at_least(0), default=0, help="maximum number of restarts; default: 0"
    )
    parser.add_argument(
        "--grace",
        type=at_least(0),
        default=120,
        metavar="SECONDS",
        help="time to save and exit, before SIGKILL; default: 120",
    )
    parser.add_argument("--port", type=at_least(1), help="of process 0; default: a free one")
    parser.add_argument(
        "--worker", metavar="COMMAND", help="runs instead of python -m manas_jax.main"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return parser


def commands(base: Sequence[str], processes: int, address: str) -> list[list[str]]:
    """The command line of each process; a single one needs no coordinator."""
    if processes == 1:
        return [list(base)]
    group = [f"--coordinator={address}", f"--processes={processes}"]
    return [[*base, *group, f"--process={number}"] for number in range(processes)]


def additions(environment: Mapping[str, str], devices: int | None) -> dict[str, str]:
    """Variables of the processes' environment beyond the launcher's own."""
    path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    added = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    if devices:
        flag = f"--xla_force_host_platform_device_count={devices}"
        added["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
        added["JAX_PLATFORMS"] = "cpu"
    return added


def free_port() -> int:
    """A TCP port of this machine that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_group(
    group: Sequence[Sequence[str]],
    environment: Mapping[str, str],
    grace: float,
    events: queue.SimpleQueue,
) -> tuple[int, bool]:
    """Runs the processes until all have exited.

    The first one to fail determines the status: the others fail because of it.

    Args:
      group: a command line for each process.
      environment: of all of them.
      grace: seconds between SIGTERM and SIGKILL.
      events: receives ("signal", NUMBER) from the handlers and ("ended", PROCESS, CODE).

    Returns:
      The status as in a shell (0, or that of the first failure, 128 + N for signal N), and whether
      a signal was received.
    """
    workers = [_start(n, command, environment, events) for n, command in enumerate(group)]
    running = dict(enumerate(workers))
    status, stopped, deadline = 0, False, None

    def terminate() -> float:
        for worker in running.values():
            worker.terminate()
        return time.monotonic() + grace

    while running:
        try:
            left = TICK if deadline is None else min(TICK, max(0.0, deadline - time.monotonic()))
            kind, *what = events.get(timeout=left)
        except queue.Empty:
            if deadline is None or time.monotonic() < deadline:
                continue
            _say(f"killing the {len(running)} that are still running")
            deadline = None
            for worker in running.values():
                _kill(worker)
            continue
        if kind == "signal":
            # All get SIGTERM, whichever signal it was: then they stop at the same step.
            _say(f"{signal.Signals(what[0]).name}: telling the processes to save and exit")
            deadline = time.monotonic() if stopped else terminate()
            stopped = True
            continue
        number, code = what
        del running[number]
        if code and not status:
            status = 128 - code if code < 0 else code
            _say(f"process {number} exited with status {status}")
            if running and not stopped:
                deadline = terminate()
    return status, stopped


def _start(
    number: int, command: Sequence[str], environment: Mapping[str, str], events: queue.SimpleQueue
) -> subprocess.Popen:
    try:
        worker = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the launcher alone
        )
    except OSError as error:
        raise SystemExit(f"error: {command[0]}: {error.strerror}") from None

    def copy() -> None:
        for line in worker.stdout:
            with contextlib.suppress(OSError):  # the terminal is closed
                sys.stdout.buffer.write(b"[%d] %s" % (number, line))
                sys.stdout.buffer.flush()

    def follow() -> None:
        code = worker.wait()
        copying.join(timeout=1)  # not for ever: a child of the worker may keep the pipe open
        events.put(("ended", number, code))

    copying = threading.Thread(target=copy, daemon=True)
    copying.start()
    threading.Thread(target=follow, daemon=True).start()
    return worker


def _kill(worker: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)  # with its children


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is closed
        print(f"launch: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
