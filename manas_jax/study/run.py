"""A study: networks from many sources, trained alike, to see whether the search is worth its cost.

python -m manas_jax.study --config=configs/study_rain100l.py --workdir=DIR \\
    --config.data.root=DIR [--index=I --count=N]

Genotypes come from a source: a search, chance, or a person. A cell is one source with one seed: its
genotype, trained with the training budget of the study and scored on the validation scenes. Cells
of one seed have the same initial weights' seed and the same batches. Each cell is a function of the
configuration alone and writes one file, DIR/cells/NAME.json; the command, run again, continues with
the cells that have none. DIR/summary.json aggregates them. With --index and --count it runs its
share of the cells, so that N machines run all, in one shared folder or in one each; the files of
all machines, copied into one folder cells/, form one study. A cell that another process runs is
refused.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
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
from manas_jax.config import budget, validate
from manas_jax.cost import Budget
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.models.network import genotype_logits
from manas_jax.runtime import sharding, signals
from manas_jax.search import methods, selection
from manas_jax.search import run as search_run
from manas_jax.search.sampling import random_within
from manas_jax.search.selection import SupernetEvaluator
from manas_jax.space import COLUMNS, Genotype, SearchSpace, assemble, random_genotype
from manas_jax.study import summary as study_summary
from manas_jax.training import build
from manas_jax.training import run as train_run
from manas_jax.training.evaluator import Validation
from manas_jax.workdir import lock, provenance
from manas_jax.workdir.claim import claim_inputs, claim_workdir

CHOICES = (
    "derived", "perturbation", "proxy", "matched",  # from a search
    "within", "uniform",  # of a search's budget
    "random", "all_parallel", "all_fusion", "all_skip", "hand_made",
)  # fmt: skip
NEED_A_SEARCH, BUDGETED = CHOICES[:4], CHOICES[4:6]
_MAX_DRAWS = 100_000

_INDEX = flags.DEFINE_integer("index", 0, "Index of this machine, from 0.")
_COUNT = flags.DEFINE_integer("count", 1, "Number of machines that share the cells.")
_SUMMARIZE = flags.DEFINE_bool("summarize", False, "Summarise the finished cells, run none.")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where genotypes come from.

    Attributes:
      name: its name in tables.
      choice: one of `CHOICES`: 'derived', the likeliest choices of a search; 'perturbation' and
        'proxy' (best of `study.candidates` random ones), those with which the search's supernet
        scores best; 'matched', random among those of the same cost as the derived one; 'within',
        random within the search's budget, and 'uniform', made by hand for it, see `uniform_within`;
        'random'; and four that need no search, see `fixed`.
      search: which search of `study.searches`, if the choice is from one or from its budget.
      cells: number of cells; cell i has seed i modulo `study.seeds`.
      tier: cells of lower tiers run first.
      changes: keys of the configuration in which its training differs from the study.
      rank: whether the search's supernet also ranks the genotypes of the source 'random'.
    """

    name: str
    choice: str
    search: str = ""
    cells: int = 4
    tier: int = 0
    changes: Any = dataclasses.field(default_factory=dict)
    rank: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """One source with one seed."""

    source: Source
    index: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the cell and, with '.json', of its file."""
        return f"{self.source.name}-{self.index:02d}"


def grid(config: ConfigDict) -> list[Cell]:
    """All cells in the order in which they run: by tier, then seed by seed over the sources.

    Raises:
      UserError: a source is not valid; names it.
    """
    study = config.study
    sources = []
    for name, fields in sorted(study.sources.items()):
        fields = fields.to_dict()
        known = {field.name for field in dataclasses.fields(Source)} - {"name"}
        if unknown := fields.keys() - known:
            raise UserError(f"study.sources.{name}: unknown {', '.join(sorted(unknown))}")
        if fields.get("choice") not in CHOICES:
            raise UserError(
                f"study.sources.{name}.choice = {fields.get('choice')!r}: "
                f"give one of {', '.join(CHOICES)}"
            )
        source = Source(name, **fields)
        named = source.choice in (*NEED_A_SEARCH, *BUDGETED) or source.rank
        if named and source.search not in study.searches:
            raise UserError(
                f"study.sources.{name}.search = {source.search!r}: "
                f"give one of {', '.join(sorted(study.searches))}"
            )
        if source.choice in BUDGETED:
            changes = study.searches[source.search].get("search", {})
            if not changes.get("budget", config.search.budget):
                raise UserError(
                    f"study.sources.{name}: its search {source.search} has no budget: set "
                    f"study.searches.{source.search}.search.budget"
                )
        sources.append(source)
    cells = [Cell(s, i, i % study.seeds) for s in sources for i in range(s.cells)]
    return sorted(cells, key=lambda c: (c.source.tier, c.index, c.source.name))


def shard(cells: Sequence[Cell], index: int, count: int) -> list[Cell]:
    """The cells of one of `count` machines; those of one search are on the same machine.

    Raises:
      UserError: index or count out of range.
    """
    if count < 1 or not 0 <= index < count:
        raise UserError(f"--index={index} --count={count}: give 0 <= index < count")
    groups: dict[Any, list[Cell]] = collections.defaultdict(list)
    for cell in cells:
        shared = cell.source.choice in NEED_A_SEARCH
        groups[(cell.source.search, cell.seed) if shared else cell.name].append(cell)
    mine = {cell.name for group in list(groups.values())[index::count] for cell in group}
    return [cell for cell in cells if cell.name in mine]


def read_cells(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The contents of the files of the finished cells in a folder, by name.

    Raises:
      UserError: a file is damaged; names it.
    """
    return {file.stem: _read(file) for file in sorted(pathlib.Path(folder).glob("*.json"))}


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    index: int = 0,
    count: int = 1,
    summarize_only: bool = False,
) -> None:
    """Runs the unfinished cells of this machine; see the module.

    Raises:
      UserError: what the user can correct; the message says how. So is a cell or a search that
        another process runs, as with the same index.
      Stopped: a signal came; run again, the current cell is resumed.
    """
    plain = _plain(config)  # cells may be added to a study that has begun
    validate(plain)
    planned = grid(config)
    cells = shard(planned, index, count)
    workdir = claim_workdir(plain, workdir)
    if not summarize_only:
        claim_inputs(plain, workdir, {"search": load_splits(plain.data, plain.search.crop)})
    with app.run_context(plain, workdir):
        folder = workdir / "cells"
        folder.mkdir(exist_ok=True)
        done = {cell.name for cell in cells if _is_done(cell, folder)}
        todo = [] if summarize_only else [cell for cell in cells if cell.name not in done]
        logging.info("study: %d cells, %d of them done", len(cells), len(done))
        begin = time.monotonic()
        for number, cell in enumerate(todo, 1):
            with lock.hold(workdir / "trainings" / cell.name):
                if _is_done(cell, folder):  # since this start, by another process
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
    """Aggregates the finished cells in `summary.json`."""
    file = workdir / "summary.json"
    write_json(file, study_summary.summarize(read_cells(workdir / "cells"), planned))
    return file


def run_cell(config: ConfigDict, cell: Cell, workdir: pathlib.Path) -> dict[str, Any]:
    """Finds the genotype of a cell and trains it.

    Returns:
      The content of the cell's file.

    Raises:
      UserError: as for search and training.
    """
    start = time.monotonic()
    genotype, facts = _genotype(config, cell, workdir)
    facts["seconds_of_choice"] = time.monotonic() - start
    training = _changed(config, cell.seed, cell.source.changes)
    folder = workdir / "trainings" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    genotype.save(folder / "genotype.json")
    train_run.train(training, folder)
    summary = json.loads((folder / "train" / "summary.json").read_text())
    total = cost.derived(genotype, *config.objectives.complexity_size)
    return {
        "source": dataclasses.asdict(cell.source),
        "index": cell.index,
        "seed": cell.seed,
        **facts,
        "genotype": json.loads(genotype.to_json()),
        "parameters": total.parameters,
        "macs": total.macs,
        "trained": summary["validation"],
        "seconds_of_training": summary["seconds"] + summary["compile_seconds"],
        "provenance": provenance.describe(),
    }


def fixed(space: SearchSpace, choice: str) -> Genotype:
    """A genotype that needs no search.

    'all_parallel', 'all_fusion' and 'hand_made', whose columns alternate, have SE on every edge;
    'all_skip' is 'hand_made' with skip connections on the edges.
    """
    uniform = {"all_parallel": ("parallel",), "all_fusion": ("fusion",)}
    columns = itertools.cycle(uniform.get(choice, COLUMNS))
    edge = "skip_connect" if choice == "all_skip" else "SE"
    return Genotype(
        space,
        tuple(tuple(next(columns) for _ in range(n)) for n in space.columns),
        tuple(tuple((edge,) * space.edges for _ in range(n)) for n in space.branches),
    )


def uniform_within(space: SearchSpace, limit: Budget) -> Genotype:
    """The dearest genotype within a budget of those that a person would make.

    The first columns alternate, as many in each cell, and the rest are left out; all residual
    blocks have one width; all edges have SE.

    Raises:
      UserError: none is within the budget, or the space has no such genotypes.
    """
    alternating = fixed(space, "hand_made").columns
    made = []
    for depth, width in itertools.product(range(max(space.columns) + 1), space.widths):
        columns = [
            [choice if i < depth else "identity" for i, choice in enumerate(cell)]
            for cell in alternating
        ]
        blocks = len(space.residual_blocks)
        picks = {
            "columns": [choice for cell in columns for choice in cell],
            "attention": ["SE"] * len(space.modules) * space.edges,
            "widths": [width] * blocks,
        }
        made.append(assemble(space, picks))
    within = [genotype for genotype in made if limit.cost(genotype) <= limit.limit]
    if not within:
        raise UserError(
            f"study: no uniform genotype costs at most {limit.limit:,} {limit.unit}: give a larger "
            "search.budget or leave out the sources with the choice 'uniform'"
        )
    return max(within, key=limit.cost)


def random_genotypes(config: ConfigDict, count: int, salt: int = 0) -> list[Genotype]:
    """The first `count` random genotypes of the study; another salt gives other ones."""
    space = SearchSpace(**config.space)
    return [random_genotype(space, 1_000_000 * salt + i) for i in range(count)]


def matched(config: ConfigDict, genotype: Genotype, salt: int) -> Genotype:
    """Another, random genotype whose MACs differ by at most the fraction `study.tolerance`.

    Raises:
      UserError: none of many draws is that close.
    """
    size, tolerance = config.objectives.complexity_size, config.study.tolerance
    wanted = cost.derived(genotype, *size).macs
    for i in range(_MAX_DRAWS):
        drawn = random_genotype(genotype.space, 1_000_000 * (salt + 1) + i)
        if abs(cost.derived(drawn, *size).macs / wanted - 1) <= tolerance and drawn != genotype:
            return drawn
    raise UserError(
        f"study.tolerance = {tolerance}: none of {_MAX_DRAWS} random genotypes costs as much as "
        "the one that the search found; give a larger tolerance"
    )


def _genotype(
    config: ConfigDict, cell: Cell, workdir: pathlib.Path
) -> tuple[Genotype, dict[str, Any]]:
    """The genotype of a cell, and what was measured while finding it."""
    source, space = cell.source, SearchSpace(**config.space)
    if source.choice == "random":
        return random_genotypes(config, cell.index + 1)[-1], {}
    if source.choice not in (*NEED_A_SEARCH, *BUDGETED):
        return fixed(space, source.choice), {}

    changed = _changed(config, cell.seed, config.study.searches[source.search].to_dict())
    if source.choice == "within":
        return random_within(space, budget(changed), cell.index), {}
    if source.choice == "uniform":
        return uniform_within(space, budget(changed)), {}
    folder = workdir / "searches" / f"{source.search}-{cell.seed:02d}"
    with lock.hold(folder):
        derived = methods.search(changed, folder)
    if source.choice == "matched":
        return matched(config, derived, cell.index), {}
    if changed.search.method != "bilevel":  # no relaxed architecture to evaluate
        summary = json.loads((folder / "search" / "summary.json").read_text())
        return derived, {"seconds_of_search": summary["seconds"]}
    evaluator = search_run.supernet_evaluator(changed, folder, config.study.judged_batches)
    genotype, facts = derived, {}
    if source.choice == "perturbation":
        genotype = selection.perturbation(space, evaluator.state.architecture, evaluator, cell.seed)
    if source.choice == "proxy":
        drawn = random_genotypes(config, config.study.candidates, salt=1000 + cell.seed)
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
    splits = load_splits(changed.data, changed.search.crop)
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
        count = config.study.sources.random.cells
        facts["ranking"] = selection.best(random_genotypes(config, count), evaluator)[1]
    return facts


def _changed(config: ConfigDict, seed: int, changes: dict[str, Any]) -> ConfigDict:
    """The configuration of one search or training of the study."""
    changed = _plain(config)
    changed.seed = seed
    changed.update(changes)
    validate(changed)
    return changed


def _plain(config: ConfigDict) -> ConfigDict:
    """A copy without `study`."""
    plain = config.copy_and_resolve_references()  # a deep copy
    with plain.unlocked():
        del plain.study
    return plain


def _is_done(cell: Cell, folder: pathlib.Path) -> bool:
    file = folder / f"{cell.name}.json"
    if not file.exists():
        return False
    before, now = (
        {k: v for k, v in fields.items() if k not in ("cells", "tier")}
        for fields in (
            _read(file)["source"],
            json.loads(json.dumps(dataclasses.asdict(cell.source))),
        )
    )
    if before != now:
        raise UserError(f"{file} is from another source ({before}): remove it or rename the source")
    return True


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
    run(config, workdir, _INDEX.value, _COUNT.value, _SUMMARIZE.value)
