"""The commit that results name."""

import pathlib
import shutil
import subprocess

from manas_jax.workdir import provenance


def _git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@b", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_commit_is_that_of_the_package_alone(tmp_path, monkeypatch):
    """Not that of a project in whose ignored folder the package is installed."""
    installed = tmp_path / "venv" / "provenance.py"
    installed.parent.mkdir()
    shutil.copy(provenance.__file__, installed)
    (tmp_path / ".gitignore").write_text("venv/\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "a project")
    monkeypatch.setattr(provenance, "__file__", str(installed))
    commit = provenance.commit.__wrapped__
    assert commit() == ""

    _git(tmp_path, "add", "-f", str(installed))
    _git(tmp_path, "commit", "-qm", "with the package")
    assert len(commit()) == 40
    pathlib.Path(installed).write_text("changed")
    assert commit().endswith("+changes")


def test_commit_stays_that_of_the_start():
    assert provenance.commit() is provenance.commit()
