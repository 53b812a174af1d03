"""The tutorials: their code runs, in the order of the page, with fewer steps."""

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
}
"""What is replaced in a tutorial, so that a test takes seconds."""


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=[file.stem for file in TUTORIALS])
def test_code_runs(tutorial, tmp_path):
    text = tutorial.read_text()
    for written, smaller in SMALLER.get(tutorial.stem, {}).items():
        assert written in text
        text = text.replace(written, smaller)
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```", text, re.M | re.S)
    assert blocks
    program = "".join(code for language, code in blocks if language == "python")
    _run([sys.executable, "-c", program], tmp_path)
    commands = "".join(code for language, code in blocks if language == "bash")
    _run(["bash", "-e", "-c", commands], tmp_path)


def _run(command, folder):
    """Runs a command with this interpreter as `python`."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
