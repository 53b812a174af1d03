"""Modules import from lower layers only, as pyproject.toml lists them; `lint-imports` says more."""

from conftest import ROOT
from importlinter.cli import lint_imports


def test_imports_follow_the_layers(tmp_path, capsys):
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=str(tmp_path))
    assert status == 0, capsys.readouterr().out
