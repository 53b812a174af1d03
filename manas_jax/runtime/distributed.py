"""Several processes that work on one run: joining, exchanging values, exiting.

Every process runs the same program on its own devices. The first one, the primary, writes the files
of a run, to a folder that all of them see. With a single process every function here is trivial.
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
"""Seconds of silence after which a process counts as dead and the others exit."""

# Words in the errors of gloo, NCCL and JAX's coordination service after another process has died.
_PEER_FAILURES = (
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
    """Joins the other processes; must be called before any other use of JAX.

    Args:
      coordinator: 'host:port' that the first process listens on; None for a single process.
      processes: number of processes.
      process: index of this one, from 0.
      found: whether JAX finds the above in its environment (Cloud TPU, GKE, Slurm, Open MPI).
      heartbeat: see `HEARTBEAT`.

    Raises:
      UserError: the arguments do not fit together, or nothing was found.
      Stopped: the others cannot be reached (yet), or a signal came while waiting for them.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given) and not found:
        return
    if missing and not found:
        raise UserError(f"{', '.join(missing)}: missing; give all of --{', --'.join(given)}")
    if not found and not 0 <= process < processes:
        raise UserError(
            f"--process={process}: give 0 to {processes - 1}, as --processes={processes}"
        )
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=heartbeat
        )
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot join the other processes ({reason}): check --coordinator, or "
            "with --distributed that this is a Cloud TPU, GKE, Slurm or Open MPI job"
        ) from None
    except RuntimeError as error:  # after a restart the others may be there
        logging.error("cannot join the other processes: %s", error)
        raise signals.Stopped(signals.PREEMPTED) from None
    signals.check()
    logging.info("process %d of %d", jax.process_index(), jax.process_count())


def is_primary() -> bool:
    """Whether this is the process that writes the files of the run."""
    return jax.process_index() == 0


def broadcast_from_primary(function: Callable[[], Any]) -> Any:
    """Calls a function in the primary process and returns its result, JSON-ready, in all of them.

    All processes must call it; none returns before the function has.

    Raises:
      UserError: in every process, if the function raises it.
    """
    if jax.process_count() == 1:
        return function()
    result = {}
    if is_primary():
        try:
            result = {"value": function()}
        except UserError as error:
            result = {"error": str(error)}
    (result,) = _all_gather(result)[:1]
    if "error" in result:
        raise UserError(result["error"])
    return result["value"]


def gather(shard: Sequence[Any]) -> list[Any]:
    """The whole list, in every process, of which process i of n holds the items [i::n], JSON-ready.

    All processes must call it.
    """
    shards = [list(shard)] if jax.process_count() == 1 else _all_gather(list(shard))
    longest = max(map(len, shards))
    return [shard[i] for i in range(longest) for shard in shards if i < len(shard)]


def _all_gather(value: Any) -> list[Any]:
    """The values of all processes, JSON-ready, in the order of the processes."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.array(len(text), np.int32)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    rows = np.reshape(multihost_utils.process_allgather(padded), (len(lengths), -1))
    return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths, strict=True)]


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error means that another process has died or exited."""
    if jax.process_count() == 1 or not isinstance(error, (ValueError, RuntimeError)):
        return False
    return any(word in str(error).lower() for word in _PEER_FAILURES)


def exit_process(status: int | str) -> NoReturn:
    """Exits with a status, or with a line for the user on stderr and status 1.

    One of several processes that fails does not wait for the others, as `sys.exit` would: they may
    be waiting for it.
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
