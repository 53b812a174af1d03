"""Markdown tables of the documents, made of the files in results/.

Each module here has `TABLES`, names of tables -> functions that return their text; `__main__` is
the command that writes them into the documents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks import RESULTS


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def load(name: str) -> Any:
    """The contents of `results/NAME.json`."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def origin(provenance: dict[str, Any]) -> str:
    """Machine, versions, commit and date of a result."""
    machine = provenance["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, jax {provenance['versions']['jax']}, "
        f"commit {provenance['commit'][:9]}, {provenance['date'][:10]}"
    )
