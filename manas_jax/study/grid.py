"""The grid of a study: sources of genotypes, and cells, each of one source with one seed."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from manas_jax.config import (
    ANY,
    NOT_NEGATIVE,
    at_least,
    check_values,
    one_of,
    search_budget,
    validate,
)
from manas_jax.errors import UserError, one_line
from manas_jax.search.uniform import uniform_within
from manas_jax.space import SearchSpace
from manas_jax.study import genotypes
from manas_jax.training import checks

CHOICES = (
    "derived", "perturbation", "proxy", "matched",  # from a search
    "within", "uniform",  # of a search's budget
    "random", "all_parallel", "all_fusion", "all_skip", "hand_made",
)  # fmt: skip
NEED_A_SEARCH, BUDGETED = CHOICES[:4], CHOICES[4:6]
NEED_A_SUPERNET = CHOICES[1:3]
FIXED = CHOICES[7:]

_STARTS = ("genotype", "weights", "inherit")  # keys of a training
_NAME = re.compile(r"[\w-]+")  # of files
_KEYS = {
    "study.seeds": (1, at_least(1)),
    "study.judged_batches": (1, at_least(1)),
    "study.candidates": (1, at_least(1)),
    "study.tolerance": (0.0, NOT_NEGATIVE),
}
_FIELDS = {
    "choice": ("", one_of(*CHOICES)),
    "search": ("", ANY),
    "cells": (1, at_least(1)),
    "tier": (0, ANY),
    "rank": (False, ANY),
}
"""Of a source, other than 'changes'."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where genotypes come from.

    Attributes:
      name: its name in tables.
      choice: one of `CHOICES`: 'derived', the one that a search finds; 'perturbation' and
        'proxy' (best of `study.candidates` random ones), those with which the search's supernet
        scores best; 'matched', random among those of the same cost as the derived one; 'within',
        random within the search's budget, and 'uniform', made by hand for it, see
        `uniform.uniform_within`; 'random'; and four that need no search, see `genotypes.fixed`.
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


def cells(config: ConfigDict) -> list[Cell]:
    """All cells in the order in which they run: by tier, then seed by seed over the sources.

    Raises:
      UserError: a key of the study is not valid; names it.
    """
    check_values(config, _KEYS)
    study = config.study
    for key in ("searches", "sources"):
        if not isinstance(study.get(key), ConfigDict):
            raise UserError(f"study.{key}: give a ConfigDict for each of them, by name")
        for name, fields in study[key].items():
            if not (_NAME.fullmatch(name) and isinstance(fields, ConfigDict)):
                raise UserError(
                    f"study.{key}.{name}: give a ConfigDict under a name of letters and digits"
                )
    sources = [_source(config, name) for name in sorted(study.sources)]
    found = [Cell(s, i, i % study.seeds) for s in sources for i in range(s.cells)]
    return sorted(found, key=lambda c: (c.source.tier, c.index, c.source.name))


def _source(config: ConfigDict, name: str) -> Source:
    """A source of the configuration, with defaults.

    Raises:
      UserError: a field is not valid; names it.
    """
    study, key = config.study, f"study.sources.{name}"
    fields = study.sources[name]
    if unknown := set(fields) - _FIELDS.keys() - {"changes"}:
        raise UserError(f"{key}: unknown {', '.join(sorted(unknown))}")
    given = {field: _FIELDS[field] for field in _FIELDS if field in fields or field == "choice"}
    check_values(config, {f"{key}.{field}": accepted for field, accepted in given.items()})
    if not isinstance(fields.get("changes", ConfigDict()), ConfigDict):
        raise UserError(f"{key}.changes: give a ConfigDict of keys")
    source = Source(name, **fields.to_dict())
    uses_search = source.choice in (*NEED_A_SEARCH, *BUDGETED) or source.rank
    if uses_search and source.search not in study.searches:
        raise UserError(
            f"{key}.search = {source.search!r}: give one of {', '.join(sorted(study.searches))}"
        )
    if source.rank and source.choice not in ("derived", *NEED_A_SUPERNET):
        raise UserError(f"{key}.rank: {source.choice} has no supernet to rank with, leave it out")
    if source.rank and "random" not in study.sources:
        raise UserError(f"{key}.rank: needs a source with the name random")
    return source


def check(config: ConfigDict, cells: Sequence[Cell]) -> None:
    """Checks the searches and trainings of cells, so that mistakes come out before the first.

    Raises:
      UserError: one could not run; names the key or the scene.
    """
    if starts := [key for key in _STARTS if config.train[key]]:
        raise UserError(f"train.{starts[0]}: a study finds the genotypes itself, leave it out")
    space = SearchSpace(**config.space)
    checks.check_candidates(space)
    runs: dict[tuple[str, str], ConfigDict] = {}  # stage and content -> configuration
    for source in {cell.source.name: cell.source for cell in cells}.values():
        key = f"study.sources.{source.name}.changes"
        _check_changes(key, source.changes)
        used = [("train", _valid(config, key, source.changes))]
        if source.search in config.study.searches:
            key = f"study.searches.{source.search}"
            changes = config.study.searches[source.search].to_dict()
            _check_changes(key, changes)
            search = _valid(config, key, changes)
            _check_search(source, search, f"study.sources.{source.name}")
            if source.choice in NEED_A_SEARCH:
                checks.check_budget(search)
                used.append(("search", search))
        if source.choice in FIXED:
            _check_fixed(space, source)
        runs |= {(stage, run.to_json_best_effort()): run for stage, run in used}
    for (stage, _), run in runs.items():
        checks.check_training(run, stage)


def _check_changes(key: str, changes: dict[str, Any]) -> None:
    """Refuses keys that the study sets itself, or takes from the configuration for all cells."""
    sections = {name: part for name, part in changes.items() if isinstance(part, dict)}
    own = [name for name in ("seed", "space") if name in changes]
    own += [f"train.{name}" for name in _STARTS if sections.get("train", {}).get(name)]
    if "precision" in sections.get("network", {}):  # `app.run_context` sets it once
        own.append("network.precision")
    if own:
        raise UserError(f"{key}.{own[0]}: all cells of a study have it in common, leave it out")


def _check_fixed(space: SearchSpace, source: Source) -> None:
    try:
        genotypes.fixed(space, source.choice)
    except (UserError, ValueError) as error:
        raise UserError(
            f"study.sources.{source.name}.choice = {source.choice!r}: {one_line(error)}"
        ) from None


def _check_search(source: Source, search: ConfigDict, key: str) -> None:
    budget = search_budget(search)
    if source.choice in BUDGETED and budget is None:
        raise UserError(
            f"{key}: its search {source.search} has no budget: set "
            f"study.searches.{source.search}.search.budget"
        )
    if source.choice == "uniform":
        uniform_within(SearchSpace(**search.space), budget)
    if (source.choice in NEED_A_SUPERNET or source.rank) and search.search.method != "bilevel":
        raise UserError(
            f"{key}: its search {source.search} is by search.method={search.search.method}, which "
            "has no relaxed architecture: leave out rank, or give another choice or search"
        )


def _valid(config: ConfigDict, key: str, changes: dict[str, Any]) -> ConfigDict:
    """The configuration with changes.

    Raises:
      UserError: it is not valid; names `key`.
    """
    try:
        return changed(config, 0, changes)
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{key}: {one_line(error)}") from None


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


def named(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells of these sources, and those of these names; all if there are no names.

    Raises:
      UserError: no cell has one of the names.
    """
    names = {name for cell in cells for name in (cell.name, cell.source.name)}
    if unknown := sorted(set(only) - names):
        sources = ", ".join(sorted({cell.source.name for cell in cells}))
        raise UserError(f"--only={','.join(unknown)}: no cell to run; the sources are {sources}")
    return [cell for cell in cells if not only or {cell.name, cell.source.name} & set(only)]


def changed(config: ConfigDict, seed: int, changes: dict[str, Any]) -> ConfigDict:
    """The configuration of one search or training of the study."""
    changed = plain(config)
    changed.seed = seed
    changed.lock().update(changes)
    validate(changed)
    return changed


def plain(config: ConfigDict) -> ConfigDict:
    """A copy without `study`."""
    plain = config.copy_and_resolve_references()  # a deep copy
    with plain.unlocked():
        del plain.study
    return plain
