"""Writes the repository's address from pyproject.toml into the notebooks.

python -m notebooks.address
"""

from __future__ import annotations

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
_HOST = "https://github.com/"
_CLONED = re.compile(rf"(?<=git clone --quiet --depth 1 {re.escape(_HOST)})[\w.-]+/[\w.-]+")


def repository() -> str:
    """OWNER/NAME in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["urls"]["Repository"].removeprefix(_HOST)


def fill(text: str, name: str) -> str:
    """Replaces every address in the text by `name`, OWNER/NAME."""
    return _CLONED.sub(name, text)


def found(text: str) -> list[str]:
    """Every address in the text."""
    return _CLONED.findall(text)


if __name__ == "__main__":
    for file in FILES:
        file.write_text(fill(file.read_text(), repository()))
