"""The lock of a workdir in a bucket: an object that is written only while it is as it was read."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psutil
import tensorstore as ts

from manas_jax.buckets import bucket_and_name
from manas_jax.runtime import signals


class Holder(NamedTuple):
    """Who wrote a lock.

    Attributes:
      process: its number.
      host: its machine.
      token: of the holding, different each time.
    """

    process: int
    host: str
    token: str

    def is_gone(self) -> bool:
        """Whether it ran on this machine and has ended."""
        here = self.host == socket.gethostname()
        return here and (self.process == os.getpid() or not psutil.pid_exists(self.process))


class Held(Exception):
    """Another process holds the lock; `str()` names it."""


@contextlib.contextmanager
def hold(
    path: str | os.PathLike,
    *,
    lease: float,
    poll: float,
    on_waiting: Callable[[str], None],
    on_loss: Callable[[], None],
) -> Iterator[None]:
    """Holds a lock, and shows a sign of life six times in a lease by writing it again.

    Every write and the deletion name the generation of the object that they replace, so that of
    several processes that take over the lock of a dead one, one succeeds.

    Args:
      path: of the object.
      lease: seconds without a sign of life after which a lock is taken over.
      poll: seconds between looks at a lock of another process.
      on_waiting: called with the holder's name before such looks.
      on_loss: called, in another thread, when another process has taken the lock over.

    Raises:
      Held: another process holds it and lives.
      Stopped: a signal came while waiting for a sign of life.
      Exception: the bucket cannot be reached or written.
    """
    bucket, name = bucket_and_name(path)
    store = ts.KvStore.open({"driver": "gcs", "bucket": bucket}).result()
    me = Holder(os.getpid(), socket.gethostname(), secrets.token_hex(8))
    generation = _write(store, name, me, _free(store, name, lease, poll, on_waiting))
    if generation is None:
        raise Held(str(_read(store, name)))
    released = threading.Event()

    def show_signs_of_life() -> None:
        nonlocal generation
        while not released.wait(lease / 6):
            with contextlib.suppress(Exception):  # of the network: the next one may pass
                written = _write(store, name, me, generation)
                if written is None:
                    if not released.is_set():
                        on_loss()
                    return
                generation = written

    thread = threading.Thread(target=show_signs_of_life, daemon=True)
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join()
        with contextlib.suppress(Exception):  # the bucket is gone, of which others tell
            store.write(name, None, if_equal=generation).result()


class _Found(NamedTuple):
    """What a lock holds.

    Attributes:
      generation: changes with every write; that of an absent object has a value as well.
      exists: whether there is a lock.
      holder: None if it cannot be told.
    """

    generation: bytes
    exists: bool
    holder: Holder | None

    def __str__(self) -> str:
        holder = self.holder
        return f"process {holder.process} on {holder.host}" if holder else "another process"


def _read(store: ts.KvStore, name: str) -> _Found:
    found = store.read(name).result()
    try:
        holder = Holder(**json.loads(found.value))
    except (ValueError, TypeError):
        holder = None
    return _Found(found.stamp.generation, found.state == "value", holder)


def _free(
    store: ts.KvStore, name: str, lease: float, poll: float, on_waiting: Callable[[str], None]
) -> bytes:
    """The generation of an absent or abandoned lock, which may be replaced."""
    first = _read(store, name)
    if not first.exists or (first.holder and first.holder.is_gone()):
        return first.generation
    on_waiting(str(first))
    start = time.monotonic()
    while time.monotonic() - start < lease:
        signals.check()
        time.sleep(poll)
        found = _read(store, name)
        if not found.exists:
            return found.generation
        if found.generation != first.generation:
            raise Held(str(found))
    return first.generation


def _write(store: ts.KvStore, name: str, holder: Holder, generation: bytes) -> bytes | None:
    """Replaces a generation of the lock; returns the new one, None if it was another by then."""
    content = json.dumps(holder._asdict()).encode()
    written = store.write(name, content, if_equal=generation).result().generation
    if written:
        return written
    # The client may have repeated a request that had succeeded.
    found = _read(store, name)
    return found.generation if found.holder == holder else None
