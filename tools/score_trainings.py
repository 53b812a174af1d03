"""Scores trainings of one experiment on held-out pairs of several datasets.

python -m tools.score_trainings NAME RUNS --held_out DIR

RUNS is a folder of workdirs whose trainings have ended, and DIR one of all datasets as
`tools.join_datasets` writes it. Writes `results/NAME.json`. The experiments here, and what their
workdirs are called:

- leave_one_out: `all`, a training on all datasets, and `without_DATASET`;
- appearance: `APPEARANCE_SEED`, trainings with one appearance of synthetic rain;
- versions: `SCENESxVERSIONS_SEED`, trainings whose steps have as many pictures of fewer scenes.
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
from manas_jax.workdir import provenance
from manas_jax.workdir.weights import WEIGHTS_FILE
from tools.publish_weights import score_datasets, training_log


def score_trainings(runs: pathlib.Path, data: ConfigDict) -> dict[str, Any]:
    """By name of the workdir: the training's log, and its scores on each dataset.

    Args:
      runs: folder of the workdirs.
      data: whose root has the held-out pairs.

    Raises:
      UserError: there is no workdir, or a training has not ended.
    """
    found = sorted(file.parent for file in runs.glob("*/config.json"))
    if not found:
        raise UserError(f"{runs}: has no folders of runs")
    for workdir in found:
        if not (workdir / WEIGHTS_FILE).exists():
            raise UserError(f"{workdir / WEIGHTS_FILE}: missing; has this training ended?")
    return {
        workdir.name: {
            "training": training_log(workdir),
            "held_out": score_datasets(Derainer.from_pretrained(workdir / WEIGHTS_FILE), data),
        }
        for workdir in found
    }


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the file in results/")
    parser.add_argument("runs", type=pathlib.Path)
    parser.add_argument("--held_out", required=True, help="folder with held-out pairs")
    options = parser.parse_args()
    if not options.name.isidentifier():
        raise UserError(f"{options.name}: give a name of letters, digits and underscores")
    data = default().data
    data.root = options.held_out
    trainings = score_trainings(options.runs, data)
    record = {"provenance": provenance.describe(), "trainings": trainings}
    write_json(RESULTS / f"{options.name}.json", record)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
