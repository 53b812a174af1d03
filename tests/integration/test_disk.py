"""Full and read-only disks: a clear error, intact checkpoints, and resumption afterwards."""

import shutil
import subprocess

import pytest
from test_resume import _copy_search, _final_state, _same_bits, _stopping_at

from manas_jax.errors import UserError
from manas_jax.training import stage


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", *options], capture_output=True).returncode
    ):
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill(disk):
    """Leaves 4 KiB free."""
    left = shutil.disk_usage(disk).free - 4096
    (disk / "filler").write_bytes(bytes(left))


def test_full_disk_stops_the_run_and_keeps_the_checkpoints(
    monkeypatch, small_disk, finished, run_stages
):
    workdir = small_disk / "run"
    with monkeypatch.context() as patch:
        patch.setattr(stage, "MetricLogger", _stopping_at(3, lambda: _fill(small_disk)))
        with pytest.raises(UserError, match="No space left on device") as error:
            run_stages(workdir, stage="search")
    assert f"the disk at {small_disk}: " in str(error.value)
    assert "\n" not in str(error.value)
    folder = workdir / "search" / "checkpoints"
    assert [f.name for f in folder.iterdir() if f.name.isdigit()] == ["2"]
    (small_disk / "filler").unlink()
    run_stages(workdir, stage="search")
    assert _same_bits(_final_state(workdir, "search"), _final_state(finished, "search"))
    assert not [f for f in folder.iterdir() if not f.name.isdigit()]  # nothing half-written


def test_read_only_workdir_is_an_error_before_any_work(small_disk, finished, run_stages):
    workdir = small_disk / "run"
    workdir.mkdir()
    _copy_search(finished, workdir)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=f"--workdir={workdir} cannot be written"):
        run_stages(workdir, stage="train")
    assert sorted(f.name for f in workdir.iterdir()) == ["genotype.json", "search"]
