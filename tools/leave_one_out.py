"""Scores trainings, each of which has left out one dataset, on held-out pairs of all of them.

python -m tools.leave_one_out RUNS --held_out DIR

RUNS holds a workdir `all` of a training on all datasets, and workdirs `without_NAME` of trainings
that have left out the dataset NAME. DIR is a folder of all datasets as `tools.join_datasets` writes
it. Writes `results/leave_one_out.json`.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from ml_collections import ConfigDict

from benchmarks import RESULTS
from manas_jax.config import default
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.inference.derainer import Derainer
from manas_jax.training.run import WEIGHTS
from manas_jax.workdir import provenance
from tools.publish_weights import score_datasets, training_log

ALL, WITHOUT = "all", "without_"


def score_trainings(runs: pathlib.Path, data: ConfigDict) -> dict[str, Any]:
    """By name of the workdir: the training's log, and its scores on each dataset.

    Args:
      runs: folder of the workdirs.
      data: whose root has the held-out pairs.

    Raises:
      UserError: a workdir is missing or its training has not ended.
    """
    found = [runs / ALL, *sorted(runs.glob(f"{WITHOUT}*"))]
    for workdir in found:
        if not (workdir / WEIGHTS).exists():
            raise UserError(f"{workdir / WEIGHTS}: missing; has this training ended?")
    return {
        workdir.name: {
            "training": training_log(workdir),
            "held_out": score_datasets(Derainer.from_pretrained(workdir / WEIGHTS), data),
        }
        for workdir in found
    }


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=pathlib.Path)
    parser.add_argument("--held_out", required=True, help="folder with held-out pairs")
    options = parser.parse_args()
    data = default().data
    data.root = options.held_out
    trainings = score_trainings(options.runs, data)
    record = {"provenance": provenance.describe(), "trainings": trainings}
    write_json(RESULTS / "leave_one_out.json", record)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
