"""Several processes give the results and files of one, and survive the death of one of them."""

import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from benchmarks.agreement import LAYOUTS, NARROW, Layout, compare
from manas_jax.runtime import signals


@pytest.fixture(scope="module")
def few():
    return compare([Layout(1, 1), Layout(2, 4)], 2, "float64")


@pytest.fixture(scope="module")
def all_layouts():
    return compare(LAYOUTS, 20, "float64")


def _agree(rows, limit):
    assert len(rows) > 1
    for row in rows:
        for stage in ("search", "train"):
            difference = row[stage]
            assert difference["same_pictures"], row  # each image once
            assert max(difference["losses"], difference["state"]) < limit, row
    assert any(row[stage]["state"] > 0 for row in rows for stage in ("search", "train"))


def test_eight_devices_of_two_processes_agree_with_one(few):
    _agree(few, 1e-9)


@pytest.mark.slow
def test_any_number_of_devices_and_processes(all_layouts):
    _agree(all_layouts, 1e-5)


def _free_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def _start(workdir, *changes, processes=2):
    address = _free_address()
    settings = [f"--config.{key}={value}" for key, value in NARROW.items()]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "manas_jax.main", "--config=configs/tiny.py"),
                *(f"--workdir={workdir}", f"--coordinator={address}"),
                *(f"--processes={processes}", f"--process={number}", "--heartbeat=10"),
                *settings,
                *changes,
            ],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def _finish(processes, timeout=400):
    said = [process.communicate(timeout=timeout)[1] for process in processes]
    return [process.returncode for process in processes], said


def _wait_for(path, processes, timeout=300):
    begin = time.monotonic()
    while not path.exists():
        assert all(process.poll() is None for process in processes), _finish(processes)
        assert time.monotonic() - begin < timeout, path
        time.sleep(0.05)


_STEPS = """
import sys, time
from manas_jax.runtime import distributed, signals
signals.listen()
distributed.start(sys.argv[1], 2, int(sys.argv[2]))
print("ready", flush=True)
steps = 1
while (status := signals.requested()) is None and steps < 1000:
    steps += 1
    time.sleep(0.02)
print(steps, status, flush=True)
sys.stdin.read()  # the first process serves the other one
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_after_the_same_step(number):
    address = _free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _STEPS, address, str(index)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        processes[1].send_signal(number)
        said = [process.stdout.readline().split() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert said[0][0] == said[1][0]
    cancelled = signals.CANCELLED if number == signal.SIGINT else signals.PREEMPTED
    assert [status for _, status in said] == [str(signals.PREEMPTED), str(cancelled)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_peer_death_stops_all_and_run_resumes(tmp_path, number):
    """If one is killed or silent, the other exits in bounded time; after SIGTERM both save."""
    workdir = tmp_path / "run"
    long = "--config.search.steps=100000"
    processes = _start(workdir, long)
    _wait_for(workdir / "search" / "checkpoints" / "4", processes)
    begin = time.monotonic()
    processes[1].send_signal(number)
    status = processes[0].wait(timeout=60)
    assert time.monotonic() - begin < 60
    if number == signal.SIGSTOP:
        processes[1].kill()
    statuses, said = _finish(processes)
    if number == signal.SIGTERM:
        assert statuses == [signals.PREEMPTED] * 2, said
        assert all("and saved: run the command again to resume" in text for text in said)
    else:
        assert status in (signals.PREEMPTED, -signal.SIGABRT), said
    saved = [
        int(f.name) for f in (workdir / "search" / "checkpoints").iterdir() if f.name.isdigit()
    ]
    again = _start(workdir, long)
    newest = max(saved) + 4  # a few steps more
    _wait_for(workdir / "search" / "checkpoints" / str(newest // 2 * 2), again)
    for process in again:
        process.kill()
    _, said = _finish(again)
    assert f"search: resumes at step {max(saved)} of" in said[0]


@pytest.mark.slow
def test_a_whole_run_of_two_processes(tmp_path):
    """All stages; every image is scored once; a mistake in one process ends both."""
    statuses, said = _finish(_start(tmp_path / "two"))
    assert statuses == [0, 0], said
    statuses, alone = _finish(_start(tmp_path / "one", processes=1))
    assert statuses == [0], alone
    scores = [
        json.loads((tmp_path / name / "evaluate" / "scores.json").read_text())
        for name in ("one", "two")
    ]
    names = [[image["name"] for image in score["images"]] for score in scores]
    assert names[0] == names[1]
    assert len(set(names[1])) == len(names[1]) > 1
    for side in ("input", "output"):
        one, two = (score["mean"][side] for score in scores)
        np.testing.assert_allclose(
            list(two.values()), list(one.values()), atol=1e-6 if side == "input" else 0.05
        )
    for file in ("report.html", "weights.safetensors", "genotype.json", "train/summary.json"):
        assert (tmp_path / "two" / file).exists()
    assert len(json.loads((tmp_path / "two" / "provenance.json").read_text())) == 1

    statuses, said = _finish(_start(tmp_path / "two", "--config.seed=5"))
    assert statuses == [1, 1]
    for text in said:
        assert "was created with another config" in text
        assert "Traceback" not in text
