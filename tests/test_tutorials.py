"""The tutorials: their code runs, in the order of the page, with fewer steps."""

import itertools
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
SMALLER = {
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


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=[file.stem for file in TUTORIALS])
def test_code_runs(tutorial, tmp_path):
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
