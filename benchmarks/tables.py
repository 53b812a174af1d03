"""Builds the documents' tables from results/: each stands between two comments that name it.

python -m benchmarks.tables           writes them into README.md, benchmarks/README.md and docs/
python -m benchmarks.tables --check   says which documents are out of date, and fails
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from benchmarks import run_tables, scaling_tables, speed_tables, study_tables
from benchmarks.markdown import ROOT, load, table

DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
RUNS = {
    "quickstart": "quickstart: embedded photographs, synthetic rain, 3 held out",
    "rain100l": "rain100l: Rain100L, 100 test pairs",
}

PRETRAINED = ("rain100l", "general")


def scores() -> str:
    """PSNR and SSIM of the runs, before and after, with what the network costs."""
    head = [
        "run", "PSNR / SSIM on Y", "on RGB", "parameters", "GFLOP a picture", "seconds a picture"
    ]  # fmt: skip
    rows = []
    for name, title in RUNS.items():
        if (run := load(name)) is None:
            continue
        result = run["evaluate"]
        before, after = (result["mean"][side] for side in ("input", "output"))
        rows.append(
            [
                title,
                *(
                    f"{before[f'{c}_psnr']:.2f} / {before[f'{c}_ssim']:.3f} → "
                    f"**{after[f'{c}_psnr']:.2f} / {after[f'{c}_ssim']:.3f}**"
                    for c in ("y", "rgb")
                ),
                *_costs(result),
            ]
        )
    return table(head, rows)


def budgets() -> str:
    """What the runs took and where they ran."""
    head = ["run", "search", "training", "seed", "machine", "commits, date"]
    rows = []
    for name in RUNS:
        if (run := load(name)) is None:
            continue
        origin = run["provenance"][-1]
        rows.append(
            [
                name,
                *(_budget(run[stage]) for stage in ("search", "train")),
                str(run["config"]["seed"]),
                f"{origin['machine']['processor']}, {origin['machine']['cores']} cores, "
                f"jax {origin['versions']['jax']}",
                ", ".join(dict.fromkeys(start["commit"][:9] for start in run["provenance"]))
                + f", {origin['date'][:10]}",
            ]
        )
    return table(head, rows)


def pretrained() -> str:
    """Scores of the weights in the package on Rain100L's test pairs, and what they cost."""
    head = [
        "weights", "PSNR / SSIM on Y", "with `--self-ensemble`", "parameters", "GFLOP a picture",
        "seconds a picture", "training, validation"
    ]  # fmt: skip
    rows = []
    for name in PRETRAINED:
        if (record := load(f"pretrained_{name}")) is None:
            continue
        result, train = record["evaluate"], record["training"]["train"]
        before, after, ensemble = (
            "{y_psnr:.2f} / {y_ssim:.3f}".format(**result["mean"][kind])
            for kind in ("input", "output", "self_ensemble")
        )
        rows.append(
            [
                f"[{name}](results/pretrained_{name}.svg)",
                f"{before} → **{after}**",
                ensemble,
                *_costs(result),
                f"{_budget(train)}, {train['validation']['psnr']:.2f} dB",
            ]
        )
    return table(head, rows)


TABLES = {
    "scores": scores,
    "budgets": budgets,
    "pretrained": pretrained,
    **scaling_tables.TABLES,
    **run_tables.TABLES,
    **study_tables.TABLES,
    **speed_tables.TABLES,
}


def fill(text: str) -> str:
    """The text with the tables in place of what stands between their comments."""
    for name, make in TABLES.items():
        block = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        made = make()
        text = block.sub(lambda match, made=made: f"{match[1]}{made}{match[2]}", text)
    return text


def _costs(result: dict[str, Any]) -> list[str]:
    """Parameters, GFLOP and seconds a picture."""
    return [
        f"{result['parameters']:,}",
        f"{2 * result['macs'] / 1e9:.1f} at {'x'.join(map(str, result['macs_at']))}",
        f"{result['seconds_a_picture']:.2f}",
    ]


def _budget(summary: dict[str, Any]) -> str:
    minutes = (summary["seconds"] + summary["compile_seconds"]) / 60
    return f"{summary['steps']:,} steps, {minutes:.0f} min"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for document in DOCUMENTS:
        before = document.read_text()
        after = fill(before)
        if before != after:
            stale.append(document.name)
            if not options.check:
                document.write_text(after)
    if options.check and stale:
        sys.exit(f"{', '.join(stale)}: run python -m benchmarks.tables")
