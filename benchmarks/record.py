"""Keeps the result of a finished run: results/NAME.json and the found network drawn.

python -m benchmarks.record WORKDIR NAME
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.report.svg import draw_genotype
from manas_jax.space import Genotype

RESULTS = pathlib.Path(__file__).parent.parent / "results"
PARTS = {
    "provenance": "provenance.json",
    "config": "config.json",
    "search": "search/summary.json",
    "train": "train/summary.json",
    "evaluate": "evaluate/scores.json",
}


def record(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Gathers what the run wrote down.

    Raises:
      UserError: the run has not finished its evaluation.
    """
    parts: dict[str, Any] = {}
    for part, file in PARTS.items():
        if (workdir / file).exists():
            parts[part] = json.loads((workdir / file).read_text())
    if "evaluate" not in parts:
        raise UserError(f"{workdir}: no evaluate/scores.json, so the run has not finished")
    genotype = Genotype.load(workdir / "genotype.json")
    parts["genotype"] = json.loads(genotype.to_json())
    parts["config"]["data"]["root"] = pathlib.Path(parts["config"]["data"]["root"]).name
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}_network.svg").write_text(draw_genotype(genotype))
    write_json(RESULTS / f"{name}.json", parts)
    return RESULTS / f"{name}.json"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("name")
    options = parser.parse_args()
    try:
        print(record(options.workdir, options.name))
    except UserError as error:
        sys.exit(f"error: {error}")
