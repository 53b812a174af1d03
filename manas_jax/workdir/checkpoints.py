"""Checkpoints on disk, written by orbax: the two newest and the best."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from manas_jax.buckets import Path, as_path, is_remote, is_unreachable, move, storage_error
from manas_jax.errors import Diverged, UserError, one_line
from manas_jax.runtime import distributed

PyTree = Any
SCORE = "psnr"

FORMAT = 2
"""Version of the names and metadata in a checkpoint; those of another version are not read."""


class Checkpoints:
    """The checkpoints of one stage.

    Saving runs in the background of the next steps and is atomic. The two newest checkpoints are
    kept, so that one survives damage to the other, and the one with the best score. Each stores a
    digest of its arrays, which detects damage that the file formats do not. Damaged checkpoints
    are moved to a folder 'damaged' beside the others.
    """

    def __init__(self, directory: str | os.PathLike):
        """Opens the folder, or creates it.

        Raises:
          UserError: it cannot be created.
        """
        self.directory = as_path(directory)
        if not is_remote(directory):
            self.directory = self.directory.absolute()
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
        self._alias = contextlib.ExitStack()
        directory = self._alias.enter_context(_plain_path(self.directory))
        self._manager = ocp.CheckpointManager(directory, options=options)

    def save(self, step: int, state: PyTree, score: float | None = None, **metadata: float) -> None:
        """Starts to save a state.

        Args:
          step: number of completed steps.
          state: arrays; with several processes each holds all of them.
          score: the validation PSNR in dB; None if it was not computed.
          **metadata: numbers to save with it, see `metadata`.

        Raises:
          Diverged: the state holds NaN or infinity; it is not saved.
          UserError: the disk is full or read-only, now or in the save before.
        """
        _check_finite(state)
        metadata |= {"format": FORMAT, "digest": _digest(state)}
        with self._explaining():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata)
                ),
                metrics=None if score is None else {SCORE: float(score)},
            )

    def check(self) -> None:
        """Reports early that a save in the background failed.

        Raises:
          UserError: the disk is full or read-only.
        """
        with self._explaining():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until all saves are on disk.

        Raises:
          UserError: the disk is full or read-only.
        """
        with self._explaining():
            self._manager.wait_until_finished()

    def restore(self, template: PyTree) -> PyTree | None:
        """The newest state, sharded as the template's arrays are; None without checkpoints.

        Damaged checkpoints are skipped with a warning, and quarantined.

        Raises:
          UserError: all are damaged or of another structure, or another version wrote them.
        """
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        found, state = self._restore_first_valid(steps, template)
        damaged = steps[: steps.index(found)] if found is not None else []
        if damaged:
            distributed.broadcast_from_primary(lambda: [self._quarantine(step) for step in damaged])
            self._manager.reload()
        return state

    def restore_best(self, template: PyTree) -> PyTree | None:
        """The state with the best score, or else the newest that is valid; see `restore`."""
        best = self._manager.best_step()
        others = sorted(set(self._manager.all_steps()) - {best}, reverse=True)
        steps = others if best is None else [best, *others]
        return self._restore_first_valid(steps, template)[1]

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the best score, or None."""
        return self._manager.best_step()

    @property
    def metadata(self) -> dict[str, Any]:
        """What was saved with the newest checkpoint besides its state; empty without one."""
        step = self.latest_step
        return {} if step is None else self._metadata(step)

    def _metadata(self, step: int) -> dict[str, Any]:
        """Raises OSError or ValueError if they are damaged."""
        if not (self.directory / str(step) / "metadata").exists():  # it had another name
            return {"format": 1}
        item = ocp.args.Composite(metadata=ocp.args.JsonRestore())
        return self._manager.restore(step, args=item)["metadata"]

    def _restore_first_valid(
        self, steps: Iterable[int], template: PyTree
    ) -> tuple[int | None, PyTree | None]:
        """Step and state of the first checkpoint that can be read; None without checkpoints.

        Raises:
          UserError: there are some, but none can be read.
        """
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        failures = []
        for step in steps:
            try:
                state = self._restore(step, wanted)
            except UserError:
                raise
            except Exception as error:  # orbax and its formats raise errors of any kind
                if distributed.is_peer_failure(error) or is_unreachable(error):
                    raise
                failures.append(f"{self.directory / str(step)}: cannot read this checkpoint")
                logging.warning("%s (%s); trying another", failures[-1], one_line(error)[:200])
                continue
            if failures:
                logging.warning("using the checkpoint of step %d instead", step)
            return step, state
        if failures:
            raise UserError(
                f"{failures[0]}, nor any other: they are damaged or of another network; "
                "remove them to start from scratch, or give another --workdir"
            )
        return None, None

    def _restore(self, step: int, wanted: PyTree) -> PyTree:
        metadata = self._metadata(step)
        if (version := metadata["format"]) != FORMAT:
            raise UserError(
                f"{self.directory} was written by {'an earlier' if version < FORMAT else 'a later'}"
                f" version of manas_jax (checkpoint format {version}, this one reads {FORMAT}): "
                "start in a new --workdir; weights.safetensors and genotype.json of the old one "
                "can still be used, by train.weights=FILE and train.genotype=FILE"
            )
        item = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        state = self._manager.restore(step, args=item)["state"]
        if metadata["digest"] != _digest(state):
            raise ValueError("its arrays are not those that were saved")
        return state

    def _prepare(self) -> None:
        """Creates the folder; quarantines checkpoints whose scores orbax could not read."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)  # orbax would not mind a file here
            folders = [f for f in _entries(self.directory) if f.name.isdigit() and f.is_dir()]
        except OSError as error:
            raise UserError(f"{self.directory}: cannot write checkpoints here ({error})") from None
        for folder in folders:
            scores = folder / "metrics" / "metrics"
            try:
                valid = not scores.exists() or SCORE in json.loads(scores.read_text())
            except (OSError, ValueError, TypeError) as error:
                if is_unreachable(error):
                    raise
                valid = False
            if not valid:
                logging.warning("%s: cannot read its scores; skipped", folder)
                self._quarantine(int(folder.name))

    def _quarantine(self, step: int) -> None:
        """Moves a checkpoint to the folder 'damaged', under a name that is free there."""
        damaged = self.directory.with_name("damaged")
        damaged.mkdir(exist_ok=True)
        number = sum(folder.name.split("-")[0] == str(step) for folder in _entries(damaged))
        name = f"{step}-{number}" if number else str(step)
        move(self.directory / str(step), damaged / name)
        logging.warning("%s: moved to %s", self.directory / str(step), damaged)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Raises UserError in place of an error of the disk or the bucket."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each library raises another one
            if (problem := storage_error(error, self.directory)) is None:
                raise
            raise UserError(
                f"{problem} and start again; the newest checkpoint could not be saved, those "
                f"before it in {self.directory} are intact"
            ) from error

    def close(self) -> None:
        """Waits until all saves are on disk.

        Raises:
          UserError: the disk is full or read-only.
        """
        self.wait()
        self._manager.close()
        self._alias.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self.close()
        except Exception as error:
            if kind is None:
                raise
            logging.debug("while closing: %s", error)  # the error raised within says more


def _entries(folder: Path) -> list[Path]:
    """What a folder holds; nothing if there is none, as in a bucket while it is empty."""
    return list(folder.iterdir()) if folder.exists() else []


@contextlib.contextmanager
def _plain_path(folder: Path) -> Iterator[Path]:
    """Another path of a folder, if orbax would read its own as a pattern: a link to it.

    orbax passes paths to `glob`, and TensorStore takes a backslash for a slash.
    """
    if is_remote(folder) or not set("[]*?\\") & set(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        link = pathlib.Path(temporary) / folder.name
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _check_finite(state: PyTree) -> None:
    """Raises Diverged if an array holds NaN or infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
        value = np.asarray(leaf)
        if np.issubdtype(value.dtype, np.inexact) and not np.isfinite(value).all():
            raise Diverged(f"{jax.tree_util.keystr(path)} is not finite")


def _digest(state: PyTree) -> str:
    """A digest of names, types, shapes and bits of all arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
        value = np.asarray(leaf)
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
