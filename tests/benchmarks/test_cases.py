"""Cases build the project's own steps, on narrow networks and few files here."""

import inspect

import conftest
import jax
import numpy as np
import pytest

from benchmarks import cases, released
from manas_jax import cost
from manas_jax.data import images
from manas_jax.space import SearchSpace


@pytest.mark.parametrize(
    ("space", "parameters"),
    [(cases.SMALL, 985_671), (cases.PAPER, 6_930_155)],
    ids=["small", "paper"],
)
def test_alternating_networks_are_those_in_the_readme(space, parameters):
    genotype = cases.alternating_genotype(SearchSpace(**space))
    assert cost.derived(genotype, 1, 1).parameters == parameters


def test_every_case_takes_a_folder(tmp_path):
    for case in (cases.CASES | cases.TINY).values():
        inspect.signature(case.make).bind(tmp_path)
        if case.prepare:
            inspect.signature(case.prepare).bind(tmp_path)
    assert released.CASES.keys() <= cases.CASES.keys()


def test_search_step_updates_the_state(tmp_path):
    work = cases.search_step(tmp_path, space=conftest.NARROW, scenes=1, versions=2, height=8,
                             width=16)  # fmt: skip
    first, _ = jax.device_get(work.run())
    second, terms = jax.device_get(work.run())
    assert (first.step, second.step) == (1, 2)
    assert {"restoration", "architecture_restoration", "complexity"} <= terms.keys()
    assert not np.array_equal(first.architecture["columns"], second.architecture["columns"])
    assert work.images == 4 and work.compile_seconds > 0
    macs = cost.supernet(SearchSpace(**conftest.NARROW), 8, 16).macs
    assert work.flops() > 2 * 2 * 2 * macs  # more than the forward passes of two batches of two


@pytest.mark.slow
def test_training_step_runs(tmp_path):
    work = cases.train_step(tmp_path, cases.NARROW, scenes=1, versions=2, height=8, width=8)
    state, _ = work.run()
    assert state.step == 1 and work.images == 2 and work.flops() > 0


def test_losses_and_evaluation_run(tmp_path):
    work = cases.losses(tmp_path, scenes=1, versions=2, side=16)
    by_outputs, by_logits = work.run()
    assert by_outputs.shape == (1, 2, 16, 16, 3) and np.all(np.asarray(by_outputs) != 0)
    assert all(np.any(x) for x in by_logits.values()) and work.flops() > 0
    work = cases.evaluation(tmp_path, space=cases.NARROW, height=16, width=24)
    before, after = work.run()
    assert before != after
    macs = cost.derived(cases.alternating_genotype(SearchSpace(**cases.NARROW)), 16, 24).macs
    assert work.flops() == 2 * macs


@pytest.mark.parametrize("on_disk", [False, True])
def test_pipeline_reads_prepared_files(on_disk, tmp_path):
    cases.prepare_pictures(tmp_path, count=2, height=72, width=80)
    clean, *_, rainy = sorted((tmp_path / cases.PICTURES).rglob("*.png"))
    assert images.read(clean).shape == (72, 80, 3)
    assert np.any(images.read(rainy) != images.read(clean))
    work = cases.input_pipeline(tmp_path, on_disk=on_disk, scenes=2, repeats=3)
    batches = [work.run() for _ in range(2)]
    assert batches[0]["rainy"].shape == (2, 3, 64, 64, 3) and work.images == 6
    assert not np.array_equal(batches[0]["rainy"], batches[1]["rainy"])


def test_data_sets_are_written_and_read(tmp_path):
    cases.prepare_set(tmp_path, count=20)
    cases.set_reading(tmp_path, count=20).run()
    work = cases.set_writing(tmp_path, count=20)
    work.run()
    work.run()  # beside the first one


def test_large_pictures_are_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "LARGE_SIZE", (60, 90))
    cases.prepare_large(tmp_path, side=50)
    assert images.read(tmp_path / cases.LARGE).shape == (60, 90, 3)
