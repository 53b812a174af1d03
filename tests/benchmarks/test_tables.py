"""Tables in the documents are those of results/, and files that the documents name exist."""

import json
import re

import pytest

from benchmarks import ROOT, tables
from benchmarks.tables import __main__ as command
from benchmarks.tables import speed

LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("document", command.DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_up_to_date(document):
    text = document.read_text()
    assert command.fill(text) == text, "run python -m benchmarks.tables"
    missing = [x for x in LINK.findall(text) if not (document.parent / x).exists()]
    assert not missing


def test_unknown_tables_are_errors():
    with pytest.raises(KeyError, match="nothing"):
        command.fill("<!-- table nothing -->\n<!-- end -->")


def test_speed_shows_the_released_code_of_the_same_commit_only(tmp_path, monkeypatch):
    folder = tmp_path / "speed" / "m"
    folder.mkdir(parents=True)
    provenance = {"machine": {"processor": "P", "cores": 2}, "versions": {"jax": "1"},
                  "commit": "c", "date": "2026-01-01"}  # fmt: skip
    both = {"cold": 1.0, "warm": 2.0}
    ours = {"seconds": {"median": 1.1, "min": 1.0, "max": 1.2}, "peak_gb": both, "gflop": 1.0,
            "first_step_seconds": both, "share_of_product": 0.5,
            "product_gflops": [1, 3]}  # fmt: skip
    theirs = {"seconds": {"median": 2.2, "min": 2.0, "max": 2.4}, "peak_gb": 0.5, "torch": "2.0"}
    for module in (tables, speed):
        monkeypatch.setattr(module, "RESULTS", tmp_path)

    def write(name, case, **changes):
        record = {"provenance": provenance | changes, "runs": 3, "cases": {"train_small": case}}
        (folder / f"{name}.json").write_text(json.dumps(record))

    write("speed", ours)
    assert "| 1.1 (1-1.2) | 50% | 1.0 / 2.0 | 1.00 / 2.00 | 2 |" in speed.speed("m")
    write("released", theirs)
    assert "| 1.1 (1-1.2) | 2.2 (2-2.4), 0.50 | 2.0 | 50% |" in speed.speed("m")
    write("released", theirs, commit="d")
    with pytest.raises(ValueError, match="differ in commit"):
        speed.speed("m")


def test_predictions_in_scaling_follow_from_the_measurements():
    from benchmarks import scaling

    record = json.loads((ROOT / "results" / "scaling.json").read_text())
    assert json.loads(json.dumps(scaling.predictions(record))) == record["predictions"]
    for size in record["sizes"].values():
        for name, expected in size["reduced_bytes"].items():
            for devices, measured in size["programs"][name].items():
                counted = measured["collectives"].get("all-reduce", {"bytes": 0})["bytes"]
                losses = 5 * scaling.FLOAT
                assert counted == (expected["total"] + losses if devices != "1" else 0)
