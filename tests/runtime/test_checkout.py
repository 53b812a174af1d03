"""The commit that results name."""

import shutil
import subprocess

from manas_jax.runtime import checkout


def _git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@b", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_commit_is_that_of_the_package_alone(tmp_path, monkeypatch):
    """Not that of a project in whose ignored folder the package is installed."""
    package = tmp_path / "venv" / "manas_jax"
    installed = package / "runtime" / "checkout.py"
    installed.parent.mkdir(parents=True)
    shutil.copy(checkout.__file__, installed)
    (package / "space.py").touch()
    (tmp_path / ".gitignore").write_text("venv/\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "a project")
    monkeypatch.setattr(checkout, "__file__", str(installed))
    commit = checkout.commit.__wrapped__
    assert commit() == ""

    _git(tmp_path, "add", "-f", str(package))
    _git(tmp_path, "commit", "-qm", "with the package")
    assert len(commit()) == 40
    (package / "space.py").write_text("changed")  # any of its files
    assert commit().endswith("+changes")


def test_commit_stays_that_of_the_start():
    assert checkout.commit() is checkout.commit()
