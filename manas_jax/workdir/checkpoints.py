"""Checkpoints on disk, kept by orbax: the newest and the best."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from manas_jax.errors import Diverged, UserError
from manas_jax.runtime import distributed

PyTree = Any
SCORE = "psnr"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Checkpoints:
    """The checkpoints of one stage.

    Saving goes on in the background while the next steps run; a checkpoint is there whole or not
    at all. The two newest are kept, so that one survives damage to the other, and the one with
    the best score. Each holds a digest of its arrays, by which damage shows that the file formats
    let pass. What is damaged is moved to a folder 'damaged' beside the checkpoints.
    """

    def __init__(self, directory: str | os.PathLike):
        """Opens or makes the folder.

        Raises:
          UserError: it cannot be made.
        """
        self.directory = pathlib.Path(directory).absolute()
        newest = checkpoint_managers.LatestN(n=2)
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda scores: scores[SCORE],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([newest, best]),
            best_fn=lambda scores: scores[SCORE],
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        distributed.broadcast_from_primary(self._prepare)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: PyTree, score: float | None = None, **facts: float) -> None:
        """Starts saving.

        Args:
          step: steps done.
          state: arrays, in several processes those that each of them has in full.
          score: the validation PSNR in dB; None where there was no time for it.
          **facts: numbers to be remembered with it, see `facts`.

        Raises:
          Diverged: the state holds NaN or infinity; it is not saved.
          UserError: the disk takes no more, now or since the last save began.
        """
        facts |= {"digest": _digest(state)}
        with self._explaining():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts)
                ),
                metrics=None if score is None else {SCORE: float(score)},
            )

    def check(self) -> None:
        """Tells early of a save in the background that failed.

        Raises:
          UserError: the disk takes no more.
        """
        with self._explaining():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          UserError: the disk takes no more.
        """
        with self._explaining():
            self._manager.wait_until_finished()

    def restore(self, template: PyTree) -> PyTree | None:
        """The newest state, placed as the template's arrays are; None where there is none.

        A damaged checkpoint is passed over with a warning, and moved aside.

        Raises:
          UserError: all are damaged or of another structure.
        """
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        found, state = self._first_whole(steps, template)
        damaged = steps[: steps.index(found)] if found is not None else []
        if damaged:
            distributed.broadcast_from_primary(lambda: [self._set_aside(step) for step in damaged])
            self._manager.reload()
        return state

    def restore_best(self, template: PyTree) -> PyTree | None:
        """The state with the best score, or the next that is whole; see `restore`."""
        best = self._manager.best_step()
        others = sorted(set(self._manager.all_steps()) - {best}, reverse=True)
        return self._first_whole(others if best is None else [best, *others], template)[1]

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the best score, or None."""
        return self._manager.best_step()

    @property
    def facts(self) -> dict[str, Any]:
        """What was saved with the newest checkpoint besides its state; empty without one."""
        step = self.latest_step
        return {} if step is None else self._facts(step)

    def _facts(self, step: int) -> dict[str, Any]:
        """Raises OSError or ValueError where they are damaged."""
        if not (self.directory / str(step) / "facts").exists():  # of an older version
            return {}
        return self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))[
            "facts"
        ]

    def _first_whole(
        self, steps: Iterable[int], template: PyTree
    ) -> tuple[int | None, PyTree | None]:
        """The first of the checkpoints that can be read, and its step; None where there are none.

        Raises:
          UserError: there are some, but none can be read.
        """
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        failures = []
        for step in steps:
            try:
                state = self._read(step, wanted)
            except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
                if distributed.is_peer_failure(error):
                    raise
                said = str(error).strip().splitlines() or [type(error).__name__]
                failures.append(f"{self.directory / str(step)}: cannot read this checkpoint")
                logging.warning("%s (%s); trying another", failures[-1], said[0])
                continue
            if failures:
                logging.warning("goes on from step %d instead", step)
            return step, state
        if failures:
            raise UserError(
                f"{failures[0]}, nor any of the others: they are damaged or of another network; "
                "remove them to start anew, or take another --workdir"
            )
        return None, None

    def _read(self, step: int, wanted: PyTree) -> PyTree:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        state = self._manager.restore(step, args=args)["state"]
        if self._facts(step).get("digest", _digest(state)) != _digest(state):
            raise ValueError("its arrays are not those that were saved")
        return state

    def _prepare(self) -> None:
        """Makes the folder; takes away checkpoints whose scores orbax could not read at once."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)  # orbax would not mind a file here
            folders = [f for f in self.directory.iterdir() if f.name.isdigit() and f.is_dir()]
        except OSError as error:
            raise UserError(f"{self.directory}: cannot keep checkpoints here ({error})") from None
        for folder in folders:
            scores = folder / "metrics" / "metrics"
            try:
                whole = not scores.exists() or SCORE in json.loads(scores.read_text())
            except (OSError, ValueError, TypeError):
                whole = False
            if not whole:
                logging.warning("%s: cannot read its scores; it is passed over", folder)
                self._set_aside(int(folder.name))

    def _set_aside(self, step: int) -> None:
        aside = self.directory.with_name("damaged")
        aside.mkdir(exist_ok=True)
        number = sum(folder.name.split("-")[0] == str(step) for folder in aside.iterdir())
        name = f"{step}-{number}" if number else str(step)
        shutil.move(self.directory / str(step), aside / name)
        logging.warning("%s: moved to %s", self.directory / str(step), aside)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Makes of an error within one that speaks to users, where the disk takes no more."""
        try:
            yield
        except (ValueError, OSError) as error:
            if (trouble := disk_trouble(error, self.directory)) is None:
                raise
            raise UserError(
                f"{trouble}: the newest checkpoint could not be saved; those before it in "
                f"{self.directory} are whole; free some space and start again"
            ) from error

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          UserError: the disk takes no more.
        """
        self.wait()
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self.close()
        except Exception as error:
            if kind is None:
                raise
            logging.debug("while closing: %s", error)  # what came first says more


def disk_trouble(error: BaseException, path: str | os.PathLike) -> str | None:
    """Names the disk of a file and what is wrong, if an error says that it takes no more; or None.

    The error may be one of a library that has only the text of the system's own, or came of it.
    """
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    reasons = [
        os.strerror(number)
        for number in _DISK
        for link in chain
        if getattr(link, "errno", None) == number or os.strerror(number) in str(link)
    ]
    if not reasons:
        return None
    path = pathlib.Path(path).absolute()
    mount = next(folder for folder in (path, *path.parents) if os.path.ismount(folder))
    return f"the disk at {mount}: {reasons[0]}"


def _digest(state: PyTree) -> str:
    """A digest of names, types, shapes and bits of all arrays.

    Raises:
      Diverged: an array holds NaN or infinity.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
        value = np.asarray(leaf)
        name = jax.tree_util.keystr(path)
        if np.issubdtype(value.dtype, np.inexact) and not np.isfinite(value).all():
            raise Diverged(f"{name} is not finite")
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
