"""The tutorials: their code runs, in the order of the page, with fewer steps."""

import itertools
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
TINY = {
    "space.channels": (4, 8),
    "space.branches": (1, 2),
    "space.columns": (1, 1),
    "space.candidates": ("none", "SE"),
    "search.candidates": 2,
    "data.validation_scenes": 2,
    **{
        f"{stage}.{key}": value
        for key, value in (("steps", 4), ("scenes", 2), ("crop", 32), ("validation_crop", 32))
        for stage in ("search", "train")
    },
}
TINY_FLAGS = " ".join(shlex.quote(f"--config.{key}={value}") for key, value in TINY.items())
SMALLER = {
    "accelerators": {
        "--config.devices=2": "--config.devices=2 --config.stage=search " + TINY_FLAGS
    },
    "budget": {
        "--config.search.budget=8": f"--config.search.budget=0.07 {TINY_FLAGS}",
        "8e9": "0.07e9",
    },
    "own_data": {"--config=rain100l": f"--config=rain100l {TINY_FLAGS}"},
    "tracking": {"--config=quickstart": "--config=tiny"},
    "fine_tune": {"--config.train.steps=2000": "--config.train.steps=2 --config.train.crop=32"},
    "own_candidate": {"--config=quickstart": "--config=tiny"},
}
"""What is replaced in a tutorial, so that a test takes seconds."""


def blocks(tutorial):
    """(language, code) of a page; the Python code that begins with `# NAME.py` is of a file."""
    text = tutorial.read_text()
    for written, smaller in SMALLER.get(tutorial.stem, {}).items():
        assert written in text
        text = text.replace(written, smaller)
    return re.findall(r"^```(python|bash)\n(.*?)^```", text, re.M | re.S)


NEEDS = {"tracking": "wandb"}
"""Packages that only a tutorial needs."""


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=[file.stem for file in TUTORIALS])
def test_code_runs(tutorial, tmp_path, monkeypatch):
    if needed := NEEDS.get(tutorial.stem):
        pytest.importorskip(needed)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for folder in (".git", "configs", "launch"):  # the current folder is as a checkout
        (tmp_path / folder).symlink_to(ROOT / folder)
    found = []
    for language, code in blocks(tutorial):
        if name := re.match(r"# (\w+\.py)\n", code):
            (tmp_path / name[1]).write_text(code)
        else:
            found.append((language, code))
    assert found
    for language, neighbours in itertools.groupby(found, key=lambda block: block[0]):
        program = "".join(code for _, code in neighbours)
        start = [sys.executable, "-c"] if language == "python" else ["bash", "-e", "-c"]
        _run([*start, program], tmp_path)


def _run(command, folder):
    """Runs a command with this interpreter as `python`."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
