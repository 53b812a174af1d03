"""One run at a time in a workdir."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator

import filelock
from absl import logging

from manas_jax.buckets import as_path, is_remote
from manas_jax.errors import UserError, one_line
from manas_jax.runtime import signals

NAME = "run.lock"
LEASE = 60.0
"""Seconds without a sign of life after which another machine takes a lock over."""

_HEARTBEAT = LEASE / 6  # seconds between signs of life
_POLL = 1.0  # seconds between attempts


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds a workdir against other processes, by the file `run.lock` in it.

    The folder is created, and removed if it stays empty. A lock whose process is gone is taken
    over: at once on the same machine; on another one, which cannot see the process, after a minute
    without a sign of life. No locks of the file system are used, which network file systems may
    lack; in a bucket see `object_lock`.

    Raises:
      UserError: another process holds it (the message names it), or it cannot be written.
      Stopped: a signal came while waiting for a sign of life.
    """
    if is_remote(workdir):
        with _hold_object(workdir):
            yield
        return
    workdir = pathlib.Path(workdir)
    lock = filelock.SoftFileLease(
        workdir / NAME,
        lease_duration=LEASE,
        heartbeat_interval=_HEARTBEAT,
        on_compromise=lambda loss: _stop(workdir, loss.reason),
    )
    created: list[pathlib.Path] = []
    try:
        created += [path for path in (workdir, *workdir.parents) if not path.exists()]
        workdir.mkdir(parents=True, exist_ok=True)
        _acquire(lock, workdir)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror or error}): give another"
        ) from None
    try:
        yield
    finally:
        lock.release()
        for folder in created:
            with contextlib.suppress(OSError):  # it holds something by now
                folder.rmdir()


@contextlib.contextmanager
def _hold_object(workdir: str | os.PathLike) -> Iterator[None]:
    """`hold` in a bucket."""
    from manas_jax.workdir import object_lock  # imports TensorStore, which takes a while

    held = object_lock.hold(
        as_path(workdir) / NAME,
        lease=LEASE,
        poll=_POLL,
        on_waiting=lambda holder: logging.info(
            "%s: waiting for a sign of life of %s", workdir, holder
        ),
        on_loss=lambda: _stop(workdir, "another process has taken it over"),
    )
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held)
        except object_lock.Held as holder:
            raise UserError(
                f"{workdir} is in use by {holder}: stop that run or give another --workdir"
            ) from None
        except (UserError, signals.Stopped):
            raise
        except Exception as error:  # TensorStore raises errors of several kinds
            raise UserError(
                f"--workdir={workdir} cannot be written ({one_line(error)[:200]}): check the "
                "bucket and your permissions, or give another"
            ) from None
        yield


def _acquire(lock: filelock.SoftFileLease, workdir: pathlib.Path) -> None:
    """Waits until the lock is held.

    Raises:
      UserError: its holder lives.
    """
    first, start = None, time.monotonic()
    while True:
        with contextlib.suppress(filelock.Timeout):
            return lock.acquire(timeout=0)
        try:
            alive = os.stat(lock.lock_file).st_mtime
        except FileNotFoundError:
            continue  # it has just been released
        owner = lock.owner
        holder = f"process {owner.pid} on {owner.hostname}" if owner else "another process"
        on_this_machine = owner is not None and owner.hostname == socket.gethostname()
        if on_this_machine or alive != (first or alive):
            raise UserError(
                f"{workdir} is in use by {holder}, last seen at "
                f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(alive))}: stop that run or "
                "give another --workdir"
            )
        if first is None:
            logging.info("%s: waiting for a sign of life of %s", workdir, holder)
            first = alive
        if owner is None and time.monotonic() - start > LEASE:
            lock.force_break()  # an empty file, as a power cut may leave
        signals.check()
        time.sleep(_POLL)


def _stop(workdir: str | os.PathLike, reason: str) -> None:
    """Ends this process without writing anything more: the workdir may be another run's by now."""
    print(
        f"error: {workdir}/{NAME} is lost ({reason}): stopped, as another run may have started "
        "here; run the command again to resume from the newest checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
