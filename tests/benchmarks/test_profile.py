"""Time by block of the network."""

import json

import conftest
import pytest

from benchmarks import profile


def test_kinds_of_blocks():
    kinds = {
        "stem_block1": "stem",
        "cell0_transition": "transition",
        "cell2_attention3": "attention, scale 3",
        "cell1_column0": "columns of cell 2",
        "head_fusion": "head",
    }
    assert {name: profile.kind(name) for name in kinds} == kinds


def test_image_is_timed_by_block(tmp_path, monkeypatch, capsys):
    for name, value in {"SMALL": conftest.NARROW, "PAPER": conftest.NARROW}.items():
        monkeypatch.setattr(profile, name, value)
    monkeypatch.setattr(profile, "HEIGHT", 16)
    monkeypatch.setattr(profile, "WIDTH", 24)
    monkeypatch.setattr(profile, "product_gflops", lambda: 100.0)
    out = tmp_path / "parts.json"
    assert profile.main(["image", "--runs=2", f"--out={out}"]) == 0
    record = json.loads(out.read_text())["small"]
    kinds = {"stem", "transition", "columns of cell 1", "head"}
    assert record["parts"].keys() == kinds | {f"attention, scale {i}" for i in range(2)}
    for times in (*record["parts"].values(), record["whole"]):
        assert all(len(by_round) == 2 and min(by_round) >= 0 for by_round in times.values())
    assert record["product_gflops"] == [100.0, 100.0]
    assert profile.WHOLE in capsys.readouterr().out


@pytest.mark.slow
def test_gradient_is_timed_by_block(monkeypatch):
    monkeypatch.setattr(profile, "product_gflops", lambda: 100.0)
    record = profile.profile_gradient(2, conftest.NARROW)
    blocks = {"stem", "transition", "columns of cell 1", "head"}
    blocks |= {f"attention, scale {i}" for i in range(2)}
    assert record["milliseconds"].keys() == blocks | {"loss", "the rest"}
    for name in blocks:
        assert record["milliseconds"][name].keys() == {"forward", "backward"}
    assert len(record["seconds"]) == 2
