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


def test_gradient_table_starts_with_the_largest():
    record = {
        "seconds": [0.1, 0.2, 0.1],
        "milliseconds": {"loss": {"forward": 10.0}, "stem": {"forward": 20.0, "backward": 30.0}},
    }
    expected = [["stem", "20", "30", "50%"], ["loss", "10", "–", "10%"]]
    assert profile.gradient_rows(record) == expected


def test_image_relative_to_the_matrix_product():
    def times(clock, processor):
        return {"milliseconds": clock, "processor_milliseconds": processor}

    whole = times([200.0, 100.0, 400.0], [300.0, 150.0, 600.0])
    parts = {"stem": times([50.0] * 3, [100.0] * 3), "head": times([150.0] * 3, [150.0] * 3)}
    products = [200.0, 500.0, 50.0]
    record = {"gflop": 10.0, "parts": parts, "whole": whole, "product_gflops": products}
    text = profile.image_summary(record, cores=2)
    assert text.startswith("10 GFLOP in 200 ms, 25% (20%-50%) of the matrix product")
    assert "at its 200 GFLOP/s it would take 50 ms" in text
    assert text.endswith("always busy 150 ms (33%)")
    assert profile.image_rows(record) == [
        ["head", "150.0", "150.0", "1.00", "75%"],
        ["stem", "50.0", "100.0", "2.00", "25%"],
        [profile.WHOLE, "200.0", "300.0", "1.50", ""],
    ]


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


def test_errors_are_one_line(tmp_path, capsys):
    out = tmp_path / "parts.json"
    assert profile.main(["image", "--runs=0", f"--out={out}"]) == 1
    assert capsys.readouterr().err == "error: --runs=0: give at least 1\n"
    assert not out.exists()
