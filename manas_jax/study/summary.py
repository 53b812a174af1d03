"""Statistics of the cells of a study: means, spread, paired differences, rankings; without JAX.

Intervals are those of Student's t at 95%, over seeds: cells of one seed share the seed of the
initial weights and the batches, so sources are compared per seed, each by the mean of its cells of
that seed. There is no correction for multiple comparisons.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from manas_jax.search import collapse
from manas_jax.space import COLUMNS

CONFIDENCE = 0.95

KINDS = {
    "bilevel": "bilevel search",
    "evolution": "evolution over a supernet",
    "random": "random search",
    "halving": "successive halving",
    "preferences": "halving of networks with preferences",
    "uniform": "hand-made, uniform",
    "within": "random",
    "paper": "hand-made of the paper's choices",
}
"""What makes the genotypes of configs/study_budget.py, and its label in tables and pictures;
'within' draws one at random within the budget."""

BUDGETS = ("small", "medium", "large")
"""Of configs/study_budget.py, whose sources are named KIND_BUDGET."""

# (source, baseline)
COMPARISONS = (
    ("first_order", "random"),
    ("first_order", "matched"),
    ("first_order", "frozen"),
    ("first_order", "all_parallel"),
    ("first_order", "all_fusion"),
    ("first_order", "all_skip"),
    ("first_order", "hand_made"),
    ("finite_difference", "first_order"),
    ("exact", "first_order"),
    ("first_order", "one_to_one"),
    ("first_order", "unregularized"),
    ("first_order", "decay"),
    ("first_order_long", "random_long"),
    ("first_order_long", "matched_long"),
    ("perturbation", "first_order"),
    ("perturbation", "random"),
    ("proxy", "first_order"),
    ("proxy", "random"),
    # Of configs/study_budget.py.
    *(
        (f"{ours}_{budget}", f"{theirs}_{budget}")
        for budget in BUDGETS
        for ours, theirs in itertools.permutations([k for k in KINDS if k != "paper"], 2)
    ),
)

ONE_GENOTYPE = ("all_parallel", "all_fusion", "all_skip", "hand_made")
MIN_RANKED = 16  # genotypes, below which tau of the longer training is meaningless
LONGER = {"first_order": "first_order_long", "matched": "matched_long", "random": "random_long"}

Cells = Mapping[str, Mapping[str, Any]]


def summarize(cells: Cells, planned: int | None = None) -> dict[str, Any]:
    """Everything that the tables show, JSON-ready.

    Args:
      cells: the result of `manas_jax.study.run.read_cells`.
      planned: number of cells of the finished study.
    """
    by_source = _by_source(cells)
    line = equal_cost_line(by_source.get("random", []))
    long_line = equal_cost_line(by_source.get("random_long", []))
    sources = {}
    for name, members in by_source.items():
        sources[name] = _source(members)
        if "gap" in sources[name] and "first_order" in by_source:
            sources[name]["gap_difference"] = paired(members, by_source["first_order"], _gap)
        # Compared with random genotypes of the same training.
        if line and not members[0]["source"]["changes"]:
            sources[name]["at_equal_macs"] = _above(line, members)
        elif long_line and name in LONGER.values():
            sources[name]["at_equal_macs_long"] = _above(long_line, members)
    comparisons = [
        {"of": a, "against": b, **paired(by_source[a], by_source[b])}
        for a, b in COMPARISONS
        if a in by_source and b in by_source
    ]
    long = by_source.get("random_long", [])
    origins = [cell["provenance"] for cell in cells.values() if "provenance" in cell]
    return {
        "cells": len(cells),
        "planned": planned,
        "hours": _hours(cells),
        "machines": sorted(
            {f"{o['machine']['processor']}, {o['machine']['cores']} cores" for o in origins}
        ),
        "commits": sorted({o["commit"] for o in origins}),
        "sources": sources,
        "comparisons": comparisons,
        "equal_cost_line": line,
        "equal_cost_line_long": long_line,
        "ranking": ranking(by_source.get("first_order", []), by_source.get("random", [])),
        "ranking_long": ranking(by_source.get("first_order", []), long)
        if len(long) >= MIN_RANKED
        else None,
        "repeatability": repeatability({n: by_source[n] for n in ONE_GENOTYPE if n in by_source}),
        "longer": longer(by_source),
        "agreement": _agreements(by_source),
    }


def interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Count, mean, standard deviation and the interval of the mean; for one value no spread."""
    values = [float(v) for v in values]
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"n": len(values), "mean": mean, "sd": None, "low": None, "high": None}
    deviation = float(np.std(values, ddof=1))
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return {
        "n": len(values),
        "mean": mean,
        "sd": deviation,
        "low": mean - float(reach),
        "high": mean + float(reach),
    }


def _psnr(cell: Mapping[str, Any]) -> float:
    return cell["trained"]["psnr"]


def over_seeds(cells: Sequence[Mapping]) -> dict[str, float | int | None]:
    """Count, mean and standard deviation of the PSNR of cells; the interval over their seeds."""
    seeds = interval(list(_by_seed(cells, _psnr).values()))
    ends = {end: seeds[end] for end in ("low", "high")}
    return interval([_psnr(cell) for cell in cells]) | ends


def paired(
    ours: Sequence[Mapping],
    theirs: Sequence[Mapping],
    value: Callable[[Mapping], float] = _psnr,
) -> dict[str, Any]:
    """PSNR (or another value) of one source minus that of another, over their common seeds."""
    a, b = (_by_seed(cells, value) for cells in (ours, theirs))
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    if not differences:
        return {"n": 0}
    decided = len(differences) > 1 and np.std(differences) > 0
    p = float(stats.ttest_1samp(differences, 0).pvalue) if decided else None
    return {**interval(differences), "p": p, "differences": differences}


def equal_cost_line(random: Sequence[Mapping]) -> dict[str, Any] | None:
    """PSNR of random genotypes as a line in log2 of their MACs, with one level per seed.

    Returns:
      'slope' (dB per doubling), 'center' (mean log2 MACs) and 'levels' (dB at the centre, by seed);
      None with too few genotypes for a slope.
    """
    seeds = collections.defaultdict(list)
    for cell in random:
        seeds[cell["seed"]].append((math.log2(cell["macs"]), cell["trained"]["psnr"]))
    within = [
        np.array(points) - np.mean(points, axis=0) for points in seeds.values() if len(points) > 1
    ]
    if not within or np.ptp(np.concatenate(within)[:, 0]) == 0:
        return None
    x, y = np.concatenate(within).T
    slope = float(np.sum(x * y) / np.sum(x * x))
    center = float(np.mean([x for points in seeds.values() for x, _ in points]))
    levels = {
        str(seed): float(np.mean([y + slope * (center - x) for x, y in points]))
        for seed, points in sorted(seeds.items())
    }
    return {"slope": slope, "center": center, "levels": levels}


def ranking(searched: Sequence[Mapping], random: Sequence[Mapping]) -> dict[str, Any] | None:
    """How well supernets, and MACs, rank the random genotypes compared with training each of them.

    The PSNR of a trained genotype is relative to the mean of its seed, so that differences between
    seeds do not count.
    """
    random = sorted(random, key=lambda cell: cell["index"])
    if len(random) < 3:
        return None
    means = _by_seed(random, _psnr)
    truth = [c["trained"]["psnr"] - means[c["seed"]] for c in random]
    judges = rankers(searched, random)
    supernets = [
        _tau([c["ranking"][r["index"]] for r in random], truth) | {"seed": c["seed"]}
        for c in judges
    ]
    result = {"genotypes": len(random), "macs": _tau([c["macs"] for c in random], truth)}
    if supernets:
        ranked = [c["ranking"] for c in judges]
        mean = np.mean([[r[c["index"]] for c in random] for r in ranked], axis=0)
        result["mean_of_supernets"] = _tau(mean, truth)
        result["supernets"] = supernets
        result["interval"] = interval([s["tau"] for s in supernets])
        pairs = itertools.combinations([[r[c["index"]] for c in random] for r in ranked], 2)
        between = [_tau(a, b)["tau"] for a, b in pairs]
        result["between_supernets"] = interval(between) if between else None
    return result


def rankers(searched: Sequence[Mapping], random: Sequence[Mapping]) -> list[Mapping]:
    """The cells whose supernets have scored all of the random genotypes."""
    last = max(cell["index"] for cell in random)
    return [cell for cell in searched if len(cell.get("ranking", [])) > last]


def repeatability(sources: Mapping[str, Sequence[Mapping]]) -> dict[str, Any] | None:
    """How much of the variance of PSNR is due to the genotype, and how much is residual.

    Two-way analysis of variance without interaction, over sources of one genotype each and the
    seeds that all of them have. The means of the seeds are removed first.

    Returns:
      'genotype' and 'rest', standard deviations in dB between genotypes and of the residual given
      seed and genotype; 'f' and 'p' of the differences between genotypes. None with too few cells.
    """
    by_seed = [_by_seed(cells, _psnr) for cells in sources.values()]
    seeds = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    rows, columns = len(by_seed), len(seeds)
    if rows < 2 or columns < 2:
        return None
    values = np.array([[scores[seed] for seed in seeds] for scores in by_seed])
    genotypes = values.mean(axis=1, keepdims=True)
    rest = values - genotypes - values.mean(axis=0) + values.mean()
    degrees = rows - 1, (rows - 1) * (columns - 1)
    between = columns * float(np.var(genotypes, ddof=1))
    within = float(np.sum(rest**2)) / degrees[1]
    return {
        "genotypes": rows,
        "seeds": columns,
        "genotype": math.sqrt(max(0.0, (between - within) / columns)),
        "rest": math.sqrt(within),
        "f": between / within if within else None,
        "p": float(stats.f.sf(between / within, *degrees)) if within else None,
    }


def longer(by_source: Mapping[str, Sequence[Mapping]]) -> dict[str, Any] | None:
    """Whether genotypes have the same ranking after longer training with the same seed.

    Both scores are relative to the mean of their seed.
    """
    pairs = collections.defaultdict(list)
    for short, long in LONGER.items():
        found = {c["index"]: c for c in by_source.get(long, [])}
        for cell in by_source.get(short, []):
            if cell["index"] in found:
                other = found[cell["index"]]
                pairs[cell["seed"]].append((cell["trained"]["psnr"], other["trained"]["psnr"]))
    rows = [row - np.mean(rows, axis=0) for rows in pairs.values() for row in np.array(rows)]
    if len(rows) < 3:
        return None
    short, long = np.array(rows).T
    return {
        "genotypes": len(rows),
        "short": float(np.std(short)),
        "long": float(np.std(long)),
        **_tau(short, long),
    }


def agreement(cells: Sequence[Mapping]) -> dict[str, Any] | None:
    """Fraction of equal decisions of two seeds, mean over all pairs; and the one by chance."""
    if len(cells) < 2:
        return None
    choices = {"columns": [], "attention": []}
    for cell in cells:
        genotype = cell["genotype"]
        choices["columns"].append([c for cells_ in genotype["columns"] for c in cells_])
        choices["attention"].append([e for c in genotype["attention"] for m in c for e in m])
    candidates = len(set(cells[0]["genotype"]["space"]["candidates"]) - {"none"})
    columns = len(cells[0]["genotype"]["space"].get("column_choices", COLUMNS))
    chance = {"columns": 1 / columns, "attention": 1 / candidates}
    return {
        kind: {
            "share": float(
                np.mean([np.mean(np.array(a) == b) for a, b in itertools.combinations(rows, 2)])
            ),
            "chance": chance[kind],
        }
        for kind, rows in choices.items()
    }


def _agreements(by_source: Mapping[str, Sequence[Mapping]]) -> dict[str, Any]:
    """Of each source with searches of its own, and of the first order with the same seeds."""
    found = {}
    for name, members in by_source.items():
        # A source with changes repeats the searches of another one.
        if "relaxed" not in members[0] or members[0]["source"]["changes"]:
            continue
        if agreed := agreement(members):
            seeds = {c["seed"] for c in members}
            same = [c for c in by_source.get("first_order", []) if c["seed"] in seeds]
            found[name] = {**agreed, "first_order_same_seeds": agreement(same)}
    return found


def _source(members: Sequence[Mapping]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "psnr": over_seeds(members),
        "ssim": interval([c["trained"]["ssim"] for c in members]),
        "macs": interval([c["macs"] for c in members]),
        "parameters": interval([c["parameters"] for c in members]),
        "seeds": sorted({c["seed"] for c in members}),
        "seconds_of_training": float(np.mean([c["seconds_of_training"] for c in members])),
    }
    columns = [x for c in members for cell in c["genotype"]["columns"] for x in cell]
    facts["fusion_share"] = columns.count("fusion") / len(columns) if columns else None
    for key in ("relaxed", "inherited", "inherited_own_statistics"):
        if all(key in c for c in members):
            facts[key] = interval([c[key]["psnr"] for c in members])
    if all("inherited" in c for c in members):
        facts["gap"] = interval([_gap(c) for c in members])
        facts["seconds_of_search"] = float(np.mean([c["seconds_of_search"] for c in members]))
        facts["entropy"] = {
            kind: interval([_entropy(c["probabilities"][kind]) for c in members])
            for kind in ("columns", "attention")
        }
    return facts


def _above(line: Mapping[str, Any], members: Sequence[Mapping]) -> dict[str, Any]:
    """PSNR above the line of random genotypes, at the same seed and MACs."""

    def residual(cell):
        at = math.log2(cell["macs"]) - line["center"]
        return cell["trained"]["psnr"] - line["levels"][str(cell["seed"])] - line["slope"] * at

    known = [c for c in members if str(c["seed"]) in line["levels"]]
    return interval(list(_by_seed(known, residual).values())) if known else {"n": 0}


def _gap(cell: Mapping[str, Any]) -> float:
    """Loss of PSNR by discretisation, in dB."""
    return cell["relaxed"]["psnr"] - cell["inherited"]["psnr"]


def _tau(a: Sequence[float], b: Sequence[float]) -> dict[str, float | None]:
    result = stats.kendalltau(a, b)
    if math.isnan(result.statistic):  # one of the two is constant
        return {"tau": 0.0, "p": None}
    return {"tau": float(result.statistic), "p": float(result.pvalue)}


def _entropy(rows: Any) -> float:
    return collapse.entropy(np.array(rows))


def _hours(cells: Cells) -> float:
    """Duration of searches (each counted once) and trainings, with their compilation."""
    searches = {}
    total = 0.0
    for cell in cells.values():
        total += cell["seconds_of_training"]
        if "seconds_of_search" in cell:
            # Earlier cells of searches by training counted no compilation.
            seconds = max(cell["seconds_of_search"], cell.get("seconds_of_choice", 0.0))
            searches[cell["source"]["search"], cell["seed"]] = seconds
    return (total + sum(searches.values())) / 3600


def _by_source(cells: Cells) -> dict[str, list[Mapping]]:
    groups = collections.defaultdict(list)
    for cell in cells.values():
        groups[cell["source"]["name"]].append(cell)
    return {name: sorted(members, key=lambda c: c["index"]) for name, members in groups.items()}


def _by_seed(cells: Sequence[Mapping], value) -> dict[int, float]:
    groups = collections.defaultdict(list)
    for cell in cells:
        groups[cell["seed"]].append(value(cell))
    return {seed: float(np.mean(values)) for seed, values in groups.items()}
