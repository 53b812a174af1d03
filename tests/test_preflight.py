"""The command that compiles for a slice of TPUs: figures, text, mistakes.

A CPU stands in for the slice; only the slow test compiles for TPUs, and needs libtpu.
"""

import dataclasses
import errno
import importlib.util
import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from manas_jax import files, preflight
from manas_jax.errors import UserError
from manas_jax.runtime import ahead, tpu_slice

V5E = tpu_slice.CHIPS["v5e"]


@pytest.fixture(scope="module")
def stand_in():
    return tpu_slice.Slice("v5e:1x1", V5E, jax.devices("cpu")[:1])


def test_all_stages_on_the_stand_in(stand_in, make_config):
    found = preflight.run(make_config(search__accumulate=2), stand_in)
    assert json.loads(json.dumps(found))["stages"].keys() == found["stages"].keys()
    search, train, evaluation = (found["stages"][name] for name in preflight.STAGES)
    # Two gradients a step, two microbatches each; the updates once.
    assert {program["calls"] for program in search["programs"]} >= {1, 4}
    assert [program["name"] for program in train["programs"]] == ["weight_step"]
    assert evaluation["images"] == 1
    for stage in (search, train, evaluation):
        assert stage["flops"] > 0 and stage["memory_bytes"] > 0 and stage["compile_seconds"] > 0
        assert stage["collectives"] == {} and stage["estimate_seconds"] is None
    assert train["genotype"] == "alternating"
    shown = preflight.text(found)
    assert "search (hypergradient: first_order)" in shown
    assert shown.count("it fits") == 3


def _program(**changes):
    program = ahead.Program(
        name="step", calls=1, seconds=60.0, cpu_seconds=50.0, argument_bytes=2**20,
        output_bytes=2**21, temporary_bytes=2**22, code_bytes=2**23, flops=1e9, cycles=3_000_000,
        optimal_seconds=0.001, instructions=10,
        collectives={"all-reduce": {"count": 3, "bytes": 2_000_000}},
        cycles_by_kind={"convolution": 1_000_000, "other": 2_000_000},
        cycles_by_module={"": 300_000, "cell0_column0": 2_700_000},
    )  # fmt: skip
    return dataclasses.replace(program, **changes)


def _no_estimate():
    return _program(cycles=0, cycles_by_kind={}, cycles_by_module={})


def test_figures_of_a_step(make_config):
    config = make_config(train__scenes=8, train__crop=32, data__versions=3)
    hosts = [types.SimpleNamespace(process_index=i // 4) for i in range(8)]
    where = tpu_slice.Slice("v5e:2x4", V5E, hosts)
    found = preflight._figures(config, "train", where, {}, [_program(calls=2), _no_estimate()])
    step = 6_000_000 * V5E.flops_per_cycle / V5E.peak_flops
    assert found["estimate_seconds"] == pytest.approx(step)
    assert found["optimal_seconds"] == pytest.approx(0.003)
    assert found["share_of_peak"] == pytest.approx(3e9 / step / 197e12)
    assert found["images_per_second"] == pytest.approx(24 / step)
    assert found["host_bytes_per_second"] == pytest.approx(8 * 4 * 32 * 32 * 3 * 4 / step / 2)
    assert found["collectives"] == {"all-reduce": {"count": 9, "bytes": 6_000_000}}
    assert found["memory_bytes"] == (1 + 2 + 4 + 8 + 8) * 2**20
    chip = {"memory": V5E.memory, "peak_flops": V5E.peak_flops}
    shown = preflight.text(
        {"topology": "v5e:2x4", "chips": 8, "hosts": 2, "chip": chip, "stages": {"train": found}}
    )
    assert "memory: 23 of 16,128 MiB a chip: it fits" in shown
    assert "9 all-reduce of 6.000 MB" in shown
    assert "of the estimate: 67% other, 33% convolution" in shown
    assert "most of it: 90% cell0_column0, 10% no module" in shown
    negative = [_program(optimal_seconds=-1.0)]
    assert preflight._figures(config, "train", where, {}, negative)["optimal_seconds"] is None
    large = [_program(temporary_bytes=V5E.memory - 2**24), _program()]
    with pytest.raises(ahead.OutOfMemory, match="a step needs 15"):
        preflight._figures(config, "train", where, {}, large)


def test_a_training_whose_statistics_are_frozen_has_two_programs(stand_in, make_config):
    """Both are compiled; the memory is that of the larger one, all else of most steps."""
    config = make_config(train__batch_norm=0.25, train__accumulate=2)
    compiled = []

    def compiler(function, *args, calls=1):
        compiled.append((function.__name__, args[-1] if calls != 1 else None, calls))

    preflight._compile_train(config, None, preflight.sharding.make_mesh(1), compiler)
    assert compiled == [("_update", None, 1), ("_grad", True, 2), ("_grad", False, 0)]

    programs = [_program(), _program(calls=0, temporary_bytes=2**23, flops=5e9)]
    found = preflight._figures(config, "train", stand_in, {"genotype": "x"}, programs)
    assert found["memory_bytes"] == (1 + 2 + 8 + 2 * 8) * 2**20
    assert found["flops"] == 1e9 and found["collectives"]["all-reduce"]["count"] == 3
    lines = preflight._stage_lines("train", found, V5E.memory)
    assert [line.count("in fewer of the steps (train.batch_norm)") for line in lines[2:4]] == [0, 1]


def test_program_that_does_not_fit(stand_in, make_config, monkeypatch):
    def refuse(lowered):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (20.25G) exceeds available HBM (15.75G)."
        )

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    with pytest.raises(UserError) as caught:
        preflight.run(make_config(stage="evaluate"), stand_in)
    assert str(caught.value) == (
        "evaluate: apply needs 20.25 GiB of a chip that has 15.75 GiB: 4.50 GiB too much; "
        "evaluate smaller pictures"
    )


def test_keys_that_save_memory(make_config):
    config = make_config(search__fuse=True, network__remat=True)
    assert preflight._remedies(config, "search") == (
        "any of these helps: network.dtype=bfloat16, search.accumulate=2 with search.fuse=False, "
        "fewer than 2 search.scenes or more chips, search.crop below 32"
    )


def test_batch_that_does_not_divide(stand_in, make_config, monkeypatch):
    mesh = types.SimpleNamespace(shape={"data": 16, "height": 1}, devices=np.zeros((16, 1)))
    monkeypatch.setattr(preflight.sharding, "make_mesh", lambda *_: mesh)
    with pytest.raises(UserError, match=r"train\.scenes = 12 cannot be split over 16 devices"):
        preflight.run(make_config(stage="train", train__scenes=12), stand_in)


def test_mixed_product_that_only_a_run_compiles(stand_in, make_config):
    config = make_config(stage="search", search__hypergradient="exact")
    with pytest.raises(UserError, match=r"set search\.fuse=True"):
        preflight.run(config, stand_in)


def test_search_that_is_not_bilevel(stand_in, make_config):
    config = make_config(search__method="random", search__budget=1.0)
    with pytest.raises(UserError, match=r"search\.method = random: .* give --stage=train"):
        preflight.run(config, stand_in)


def test_weights_may_be_named(stand_in, make_config, monkeypatch):
    class Reached(Exception):
        pass

    def compile(config, *_):
        raise Reached(config.train.weights)

    monkeypatch.setitem(preflight._COMPILE, "train", compile)
    with pytest.raises(Reached, match=r"pretrained.general\.safetensors"):
        preflight.run(make_config(stage="train", train__weights="general"), stand_in)


def test_a_full_disk_is_one_line(stand_in, make_config, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for flag, value in (("_JSON", str(tmp_path / "a.json")), ("_TOPOLOGY", ""), ("_STAGE", None)):
        monkeypatch.setattr(preflight, flag, types.SimpleNamespace(value=value))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # of the process, for good
    monkeypatch.setattr(preflight.tpu_slice, "find", lambda _: stand_in)
    monkeypatch.setattr(preflight, "run", lambda *_: {})
    monkeypatch.setattr(preflight, "text", lambda _: "")
    monkeypatch.setattr(preflight.importlib.metadata, "version", lambda _: "1")
    monkeypatch.setattr(files, "replacing", full)
    with pytest.raises(UserError, match=r"^--json=.*a\.json cannot be written \(No space left"):
        preflight.main(make_config(), None)


def _command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "manas_jax.preflight", *arguments],
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v9:2x2"], "--topology=v9:2x2: unknown; give one of v4:2x2x1, "),
        (["--topology=v5e:4x4", "--json=/no/folder/x.json"], "cannot be written"),
    ],
)
def test_mistakes_on_the_command_line(arguments, words):
    finished = _command("--config=configs/tiny.py", *arguments)
    assert finished.returncode == 1
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("error: ") and words in last and "Traceback" not in finished.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu")
def test_tiny_configuration_for_four_chips(tmp_path):
    file = tmp_path / "figures.json"
    sizes = ["--config.search.scenes=4", "--config.train.scenes=4", "--config.search.fuse=True"]
    finished = _command(
        "--config=configs/tiny.py", "--topology=v5litepod-4", f"--json={file}", *sizes
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(file.read_text())
    assert (found["topology"], found["chips"], found["hosts"]) == ("v5e:2x2", 4, 1)
    for name, stage in found["stages"].items():
        assert 0 < stage["estimate_seconds"] < 1 and 0 < stage["share_of_peak"] < 1
        assert stage["memory_bytes"] < V5E.memory
        assert bool(stage["collectives"]) == (name != "evaluate")
