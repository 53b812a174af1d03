"""Copies the result of a study to results/NAME/: cells, summary, genotypes, drawings and plots.

python -m tools.keep_study NAME WORKDIR   copies the cells of `manas_jax.study` from WORKDIR first
python -m tools.keep_study NAME           summarises and draws the cells in results/NAME/ again

`genotypes/` holds the genotypes that the searches found and, as `pretrained_NAME.json`, those of
the weights in the package.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import shutil
import statistics
import sys
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks import RESULTS
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.inference.pretrained import FOLDER as PRETRAINED
from manas_jax.report.svg import draw_genotype
from manas_jax.space import Genotype
from manas_jax.study import front
from manas_jax.study.grid import NEED_A_SEARCH
from manas_jax.study.run import cell_files, read_cells
from manas_jax.study.summary import rankers, ranking, summarize
from manas_jax.workdir.weights import load_derived


def gather(workdir: pathlib.Path, kept: pathlib.Path) -> None:
    """Copies the cells and the configuration of a study to the folder `kept`.

    Raises:
      UserError: there is no study, it is the one that is kept, or a cell is damaged.
    """
    if workdir.resolve() == kept.resolve():
        raise UserError(f"{workdir}: the folder where the study is kept; give the WORKDIR of a run")
    files = cell_files(workdir / "cells")
    if not files or not (workdir / "config.json").exists():
        raise UserError(f"{workdir}: no cells here; run `python -m manas_jax.study` first")
    read_cells(workdir / "cells")  # raises if one is damaged
    cells = kept / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, cells)
    for stale in set(cells.glob("*.json")) - {cells / file.name for file in files}:
        stale.unlink()
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["root"] = pathlib.Path(config["data"]["root"]).name
    write_json(kept / "config.json", config)
    if (workdir / "summary.json").exists():  # holds the number of planned cells
        shutil.copy(workdir / "summary.json", kept)


def draw(kept: pathlib.Path) -> None:
    """Writes summary, genotypes, drawing and plots of the cells in the folder `kept`.

    Raises:
      UserError: there are no cells, or one is damaged.
    """
    cells = read_cells(kept / "cells")
    if not cells:
        raise UserError(f"{kept / 'cells'}: no cells here; give the WORKDIR of a study")
    before = kept / "summary.json"
    planned = json.loads(before.read_text())["planned"] if before.exists() else None
    summary = summarize(cells, planned)
    genotypes = kept / "genotypes"
    genotypes.mkdir(exist_ok=True)
    for stale in genotypes.glob("*.json"):
        stale.unlink()
    for name, cell in cells.items():
        if cell["source"]["choice"] in NEED_A_SEARCH:
            _genotype(cell).save(genotypes / f"{name}.json")
    for file in sorted(PRETRAINED.glob("*.safetensors")):
        load_derived(file)[1].save(genotypes / f"pretrained_{file.stem}.json")
    searched = [c for c in cells.values() if c["source"]["name"] == "first_order"]
    if searched:
        middle = statistics.median_low([c["trained"]["psnr"] for c in searched])
        chosen = next(c for c in searched if c["trained"]["psnr"] == middle)
        (kept / "network.svg").write_text(draw_genotype(_genotype(chosen)))
        summary["drawn"] = f"{chosen['source']['name']}-{chosen['index']:02d}"
    write_json(kept / "summary.json", summary)
    pyplot.rcParams.update({"svg.hashsalt": "study", "font.size": 9})
    _plot_costs(cells, summary, kept / "costs.svg")
    _plot_ranking(cells, kept / "ranking.svg")
    front.draw(cells, kept)


def _genotype(cell: Mapping[str, Any]) -> Genotype:
    return Genotype.from_json(json.dumps(cell["genotype"]))


def _plot_costs(
    cells: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any], file: pathlib.Path
) -> None:
    """Plots PSNR above that of the seed's random genotypes against MACs, one point per cell."""
    if (line := summary["equal_cost_line"]) is None:
        return
    figure, axes = pyplot.subplots(figsize=(8.5, 4.5))
    markers = "os^vD<>phX*P"
    alike = [name for name, source in summary["sources"].items() if "at_equal_macs" in source]
    for i, name in enumerate(alike):
        members = [c for c in cells.values() if c["source"]["name"] == name]
        known = [c for c in members if str(c["seed"]) in line["levels"]]
        axes.scatter(
            [c["macs"] / 1e6 for c in known],
            [c["trained"]["psnr"] - line["levels"][str(c["seed"])] for c in known],
            s=26, marker=markers[i % len(markers)], color=f"C{i % 10}", alpha=0.8, label=name,
        )  # fmt: skip
    low, high = (edge / 1e6 for edge in (min(c["macs"] for c in cells.values()),
                                         max(c["macs"] for c in cells.values())))  # fmt: skip
    steps = [low * (high / low) ** (i / 50) for i in range(51)]
    heights = [line["slope"] * (math.log2(m * 1e6) - line["center"]) for m in steps]
    axes.plot(steps, heights, color="0.4", linewidth=1, label="line of the random ones")
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = (low, (low * high) ** 0.5, high)
    axes.set_xticks(ticks, [f"{x:.0f}" for x in ticks])
    axes.set_xlabel("million multiply-accumulates at 320x480")
    axes.set_ylabel("validation PSNR above its seed's level, dB")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, file)


def _plot_ranking(cells: Mapping[str, Mapping[str, Any]], file: pathlib.Path) -> None:
    """Plots the scores of the random genotypes in the supernets against those trained alone."""
    by_name = {
        name: [c for c in cells.values() if c["source"]["name"] == name]
        for name in ("first_order", "random")
    }
    searched, random = by_name["first_order"], sorted(by_name["random"], key=lambda c: c["index"])
    found = ranking(searched, random)
    if not found or "supernets" not in found:
        return
    levels = {
        seed: statistics.mean(c["trained"]["psnr"] for c in random if c["seed"] == seed)
        for seed in {c["seed"] for c in random}
    }
    truth = [c["trained"]["psnr"] - levels[c["seed"]] for c in random]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for cell in rankers(searched, random):
        axes.scatter(
            _centred([cell["ranking"][c["index"]] for c in random]),
            truth,
            s=14, alpha=0.7, label=f"supernet of seed {cell['seed']}",
        )  # fmt: skip
    axes.set_xlabel("in the supernet, dB from its mean, on architecture scenes")
    axes.set_ylabel("trained alone, dB from its seed's mean")
    axes.set_title(f"Kendall's tau {found['interval']['mean']:.2f}", fontsize=9)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, file)


def _centred(values: list[float]) -> list[float]:
    return [value - statistics.mean(values) for value in values]


def _save(figure: Any, file: pathlib.Path) -> None:
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="folder in results/")
    parser.add_argument("workdir", type=pathlib.Path, nargs="?")
    options = parser.parse_args()
    try:
        if options.workdir:
            gather(options.workdir, RESULTS / options.name)
        draw(RESULTS / options.name)
    except UserError as error:
        sys.exit(f"error: {error}")
