"""Builds the documents' tables from results/: each stands between two comments that name it.

python -m benchmarks.tables           writes them into the Markdown documents
python -m benchmarks.tables --check   names the documents that are out of date, and fails
"""

from __future__ import annotations

import argparse
import re
import sys

from benchmarks import ROOT
from benchmarks.tables import budget, downstream, latency, pod, runs, scaling, speed, study

DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "launch" / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
TABLES = {
    **budget.TABLES,
    **downstream.TABLES,
    **latency.TABLES,
    **pod.TABLES,
    **runs.TABLES,
    **scaling.TABLES,
    **speed.TABLES,
    **study.TABLES,
}
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str) -> str:
    """The text with each table up to date.

    Raises:
      KeyError: it names an unknown table.
    """
    return BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
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


if __name__ == "__main__":
    main()
