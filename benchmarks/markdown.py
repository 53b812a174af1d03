"""What all tables of the documents need."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def load(name: str) -> Any:
    """What `results/NAME.json` holds, or None where there is none."""
    file = ROOT / "results" / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def machine(provenance: dict[str, Any]) -> str:
    """Where and when a result was made, with its commit."""
    made = provenance["machine"]
    return (
        f"{made['processor']}, {made['cores']} cores, jax {provenance['versions']['jax']}, commit "
        f"{provenance['commit'][:9]}, {provenance['date'][:10]}"
    )
