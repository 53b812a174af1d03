"""Copies a short training, made to choose a recipe, to results/recipe/NAME.json.

python -m tools.record_trial WORKDIR NAME "what it tries"
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from benchmarks import RESULTS
from manas_jax import cost
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.workdir.weights import load_derived
from tools.publish_weights import training_log

FOLDER = RESULTS / "recipe"
SIZE = 321, 481  # pixels, at which the cost of a network is stated


def record(workdir: pathlib.Path, name: str, change: str) -> pathlib.Path:
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
    write_json(FOLDER / f"{name}.json", fields)
    return FOLDER / f"{name}.json"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("name")
    parser.add_argument("change")
    options = parser.parse_args()
    try:
        print(record(options.workdir, options.name, options.change))
    except UserError as error:
        sys.exit(f"error: {error}")
