"""Checkpoints on disk, kept by orbax: the newest and the best."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from manas_jax.errors import UserError

PyTree = Any
SCORE, SECONDS = "psnr", "seconds"


class Checkpoints:
    """The checkpoints of one stage.

    Saving goes on in the background while the next steps run; a checkpoint is there whole or not
    at all. The two newest are kept, so that one survives damage to the other, and the one with
    the best score.
    """

    def __init__(self, directory: str | os.PathLike):
        """Opens or makes the folder.

        Raises:
          UserError: it cannot be made, or the scores in it are damaged.
        """
        self.directory = pathlib.Path(directory).absolute()
        newest = checkpoint_managers.LatestN(n=2)
        best = checkpoint_managers.BestN(get_metric_fn=lambda scores: scores[SCORE], n=1)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([newest, best]),
            best_fn=lambda scores: scores[SCORE],
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)  # orbax would not mind a file here
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise UserError(f"{self.directory}: cannot keep checkpoints here ({error})") from None
        except ValueError as error:  # the scores, which orbax reads at once
            raise UserError(
                f"{self.directory}: a checkpoint here is damaged ({error}); "
                "remove its numbered folder, most likely the newest"
            ) from None

    def save(self, step: int, state: PyTree, score: float, seconds: float = 0.0) -> None:
        """Starts saving; `score` is the validation PSNR in dB, `seconds` the time spent so far."""
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
            metrics={SCORE: float(score), SECONDS: float(seconds)},
        )

    def restore(self, template: PyTree) -> PyTree | None:
        """The newest state, placed as the template's arrays are; None where there is none.

        Raises:
          UserError: the checkpoint is damaged or of another structure.
        """
        return self._restore(self._manager.latest_step(), template)

    def restore_best(self, template: PyTree) -> PyTree | None:
        """The state with the best score, placed as the template's arrays are, or None."""
        return self._restore(self._manager.best_step(), template)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def seconds(self) -> float:
        """Time that had been spent when the newest checkpoint was saved; 0 without one."""
        step = self._manager.latest_step()
        return 0.0 if step is None else self._manager.metrics(step)[SECONDS]

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the best score, or None."""
        return self._manager.best_step()

    def _restore(self, step: int | None, template: PyTree) -> PyTree | None:
        if step is None:
            return None
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            return self._manager.restore(step, args=args)["state"]
        except (ValueError, KeyError, OSError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else error
            raise UserError(
                f"{self.directory / str(step)}: cannot read this checkpoint ({first_line}); "
                "remove that folder to go on from the one before"
            ) from None

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def write_json(path: str | os.PathLike, fields: Any) -> None:
    """Writes readable JSON, whole or not at all; numbers of NumPy and JAX become plain ones."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return np.asarray(value).tolist()
        raise TypeError(f"{type(value).__name__} has no place in JSON")

    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(fields, indent=1, default=plain) + "\n")
    os.replace(temporary, path)
