"""launch/check_accelerator.sh: what it would run, and on the CPU that it runs."""

import json
import os
import pathlib
import shlex
import subprocess

import pytest
from conftest import ROOT
from launchers import assert_refused, launch

from benchmarks.cases import CASES


def test_dry_run(tmp_path):
    finished = launch("check_accelerator.sh", "--dry-run", f"--out={tmp_path / 'new'}")
    run, agreement, speed = map(shlex.split, finished.stdout.splitlines())
    assert run[:4] == ["python", "-m", "manas_jax.main", "--config=configs/quickstart.py"]
    assert agreement[3:7] == ["python", "-m", "benchmarks.agreement", "--platform=cuda"]
    assert speed[1:3] == ["-m", "benchmarks.speed"] and set(speed[3:-1]) <= CASES.keys()
    folders = [pathlib.Path(line[-1].partition("=")[2]).parent for line in (run, agreement, speed)]
    assert set(folders) == {tmp_path / "new"} and not folders[0].exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--platform="], "--platform=: give JAX's name"),
        (["--platform=a b"], "--platform=a b: give JAX's name"),
        (["--out=tests"], "tests exists already"),
        (["--fast"], "--fast: unknown"),
        (["--platform=abacus"], "JAX finds no device of the platform abacus: install"),
    ],
)
def test_refuses(arguments, message):
    assert_refused(launch("check_accelerator.sh", *arguments), message)


@pytest.mark.slow
def test_on_the_cpu(tmp_path):
    out = tmp_path / "out"
    finished = subprocess.run(
        ["bash", ROOT / "launch" / "check_accelerator.sh", "--platform=cpu", f"--out={out}"],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.startswith("launch: cpu\n") and "everything ran" in finished.stderr
    cpu, other = json.loads((out / "agreement.json").read_text())["float32"]
    assert cpu["device"] == other["device"] == "cpu"
    assert other["search"]["losses"] == other["train"]["losses"] == 0
    assert (out / "quickstart" / "weights.safetensors").exists()
    assert json.loads((out / "speed.json").read_text())
