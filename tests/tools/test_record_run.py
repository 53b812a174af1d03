"""Results of finished runs as files of their own."""

import json

import pytest

from manas_jax.errors import UserError
from manas_jax.space import Genotype
from tools import record_run


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Where results are written, in place of results/."""
    for name in ("FOLDER", "RECIPE"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(record_run, name, tmp_path / name)


def test_finished_runs_are_recorded(finished, tmp_path):
    file = record_run.record(finished, "tiny")
    fields = json.loads(file.read_text())
    assert fields.keys() == {*record_run.FILES, "genotype"}
    assert fields["evaluate"] == json.loads((finished / "evaluate" / "scores.json").read_text())
    genotype = Genotype.load(finished / "genotype.json")
    assert fields["genotype"] == json.loads(genotype.to_json())
    assert (tmp_path / "FOLDER" / "tiny_network.svg").read_text().startswith("<svg")

    trial = json.loads(record_run.record_trial(finished, "tiny", "nothing").read_text())
    assert trial["change"] == "nothing" and trial["genotype"] == fields["genotype"]
    assert trial["train"] == fields["train"] and trial["macs"] > trial["parameters"] > 0
    curve = trial["validation_curve"]
    assert len(curve["steps"]) == len(curve["psnr"]) == len(curve["ssim"]) > 0


def test_unfinished_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no evaluate/scores\.json"):
        record_run.record(tmp_path, "tiny")
    with pytest.raises(UserError, match=r"no train/summary\.json"):
        record_run.record_trial(tmp_path, "tiny", "nothing")
    assert not list((tmp_path / "FOLDER").iterdir())
