"""The weights that ship with the package, and the two names that `manas_jax` itself offers."""

import pathlib
import subprocess
import sys

import pytest

import manas_jax
from manas_jax import cost, derain
from manas_jax.errors import UserError
from manas_jax.inference import pretrained
from manas_jax.inference.derainer import Derainer
from manas_jax.workdir.weights import load_derived


def test_lists_names_in_order():
    assert manas_jax.list_pretrained() == ["general", "rain100l"]
    assert derain.DEFAULT_WEIGHTS in manas_jax.list_pretrained()


@pytest.mark.parametrize("name", pretrained.list_pretrained())
def test_description_matches_the_file(name):
    _, genotype, provenance = load_derived(pretrained.find(name))
    line = pretrained.describe(name)
    assert line.startswith(f"{name}: {cost.derived(genotype, 8, 8).parameters:,} parameters, ")
    assert f"configs/pretrained.py:{name}, step {provenance['step']}" in line
    assert provenance["commit"][:7] in line and "unknown" not in line and "\n" not in line


def test_find_prefers_names_to_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("general", "own.safetensors"):
        pathlib.Path(name).touch()
    assert pretrained.find("general") == pretrained.FOLDER / "general.safetensors"
    assert pretrained.find("own.safetensors") == pathlib.Path("own.safetensors")
    assert pretrained.find(pathlib.Path("./general")).parent == pretrained.FOLDER
    with pytest.raises(UserError, match="weights none: neither a file nor one of general, rain"):
        pretrained.find("none")


def test_command_lists_and_exits(capsys):
    with pytest.raises(SystemExit) as stop:
        derain.main(["--list"])
    assert stop.value.code == 0
    expected = [pretrained.describe(name) for name in pretrained.list_pretrained()]
    assert capsys.readouterr().out.splitlines() == expected


def test_package_offers_two_names_lazily():
    code = """
import sys
import manas_jax
heavy = {"jax", "numpy", "flax", "tensorflow", "safetensors"}
assert {"Derainer", "list_pretrained"} <= set(dir(manas_jax)) & set(manas_jax.__all__)
assert manas_jax.list_pretrained() and not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert manas_jax.Derainer is Derainer
    with pytest.raises(AttributeError, match="no attribute 'derainer_'"):
        _ = manas_jax.derainer_
