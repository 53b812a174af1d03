"""Scaling estimates: collectives are counted, their bytes computed from shapes, times predicted.

Programs are compiled for simulated devices in a child process (this file as a script).
"""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import cases, scaling
from manas_jax.errors import UserError

DEVICES = 8
LOSSES = 5  # numbers summed over the devices in addition to gradients and statistics


@pytest.fixture(scope="module")
def compiled():
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={DEVICES}"
    finished = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.slow
def test_measured_programs(compiled):
    # Gradients, BatchNorm and losses: nothing else is summed, whatever the number of devices.
    for name in ("search_weights", "train"):
        expected = compiled["reduced"][name]
        assert min(expected.values()) > 0
        for measured in compiled[name].values():
            assert measured["collectives"].keys() == {"all-reduce"}
            counted = measured["collectives"]["all-reduce"]
            assert counted["bytes"] == expected["total"] + LOSSES * scaling.FLOAT
    few, many = compiled["search_weights"]["2"], compiled["search_weights"][str(DEVICES)]
    assert few["collectives"]["all-reduce"]["count"] == many["collectives"]["all-reduce"]["count"]
    assert few["flops"] == many["flops"] > 0
    assert few["device_flops"] / many["device_flops"] == pytest.approx(DEVICES / 2, rel=0.1)
    assert few["temporary_bytes"] / many["temporary_bytes"] == pytest.approx(DEVICES / 2, rel=0.2)
    assert "scenes = 16 cannot be split over 3 devices: give 15 or 18" in compiled["uneven"]


SYSTEM = scaling.System(
    devices=4, hosts=2, vcpus=8, flops=10.0, memory=1e9, memory_bandwidth=5.0,
    link_bandwidth=3.0, latency=0.25, sources=(),
)  # fmt: skip


def _measured(scenes=8, flops=6.0, traffic=2.0, fixed=0.0, count=0, reduced=0):
    """Results of `measure` on 1 and 4 devices, with costs per scene and fixed ones."""
    return {
        str(devices): {
            "scenes": scenes,
            "device_flops": flops * scenes / devices,
            "device_bytes_accessed": fixed + traffic * scenes / devices,
            "argument_bytes": 100,
            "temporary_bytes": 10 * scenes / devices,
            "collectives": {"all-reduce": {"count": count, "bytes": reduced}} if count else {},
        }
        for devices in (1, 4)
    }


def _predict(measured, stage="train"):
    return scaling.predict(
        SYSTEM, measured, stage,
        schedule={"train": 10, "search_architecture": 5, "search_weights": 10},
        scene={"images": 3, "bytes": 100},
        pipeline={"files": 6.0},
    )  # fmt: skip


@pytest.fixture
def peaks(monkeypatch):
    """Programs reach the peaks."""
    monkeypatch.setattr(scaling, "SHARES", {"flops": 1.0, "memory_bandwidth": 1.0})


def test_latency_and_bytes_of_collectives_reduce_efficiency(peaks):
    alone = _predict({"train": _measured()})
    assert alone["efficiency"] == pytest.approx(1) and alone["reduce"] == 0
    with_both = _predict({"train": _measured(count=2, reduced=6)})
    assert with_both["latency"] == 2 * 0.25
    assert with_both["reduce"] == pytest.approx(2 * 0.25 + 2 * 3 / 4 * 6 / 3)
    assert with_both["step"] == pytest.approx(1.2 + 3.5)
    assert with_both["efficiency"] == pytest.approx(1.2 / 4.7)
    assert with_both["stage_seconds"] == pytest.approx(10 * 4.7)
    # Work that every device repeats, such as the update of the weights, reduces it too.
    assert _predict({"train": _measured(traffic=4.0, fixed=8.0)})["efficiency"] < 0.7


def test_search_step_has_two_programs_and_two_batches(peaks):
    parts = {"search_architecture": _measured(flops=3.0), "search_weights": _measured()}
    predicted = _predict(parts, stage="search")
    assert predicted["step"] == pytest.approx(0.8 + 1.2)  # the first is bound by its traffic
    assert predicted["stage_seconds"] == pytest.approx(5 * 0.8 + 10 * 1.2)
    assert predicted["host_images"] == pytest.approx(2 * 8 * 3 / 2.0 / 2)
    assert predicted["host_bytes"] == pytest.approx(predicted["host_images"] / 3 * 100)
    assert predicted["cores"] == {"files": pytest.approx(predicted["host_images"] / 6)}


@pytest.mark.parametrize("content", [None, "", "[]", '{"sizes": {}}'])
def test_other_files_are_not_resumed(content, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    file = tmp_path / "scaling.json"
    if content is not None:
        file.write_text(content)
    assert scaling.main(["--resume", "--runs=0", f"--out={file}"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: --resume: ") and message.count("\n") == 1


def _script():
    space = {**cases.NARROW, "attention_groups": 1, "candidates": ("CBAM", "sep_conv_3x3")}
    config, programs = scaling.programs(space)
    result = {"reduced": {name: program.reduced for name, program in programs.items()}}
    for name, counts in {"search_weights": (2, DEVICES), "train": (DEVICES,)}.items():
        result[name] = {n: scaling.measure(config, name, programs[name], n) for n in counts}
    try:
        scaling.measure(config, "train", programs["search_weights"], 3)
    except UserError as error:
        result["uneven"] = str(error)
    print(json.dumps(result))


if __name__ == "__main__":
    _script()
