"""Tables of docs/study.md, made of results/study/."""

from __future__ import annotations

import textwrap
from typing import Any

from benchmarks.tables import load, table
from manas_jax.study.page import interval_text, mean_text

# In the order of the tables.
TITLES = {
    "first_order": "search, first order",
    "finite_difference": "search, finite difference",
    "exact": "search, exact second order",
    "random": "random",
    "matched": "random, MACs as the first-order search's",
    "first_order_long": "search, first order; trained 4x as long",
    "random_long": "random; trained 4x as long",
    "matched_long": "random, MACs as the first-order search's; trained 4x as long",
    "frozen": "search with the architecture frozen",
    "all_parallel": "all parallel, SE",
    "all_fusion": "all fusion, SE",
    "hand_made": "alternating columns, SE",
    "all_skip": "alternating columns, no attention on the edges",
    "one_to_one": "first-order search's, trained one to one",
    "unregularized": "search without regularization",
    "decay": "search with weight decay 1e-3 on the architecture",
    "complexity_0": "search, complexity weight 0",
    "complexity_01": "search, complexity weight 0.1",
    "complexity_1": "search, complexity weight 1",
    "perturbation": "first-order supernet, choice by perturbation",
    "proxy": "first-order supernet, best of random ones",
}
SWEEP = {"complexity_0": "0", "first_order": "0.01", "complexity_01": "0.1", "complexity_1": "1"}


def overview() -> str:
    """Every source of genotypes, and its gain over random ones of equal MACs."""
    summary = load("study/summary")
    head = [
        "genotypes from", "cells, seeds", "validation PSNR", "million MACs",
        "above random at equal MACs",
    ]  # fmt: skip
    rows = [
        [
            TITLES.get(name, name),
            f"{source['psnr']['n']}, {len(source['seeds'])}",
            mean_text(source["psnr"]),
            f"{source['macs']['mean'] / 1e6:.0f}",
            "0, by definition"
            if name == "random"
            else interval_text(source.get("at_equal_macs", source.get("at_equal_macs_long"))),
        ]
        for name, source in _ordered(summary)
    ]
    return facts(summary, load("study/config")) + "\n" + table(head, rows)


def comparisons() -> str:
    """Paired differences."""
    summary = load("study/summary")
    rows = [
        [
            TITLES.get(row["of"], row["of"]),
            TITLES.get(row["against"], row["against"]),
            str(row["n"]),
            interval_text(row),
            "–" if row.get("p") is None else f"{row['p']:.3f}",
        ]
        for row in summary["comparisons"]
        if row["n"]
    ]
    return table(["", "minus", "seeds", "dB, 95% interval", "p"], rows)


def gaps() -> str:
    """Cost of discretisation: relaxed, derived with inherited weights, trained alone."""
    summary = load("study/summary")
    head = [
        "search", "relaxed supernet", "derived, inherited weights", "with its own statistics",
        "trained alone", "gap", "gap minus first order's", "entropy of columns, attention",
    ]  # fmt: skip
    rows = [
        [
            TITLES.get(name, name),
            *(
                mean_text(s[k])
                for k in ("relaxed", "inherited", "inherited_own_statistics", "psnr")
            ),
            mean_text(s["gap"]),
            "–" if name == "first_order" else interval_text(s.get("gap_difference")),
            ", ".join(f"{s['entropy'][k]['mean']:.0%}" for k in ("columns", "attention")),
        ]
        for name, s in _ordered(summary)
        if "relaxed" in s and "at_equal_macs" in s  # each supernet once
    ]
    return table(head, rows)


def front() -> str:
    """The complexity weight swept."""
    summary = load("study/summary")
    head = ["complexity weight", "cells", "million MACs", "parameters", "fusion columns", "PSNR"]
    rows = [
        [
            weight,
            str(s["psnr"]["n"]),
            mean_text(s["macs"], 1e-6, 0),
            mean_text(s["parameters"], 1, 0),
            f"{s['fusion_share']:.0%}",
            mean_text(s["psnr"]),
        ]
        for name, weight in SWEEP.items()
        if (s := summary["sources"].get(name))
    ]
    return table(head, rows)


def agreements() -> str:
    """Agreement between searches with different seeds."""
    summary = load("study/summary")
    head = ["search", "seeds", "columns (chance)", "attention edges (chance)",
            "first order's edges, same seeds"]  # fmt: skip
    rows = [
        [
            TITLES.get(name, name),
            str(len(summary["sources"][name]["seeds"])),
            *(f"{a[k]['share']:.0%} ({a[k]['chance']:.1%})" for k in ("columns", "attention")),
            "–"
            if not (same := a["first_order_same_seeds"])
            else f"{same['attention']['share']:.0%}",
        ]
        for name in TITLES
        if (a := summary["agreement"].get(name))
    ]
    return table(head, rows)


def rankings() -> str:
    """Kendall's tau of rankings known without training and those by training alone."""
    summary = load("study/summary")
    found = {
        f"{r['genotypes']} random genotypes, {how}": _taus(r)
        for key, how in (("ranking", "trained"), ("ranking_long", "trained 4x as long"))
        if (r := summary[key])
    }
    names = dict.fromkeys(name for taus in found.values() for name in taus)
    rows = [[name, *(taus.get(name, "–") for taus in found.values())] for name in names]
    return table(["tau (p) of the ranking by", *found], rows)


def _taus(found: dict[str, Any]) -> dict[str, str]:
    def text(entry: dict[str, Any]) -> str:
        return f"{entry['tau']:+.2f} ({_p(entry['p'])})"

    taus = {f"supernet of seed {s['seed']}": text(s) for s in found.get("supernets", [])}
    if "interval" in found:
        taus["these, mean and 95% interval"] = interval_text(found["interval"])
        taus["mean of the supernets' scores"] = text(found["mean_of_supernets"])
        if found.get("between_supernets"):
            taus["one supernet against another"] = f"{found['between_supernets']['mean']:+.2f}"
    taus["MACs alone"] = text(found["macs"])
    return taus


def noise() -> str:
    """How much of the differences between trained networks is due to the genotypes."""
    summary = load("study/summary")
    rows = []
    if found := summary["repeatability"]:
        what = f"{found['genotypes']} genotypes x {found['seeds']} seeds"
        rows += [
            [f"standard deviation of the genotypes, dB ({what})", f"{found['genotype']:.2f}"],
            ["standard deviation that seed and genotype leave, dB", f"{found['rest']:.2f}"],
            ["F of the genotypes, p", f"{found['f']:.2f}, {found['p']:.3f}"],
        ]
    if found := summary["longer"]:
        tau = f"{found['tau']:+.2f}, {_p(found['p'])}"
        rows += [
            [f"tau of {found['genotypes']} genotypes' scores, short against long training, p", tau],
            ["standard deviation within a seed, dB, short training", f"{found['short']:.2f}"],
            ["standard deviation within a seed, dB, long training", f"{found['long']:.2f}"],
        ]
    return table(["", ""], rows) if rows else ""


def gradients() -> str:
    """Signal and noise of the architecture's gradient."""
    measured = load("study/gradients")["rows"]
    head = [
        "search", "logits", "at", "mean gradient", "standard deviation of one batch", "ratio",
        "pull of a weight decay of 1e-3",
    ]  # fmt: skip
    rows = []
    for name in dict.fromkeys(row["search"] for row in measured):
        members = [row for row in measured if row["search"] == name]
        for kind in ("columns", "attention"):
            for at in ("found", "even"):
                values = [row[at][kind] for row in members]
                mean, deviation, ratio = (
                    sum(v[k] for v in values) / len(values) for k in ("mean", "deviation", "ratio")
                )
                pull = sum(row["decay"][kind] for row in members) / len(members)
                rows.append(
                    [
                        f"{TITLES.get(name, name)} ({len(members)} seeds)", kind, at,
                        f"{mean:.1e}", f"{deviation:.1e}", f"{ratio:.2f}",
                        f"{pull:.1e}" if at == "found" else "0",
                    ]
                )  # fmt: skip
    return table(head, rows)


TABLES = {
    "study_noise": noise,
    "study_gradients": gradients,
    "study": overview,
    "study_comparisons": comparisons,
    "study_gaps": gaps,
    "study_front": front,
    "study_agreement": agreements,
    "study_ranking": rankings,
}


def facts(summary: dict[str, Any], config: dict[str, Any]) -> str:
    """How large a study is, and its trainings."""
    data, search, train = (config[k] for k in ("data", "search", "train"))
    patches = train["scenes"] * data["versions"]
    cells = f"{summary['cells']} cells"
    if summary["planned"] and summary["planned"] != summary["cells"]:
        cells = f"{summary['cells']} of {summary['planned']} planned cells"
    text = (
        f"{cells}, {summary['hours']:.1f} hours of searching and training on "
        f"one core ({'; '.join(summary['machines'])}): "
        f"{search['steps']} steps per search, {train['steps']} steps per training, {patches} "
        f"patches of {train['crop']}x{train['crop']} per step; scored on the middle "
        f"{train['validation_crop']}x{train['validation_crop']} of "
        f"{data['validation_scenes']} training pairs used for nothing else. "
        "In brackets 95% intervals."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def _ordered(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    names = [n for n in TITLES if n in summary["sources"]]
    names += sorted(summary["sources"].keys() - TITLES.keys())
    return [(name, summary["sources"][name]) for name in names]


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
