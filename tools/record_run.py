"""Copies the result of a finished run to results/runs/NAME.json, and draws its network beside.

python -m tools.record_run WORKDIR NAME
python -m tools.record_run WORKDIR NAME --trial "what it tries"

The second form is for a short training, made to choose a recipe: to results/recipe/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

from benchmarks import RESULTS
from manas_jax import cost
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.report.svg import draw_genotype
from manas_jax.space import Genotype
from manas_jax.workdir.weights import load_derived
from tools.publish_weights import training_log

FOLDER = RESULTS / "runs"
RECIPE = RESULTS / "recipe"
SIZE = 321, 481  # pixels, at which the cost of a trial's network is stated
FILES = {
    "provenance": "provenance.json",
    "config": "config.json",
    "search": "search/summary.json",
    "train": "train/summary.json",
    "evaluate": "evaluate/scores.json",
}


def record(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Gathers provenance, config, summaries, scores and genotype of a run; returns the file.

    Raises:
      UserError: the run has not finished its evaluation.
    """
    fields: dict[str, Any] = {
        key: json.loads((workdir / file).read_text())
        for key, file in FILES.items()
        if (workdir / file).exists()
    }
    if "evaluate" not in fields:
        raise UserError(f"{workdir}: no evaluate/scores.json, so the run has not finished")
    genotype = Genotype.load(workdir / "genotype.json")
    fields["genotype"] = json.loads(genotype.to_json())
    fields["config"]["data"]["root"] = pathlib.Path(fields["config"]["data"]["root"]).name
    (FOLDER / f"{name}_network.svg").write_text(draw_genotype(genotype))
    write_json(FOLDER / f"{name}.json", fields)
    return FOLDER / f"{name}.json"


def record_trial(workdir: pathlib.Path, name: str, change: str) -> pathlib.Path:
    """Gathers provenance, config, genotype, cost, summary and validation curve; returns the file.

    Raises:
      UserError: the training has not finished.
    """
    if not (workdir / "train/summary.json").exists():
        raise UserError(f"{workdir}: no train/summary.json, so the training has not finished")
    _, genotype, _ = load_derived(workdir / "weights.safetensors")
    total = cost.derived(genotype, *SIZE)
    log = training_log(workdir)
    fields = {
        "change": change,
        "genotype": json.loads(genotype.to_json()),
        "parameters": total.parameters,
        "macs": total.macs,
        "macs_at": SIZE,
        **log,
    }
    write_json(RECIPE / f"{name}.json", fields)
    return RECIPE / f"{name}.json"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("name")
    parser.add_argument("--trial", metavar="CHANGE", help="what a trial of a recipe tries")
    options = parser.parse_args()
    try:
        if options.trial:
            print(record_trial(options.workdir, options.name, options.trial))
        else:
            print(record(options.workdir, options.name))
    except UserError as error:
        sys.exit(f"error: {error}")
