"""Copies the result of a finished run to results/runs/NAME.json, and draws its network beside.

python -m tools.record_run WORKDIR NAME
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

from benchmarks import RESULTS
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.report.svg import draw_genotype
from manas_jax.space import Genotype

FOLDER = RESULTS / "runs"
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("name")
    options = parser.parse_args()
    try:
        print(record(options.workdir, options.name))
    except UserError as error:
        sys.exit(f"error: {error}")
