"""Several processes that work on one run: how they start, agree, share a list, and leave.

Every process runs the same program on its own devices; files of a run are written by the first one,
into a folder that all of them see. With a single process everything here is as if it were not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from manas_jax.errors import UserError
from manas_jax.runtime import signals

HEARTBEAT = 60
"""Seconds after its last sign of life when a process counts as dead, and the others end."""

# What errors say where another process is gone: those of gloo, NCCL and JAX's own service.
_LOST = (
    "gloo",
    "nccl",
    "unavailable",
    "deadline_exceeded",
    "coordination",
    "barrier",
    "connection",
)


def start(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    *,
    found: bool = False,
    heartbeat: int = HEARTBEAT,
) -> None:
    """Joins the other processes; comes before any other use of JAX.

    Args:
      coordinator: 'host:port' that the first process listens on; None for a single process.
      processes: how many there are.
      process: which one this is, from 0.
      found: whether JAX is to find the above in its surroundings (Cloud TPU, GKE, Slurm, Open MPI).
      heartbeat: see `HEARTBEAT`.

    Raises:
      UserError: the arguments do not go together, or nothing was found.
      Stopped: the others cannot be reached (yet), or a signal came meanwhile.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given) and not found:
        return
    if missing and not found:
        raise UserError(f"{', '.join(missing)}: missing; give all of --{', --'.join(given)}")
    if not found and not 0 <= process < processes:
        raise UserError(f"--process={process}: give 0 to {processes - 1}, for --processes")
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=heartbeat
        )
    except ValueError as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot join the other processes ({said}): check --coordinator, or with --distributed "
            "that this is a Cloud TPU, GKE, Slurm or Open MPI job"
        ) from None
    except RuntimeError as error:  # started again, the others may be there
        logging.error("cannot join the other processes: %s", error)
        raise signals.Stopped(signals.PREEMPTED) from None
    signals.check()
    logging.info("process %d of %d", jax.process_index(), jax.process_count())


def is_primary() -> bool:
    """Whether this is the process that writes the run's files."""
    return jax.process_index() == 0


def broadcast_from_primary(function: Callable[[], Any]) -> Any:
    """Calls a function in the first process; all get what it gives, which JSON can hold.

    All processes come here and none leaves before the function is done.

    Raises:
      UserError: the function did, in every process.
    """
    if jax.process_count() == 1:
        return function()
    result = {}
    if is_primary():
        try:
            result = {"value": function()}
        except UserError as error:
            result = {"error": str(error)}
    (result,) = _exchange(result)[:1]
    if "error" in result:
        raise UserError(result["error"])
    return result["value"]


def share(items: Sequence[Any]) -> list[Any]:
    """This process's part of a list that all have: every so manieth, from its own number on."""
    return list(items[jax.process_index() :: jax.process_count()])


def gather(parts: Sequence[Any]) -> list[Any]:
    """The inverse of `share`, in every process: the whole list in order; JSON can hold it."""
    everyone = [list(parts)] if jax.process_count() == 1 else _exchange(list(parts))
    longest = max(map(len, everyone))
    return [part[i] for i in range(longest) for part in everyone if i < len(part)]


def _exchange(value: Any) -> list[Any]:
    """Every process's value, in the order of the processes."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.array(len(text), np.int32)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    rows = np.reshape(multihost_utils.process_allgather(padded), (len(lengths), -1))
    return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths, strict=True)]


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    if jax.process_count() == 1 or not isinstance(error, (ValueError, RuntimeError)):
        return False
    return any(word in str(error).lower() for word in _LOST)


def exit_process(status: int | str) -> NoReturn:
    """Ends this process: a status, or a line that says what is wrong and status 1.

    A process that fails does not wait for the others as Python's exit would: they may be waiting
    for it.
    """
    if jax.process_count() == 1 or status == 0:
        sys.exit(status)
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
