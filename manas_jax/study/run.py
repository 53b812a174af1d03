"""A study: networks from many sources, trained alike, to see whether the search is worth its cost.

python -m manas_jax.study --config=configs/study_rain100l.py --workdir=DIR \\
    --config.data.root=DIR [--index=I --count=N] [--only=SOURCE_OR_CELL,...]

Genotypes come from a source: a search, chance, or a person. A cell is one source with one seed: its
genotype, trained with the training budget of the study and scored on the validation scenes. Cells
of one seed have the same initial weights' seed and the same batches. Each cell is a function of the
configuration alone and writes one file, DIR/cells/NAME.json; the command, run again, continues with
the cells that have none. DIR/summary.json aggregates them, and DIR/report.html shows those within
budgets. With --index and --count it runs its share of the cells, so that N machines run all, in one
shared folder or in one each; the files of all machines, copied into one folder cells/, form one
study. A cell that another process runs is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from manas_jax import app, cost
from manas_jax.buckets import check_local
from manas_jax.config import search_budget, validate
from manas_jax.data.sources import load_splits, split_crop
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.models.network import genotype_logits
from manas_jax.runtime import sharding, signals
from manas_jax.search import methods, selection, supernet
from manas_jax.search.sampling import Sampler, random_within
from manas_jax.search.selection import SupernetEvaluator
from manas_jax.search.uniform import uniform_within
from manas_jax.space import Genotype, SearchSpace
from manas_jax.study import genotypes, grid, page
from manas_jax.study import summary as study_summary
from manas_jax.training import build
from manas_jax.training import run as train_run
from manas_jax.training.validation import Validation
from manas_jax.workdir import lock, provenance
from manas_jax.workdir.claim import FREE_KEYS, claim_inputs, claim_workdir

_CHOOSING = ("tolerance", "candidates", "judged_batches")  # keys of `study`

_INDEX = flags.DEFINE_integer("index", 0, "Index of this machine, from 0.")
_COUNT = flags.DEFINE_integer("count", 1, "Number of machines that share the cells.")
_ONLY = flags.DEFINE_list("only", [], "Sources or cells to run, by name; default: all.")
_SUMMARIZE = flags.DEFINE_bool("summarize", False, "Summarise the finished cells, run none.")


def read_cells(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The contents of the files of the finished cells in a folder, by name.

    Raises:
      UserError: a file is damaged; names it.
    """
    return {file.stem: _read(file) for file in cell_files(folder)}


def cell_files(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The files of the finished cells in a folder, without those that machines are writing."""
    return sorted(pathlib.Path(folder).glob("[!.]*.json"))


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    index: int = 0,
    count: int = 1,
    only: Sequence[str] = (),
    summarize_only: bool = False,
) -> None:
    """Runs the unfinished cells of this machine; see the module.

    Args:
      config: of the study.
      workdir: of the study.
      index: of this machine.
      count: of the machines that share the cells.
      only: names of sources or cells to run, all if empty.
      summarize_only: whether to summarise the finished cells and run none.

    Raises:
      UserError: what the user can correct; the message says how. So is a cell or a search that
        another process runs, as with the same index.
      Stopped: a signal came; run again, the current cell is resumed.
    """
    planned = grid.cells(config)
    cells = grid.shard(grid.named(planned, only), index, count)
    plain = grid.plain(config)  # cells may be added to a study that has begun
    validate(plain)
    if not summarize_only:
        grid.check(config, cells)
    elif not cell_files(pathlib.Path(workdir) / "cells"):
        raise UserError(f"--workdir={workdir}: no cells to summarise in {workdir}/cells")
    workdir = claim_workdir(plain, workdir)
    if not summarize_only:
        claim_inputs(
            plain, workdir, {"search": load_splits(plain.data, split_crop(plain, "search"))}
        )
    with app.run_context(plain, workdir):
        folder = workdir / "cells"
        folder.mkdir(exist_ok=True)
        done = {cell.name for cell in cells if _is_done(config, cell, folder)}
        todo = [] if summarize_only else [cell for cell in cells if cell.name not in done]
        logging.info("study: %d cells, %d of them done", len(cells), len(done))
        begin = time.monotonic()
        for number, cell in enumerate(todo, 1):
            with lock.hold(workdir / "trainings" / cell.name):
                if _is_done(config, cell, folder):  # since this start, by another process
                    continue
                result = run_cell(config, cell, workdir)
                write_json(folder / f"{cell.name}.json", result)
            _summarize(workdir, len(planned))
            signals.check()
            left = (time.monotonic() - begin) / number * (len(todo) - number)
            logging.info(
                "study: cell %d of %d, %s: %.2f dB, %.1f million MACs; about %.0f min left",
                len(done) + number, len(cells), cell.name, result["trained"]["psnr"],
                result["macs"] / 1e6, left / 60,
            )  # fmt: skip
        file = _summarize(workdir, len(planned))
        logging.info("study: %s", file)


def _summarize(workdir: pathlib.Path, planned: int) -> pathlib.Path:
    """Aggregates the finished cells in `summary.json`, those within budgets in a page too."""
    file, cells = workdir / "summary.json", read_cells(workdir / "cells")
    write_json(file, summary := study_summary.summarize(cells, planned))
    return page.write(cells, summary, workdir) or file


def run_cell(config: ConfigDict, cell: grid.Cell, workdir: pathlib.Path) -> dict[str, Any]:
    """Finds the genotype of a cell and trains it.

    Returns:
      The content of the cell's file.

    Raises:
      UserError: as for search and training.
    """
    start = time.monotonic()
    genotype, facts = _genotype(config, cell, workdir)
    facts["seconds_of_choice"] = time.monotonic() - start
    training = grid.changed(config, cell.seed, cell.source.changes)
    folder = workdir / "trainings" / cell.name
    claim_workdir(training, folder)
    genotype.save(folder / "genotype.json")
    train_run.train(training, folder)
    summary = json.loads((folder / "train" / "summary.json").read_text())
    total = cost.derived(genotype, *config.objectives.complexity_size)
    return {
        **_settings(config, cell),
        "index": cell.index,
        **facts,
        "genotype": json.loads(genotype.to_json()),
        "parameters": total.parameters,
        "macs": total.macs,
        "trained": summary["validation"],
        "seconds_of_training": summary["seconds"] + summary["compile_seconds"],
        "provenance": provenance.describe(),
    }


def _genotype(
    config: ConfigDict, cell: grid.Cell, workdir: pathlib.Path
) -> tuple[Genotype, dict[str, Any]]:
    """The genotype of a cell, and what was measured while finding it."""
    source, space = cell.source, SearchSpace(**config.space)
    if source.choice == "random":
        return genotypes.random_genotypes(config, cell.index + 1)[-1], {}
    if source.choice not in (*grid.NEED_A_SEARCH, *grid.BUDGETED):
        return genotypes.fixed(space, source.choice), {}

    changed = grid.changed(config, cell.seed, config.study.searches[source.search].to_dict())
    if source.choice == "within":
        return random_within(Sampler(space, search_budget(changed)), cell.index), {}
    if source.choice == "uniform":
        return uniform_within(space, search_budget(changed)), {}
    folder = workdir / "searches" / f"{source.search}-{cell.seed:02d}"
    with lock.hold(folder):
        derived = methods.search(changed, claim_workdir(changed, folder))
    if source.choice == "matched":
        return genotypes.matched(config, derived, cell.index), {}
    if changed.search.method != "bilevel":  # no relaxed architecture to evaluate
        summary = json.loads((folder / "search" / "summary.json").read_text())
        return derived, {"seconds_of_search": summary["seconds"] + summary["compile_seconds"]}
    evaluator = supernet.evaluator(changed, folder, config.study.judged_batches)
    genotype, facts = derived, {}
    if source.choice == "perturbation":
        genotype = selection.perturbation(space, evaluator.state.architecture, evaluator, cell.seed)
    if source.choice == "proxy":
        drawn = genotypes.random_genotypes(config, config.study.candidates, salt=1000 + cell.seed)
        genotype, facts["proxy"] = selection.best(drawn, evaluator)
    return genotype, facts | _in_supernet(config, changed, folder, evaluator, genotype, source.rank)


def _in_supernet(
    config: ConfigDict,
    changed: ConfigDict,
    folder: pathlib.Path,
    evaluator: SupernetEvaluator,
    genotype: Genotype,
    rank: bool,
) -> dict[str, Any]:
    """Duration and probabilities of the search, and scores of the genotype with its weights."""
    summary = json.loads((folder / "search" / "summary.json").read_text())
    splits = load_splits(changed.data, split_crop(changed, "search"))
    network = build.network(changed)
    crop = changed.search.validation_crop
    score = Validation(network, splits.validation, changed.data, crop, sharding.make_mesh(1))
    logits, state = genotype_logits(genotype), evaluator.state
    recalibrated = {"params": state.params, "batch_stats": evaluator.recalibrate_batch_norm(logits)}
    inherited, own = score(state.variables, logits), score(recalibrated, logits)
    facts = {
        "relaxed": summary["validation"],
        "inherited": {"psnr": inherited.y_psnr, "ssim": inherited.y_ssim},
        "inherited_own_statistics": {"psnr": own.y_psnr, "ssim": own.y_ssim},
        "seconds_of_search": summary["seconds"] + summary["compile_seconds"],
        "probabilities": selection.softmax(state.architecture),
    }
    if rank:
        count = sum(cell.source.name == "random" for cell in grid.cells(config))
        facts["ranking"] = selection.best(genotypes.random_genotypes(config, count), evaluator)[1]
    return facts


def _is_done(config: ConfigDict, cell: grid.Cell, folder: pathlib.Path) -> bool:
    """Whether a cell has its file.

    Raises:
      UserError: the file is of another source, search, seed, training, space, losses or data.
    """
    file = folder / f"{cell.name}.json"
    if not file.exists():
        return False
    found = _read(file)
    found["space"] = found.get("genotype", {}).get("space", {})
    fields = _settings(config, cell) | {"space": config.space.to_dict()}
    for field, now in json.loads(json.dumps(fields)).items():
        before = found.get(field, now)  # earlier cells do not have all of it
        if field in ("train", "space", "objectives", "data", "study"):
            before = {key: before.get(key, value) for key, value in now.items()}
        if field == "source":
            before, now = ({**x, "cells": None, "tier": None} for x in (before, now))
        if before != now:
            raise UserError(
                f"{file} is from another {field} ({before}): remove it or rename the source"
            )
    return True


def _settings(config: ConfigDict, cell: grid.Cell) -> dict[str, Any]:
    """What a cell's result depends on besides the space, which its genotype has."""
    training = grid.changed(config, cell.seed, cell.source.changes)
    data = training.data.to_dict().items()
    return {
        "source": dataclasses.asdict(cell.source),
        "search": _search_of(config, cell),
        "seed": cell.seed,
        "train": training.train.to_dict(),
        "objectives": training.objectives.to_dict(),
        "data": {key: value for key, value in data if f"data.{key}" not in FREE_KEYS},
        "study": {key: config.study.get(key) for key in _CHOOSING},
    }


def _search_of(config: ConfigDict, cell: grid.Cell) -> dict[str, Any] | None:
    """How the search of a cell, or its budget, differs from the configuration; None without one."""
    search = config.study.searches.get(cell.source.search)
    return None if search is None else search.to_dict()


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text())
        if not isinstance(fields, dict) or not {"source", "trained", "macs"} <= fields.keys():
            raise ValueError("keys are missing")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({error}): remove it, and the cell will be run again"
        ) from None
    return fields


def main(config: ConfigDict, workdir: str) -> None:
    """Runs this machine's share of the study, or summarises the finished cells."""
    if "study" not in config:
        raise UserError("--config: no study in it; configs/study_rain100l.py has one")
    check_local(workdir)
    run(config, workdir, _INDEX.value, _COUNT.value, _ONLY.value, _SUMMARIZE.value)
