"""The comparison of layouts; whether they agree is tested in tests/integration."""

import json

import numpy as np
import pytest

from benchmarks import agreement


def _record(folder, loss, weight):
    folder.mkdir()
    for name in ("search", "train"):
        losses = [{"psnr": 20.0, "loss": 1.0}, {"psnr": 21.0, "loss": loss}]
        (folder / f"{name}0.json").write_text(json.dumps({"losses": losses, "read": [[["a"]]]}))
        np.savez(folder / f"{name}.npz", weight=np.array([1.0, weight]))
    return folder


def test_differences_by_hand(tmp_path):
    first = _record(tmp_path / "first", 2.0, 4.0)
    found = agreement._differences(first, _record(tmp_path / "other", 2.1, 4.4), 1)
    assert found["train"]["losses"] == pytest.approx(0.05)
    assert found["train"]["state"] == pytest.approx(0.1)
    assert found["search"]["same_pictures"]


def test_nan_is_a_difference(tmp_path):
    first = _record(tmp_path / "first", 2.0, 4.0)
    found = agreement._differences(first, _record(tmp_path / "other", np.nan, np.nan), 1)
    assert np.isnan(found["search"]["losses"]) and np.isnan(found["search"]["state"])


@pytest.mark.parametrize("losses", [0.5, np.nan])
def test_a_platform_that_disagrees_is_an_error(tmp_path, monkeypatch, capsys, losses):
    def compare(layouts, steps, dtype):
        stages = [{"losses": value, "state": 0.0} for value in (0.0, losses)]
        return [{"device": "x", "search": stage, "train": stage} for stage in stages]

    monkeypatch.setattr(agreement, "compare", compare)
    out = tmp_path / "agreement.json"
    assert agreement.main(["--platform=cuda", f"--out={out}"]) == 1
    assert "error: losses differ by" in capsys.readouterr().err
    assert agreement.main(["--platform=cuda", f"--out={out}", "--limit=0.6"]) == bool(losses != 0.5)


@pytest.mark.parametrize("arguments", [["--steps=0"], ["--platform=cuda"]])
def test_mistakes_come_out_first(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        agreement.main(arguments)
    assert stopped.value.code == 2 and arguments[0].split("=")[0] in capsys.readouterr().err
