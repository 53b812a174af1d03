"""A run whose workdir and data are in a bucket."""

import json
import signal
import time

import pytest
from test_resume import STEPS, _final_state, _listening, _same_bits, _stopping_at

from manas_jax import buckets
from manas_jax.errors import UserError
from manas_jax.report import page
from manas_jax.runtime import signals
from manas_jax.training import stage as stage_module
from manas_jax.workdir import lock


@pytest.fixture
def data(bucket, pictures, tmp_path):
    """Changes to the configuration, for data in the bucket."""
    for file in pictures.rglob("*.png"):
        target = buckets.as_path("gs://bucket/data") / file.relative_to(pictures)
        target.write_bytes(file.read_bytes())
    return {"data__root": "gs://bucket/data", "data__cache_dir": str(tmp_path / "cache")}


def test_run_resumes_with_the_bits_of_a_local_one(
    monkeypatch, tmp_path, finished, run_stages, data
):
    workdir = buckets.as_path("gs://bucket/run")
    stopping = _stopping_at(3, lambda: signal.raise_signal(signal.SIGTERM))
    with monkeypatch.context() as patch, _listening():
        patch.setattr(stage_module, "MetricLogger", stopping)
        with pytest.raises(signals.Stopped):
            run_stages(workdir, **data)
    assert not (workdir / lock.NAME).exists()
    report = run_stages(str(workdir), **data)
    assert str(report) == "gs://bucket/run/report.html"

    for stage in ("search", "train"):
        assert _same_bits(_final_state(workdir, stage), _final_state(finished, stage))
    for name in ("genotype.json", "train/parameters.txt"):
        assert (workdir / name).read_text() == (finished / name).read_text()
    here, there = (
        json.loads((folder / "evaluate" / "scores.json").read_text())["mean"]
        for folder in (finished, workdir)
    )
    assert here == there
    local = {p.relative_to(finished).parts[0] for p in finished.iterdir()}
    assert {p.name for p in workdir.iterdir()} == local
    assert len(list((workdir / "search").glob("events.out.tfevents.*"))) == 2
    assert "loss/mse" in page.reader.read_events(workdir / "search")
    assert list(workdir.joinpath("evaluate", "pictures").glob("*_restored.png"))
    assert not (tmp_path / "gs:").exists()


def test_bucket_that_is_lost_leaves_earlier_checkpoints_whole(
    monkeypatch, finished, run_stages, bucket
):
    workdir = buckets.as_path("gs://bucket/run")

    def lose():
        while not (workdir / "search/checkpoints/2/commit_success.txt").exists():
            time.sleep(0.05)  # it is saved in the background
        bucket(403)

    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "MetricLogger", _stopping_at(3, lose))
        with pytest.raises(
            UserError, match=r"^gs://bucket: .*gs://bucket/run.* are intact"
        ) as lost:
            run_stages(workdir, stage="search")
    assert "\n" not in str(lost.value)
    bucket(0)
    steps = [int(p.name) for p in (workdir / "search/checkpoints").iterdir() if p.name.isdigit()]
    assert 2 in steps
    run_stages(workdir, stage="search")
    assert json.loads((workdir / "search/summary.json").read_text())["started_from_step"] == 2
    assert _same_bits(_final_state(workdir, "search"), _final_state(finished, "search"))
    assert STEPS in [int(p.name) for p in (workdir / "search/checkpoints").iterdir()]
