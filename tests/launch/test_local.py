"""launch/local.py: restarts, signals, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT
from launchers import LAUNCH, RUN, assert_refused, launch
from safetensors.numpy import load_file

from manas_jax.space import random_genotype

# At its Nth start, N counted per process, a fake worker follows the Nth item of the plan in its
# arguments: exit with a status, die by a signal (negative), or wait for SIGTERM ("wait"). After
# SIGTERM it exits with the status "on_sigterm", or ignores it.
WORKER = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
plan = json.loads(sys.argv[2])
process = next((a[10:] for a in sys.argv if a.startswith("--process=")), "0")
for number in plan.keys() & {"0", "1"}:
    (folder / f"starts-{number}").touch()
starts = folder / f"starts-{process}"
count = len(starts.read_text().splitlines())
def terminated(number, frame):
    print("received", signal.Signals(number).name)
    os._exit(plan.get("on_sigterm", 75))
if plan.get("on_sigterm") != "ignore":
    signal.signal(signal.SIGTERM, terminated)
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("started", count)
with starts.open("a") as file:
    print(json.dumps([os.getpid(), sys.argv[3:]]), file=file)
for other in plan.keys() & {"0", "1"}:  # nothing exits before all have started
    while len((folder / f"starts-{other}").read_text().splitlines()) <= count:
        time.sleep(0.01)
todo = plan[process][count]
if todo == "wait":
    time.sleep(60)
elif todo < 0:
    os.kill(os.getpid(), -todo)
sys.exit(todo)
"""


@pytest.fixture
def local(tmp_path):
    """A function that starts launch/local.py on fake workers with a plan; returns a Popen."""
    (tmp_path / "worker.py").write_text(WORKER)

    def start(plan, *options):
        worker = f"{sys.executable} {tmp_path}/worker.py {tmp_path}"
        return subprocess.Popen(
            [
                sys.executable,
                LAUNCH / "local.py",
                f"--worker={worker}",
                *options,
                "--",
                json.dumps(plan),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def starts(folder, process):
    """Process id and arguments of every start of a fake worker."""
    file = folder / f"starts-{process}"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def until_started(folder, *processes):
    """Waits for the first start of these processes; by then their handlers are installed."""
    while not all(starts(folder, process) for process in processes):
        time.sleep(0.01)


def gone(folder):
    """Whether all processes that were ever started have exited."""
    for file in folder.glob("starts-*"):
        for line in file.read_text().splitlines():
            try:
                os.kill(json.loads(line)[0], 0)
            except ProcessLookupError:
                continue
            return False
    return True


@pytest.mark.parametrize("failure", [75, -signal.SIGKILL, -signal.SIGABRT, 137, 134, 139])
def test_restarts_the_whole_group(local, tmp_path, failure):
    plan = {"0": ["wait", 0], "1": [failure, 0]}
    running = local(plan, "--processes=2", "--restarts=1")
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 2
    assert {"[0] started 0", "[0] received SIGTERM", "[1] started 1"} <= set(out.splitlines())
    assert gone(tmp_path)


@pytest.mark.parametrize("failure", [1, 2, 130])
def test_does_not_restart_after_a_mistake(local, tmp_path, failure):
    plan = {"0": ["wait"], "1": [failure]}
    running = local(plan, "--processes=2", "--restarts=5")
    running.communicate(timeout=60)
    assert running.returncode == failure
    assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 1
    assert gone(tmp_path)


def test_gives_up_after_the_maximum_number_of_restarts(local, tmp_path):
    running = local({"0": [75, 75, 75, 0]}, "--restarts=2")
    _, err = running.communicate(timeout=60)
    assert running.returncode == 75
    assert len(starts(tmp_path, 0)) == 3
    assert "1 restarts left" in err and "0 restarts left" in err


def test_kills_processes_that_do_not_exit(local, tmp_path):
    plan = {"0": ["wait"], "1": [-signal.SIGSEGV], "on_sigterm": "ignore"}
    running = local(plan, "--processes=2", "--grace=1")
    _, err = running.communicate(timeout=50)  # the fake would wait 60 s
    assert running.returncode == 128 + signal.SIGSEGV, err
    assert gone(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_stops_all_and_restarts_none(local, tmp_path, number):
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("ignored by the tests, thus by what they start")
    running = local({"0": ["wait", 0], "1": ["wait", 0]}, "--processes=2", "--restarts=5")
    until_started(tmp_path, 0, 1)
    running.send_signal(number)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 75
    assert {f"[{process}] received SIGTERM" for process in (0, 1)} <= set(out.splitlines())
    assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 1
    assert gone(tmp_path)


def test_second_signal_kills(local, tmp_path):
    running = local({"0": ["wait"], "on_sigterm": "ignore"}, "--restarts=5")
    until_started(tmp_path, 0)
    running.send_signal(signal.SIGTERM)
    assert "telling the processes" in running.stderr.readline()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=50)
    assert running.returncode == 128 + signal.SIGKILL
    assert gone(tmp_path)


def test_each_process_gets_its_index(local, tmp_path):
    running = local({"0": [75, 0], "1": ["wait", 0]}, "--processes=2", "--restarts=1")
    running.communicate(timeout=60)
    for attempt in (0, 1):
        zero, one = (starts(tmp_path, process)[attempt][1] for process in (0, 1))
        assert re.fullmatch(r"--coordinator=127\.0\.0\.1:\d+", zero[0])
        assert zero[1:] == ["--processes=2", "--process=0"]
        assert one == [*zero[:2], "--process=1"]


def test_one_process_needs_no_coordinator(local, tmp_path):
    local({"0": [0]}).communicate(timeout=60)
    assert starts(tmp_path, 0)[0][1] == []


def test_dry_run():
    environment = {"PATH": os.environ["PATH"], "XLA_FLAGS": "--xla_a --xla_token=hush"}
    finished = launch(
        "local.py", "--processes=2", "--devices-per-process=4", "--port=5000", "--dry-run",
        "--worker=env API_KEY=hush python -m x", *RUN, "--config.name=a b", "--config.api_key=hush",
        env=environment,
    )  # fmt: skip
    before = (
        f"PYTHONPATH={ROOT} PYTHONUNBUFFERED=1 "
        "XLA_FLAGS='--xla_a --xla_token=*** --xla_force_host_platform_device_count=4' "
        "JAX_PLATFORMS=cpu env 'API_KEY=***' python -m x --config=configs/tiny.py --workdir=runs/x "
        "'--config.name=a b' '--config.api_key=***' "
        "--coordinator=127.0.0.1:5000 --processes=2 --process="
    )
    assert finished.stdout == f"{before}0\n{before}1\n", finished.stderr


def test_configs_that_ship_have_names():
    flags = ["--config=pretrained:general", "--workdir=runs/x"]
    finished = launch("local.py", "--dry-run", "--worker=x", "--", *flags)
    assert finished.stdout.endswith(f"x {' '.join(flags)}\n"), finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "--config=quick", "--workdir=x"], "--config=quick: no such file"),
        (["--processes=0", *RUN], "'0'"),
        (["--processes=two", *RUN], "'two'"),
        (["--restarts=-1", *RUN], "'-1'"),
        (["--unknown", *RUN], "--unknown"),
        ([], "--config=... is missing"),
        (["--", "--config=configs/tiny.py"], "--workdir=... is missing"),
        (["--", "--config=configs/no.py", "--workdir=x"], "--config=configs/no.py: no such file"),
        ([*RUN, "--process=1"], "--process is set by the launcher"),
        (["--worker=/no/such/program"], "/no/such/program: No such file"),
    ],
)
def test_refuses(arguments, message):
    assert_refused(launch("local.py", *arguments), message)


SMALL_TRAINING = """
import runpy

def get_config():
    config = runpy.run_path({tiny!r})["get_config"]()
    config.stage = "train"
    config.train.update(
        steps=160, checkpoint_every=10, genotype={genotype!r}
    )
    return config
"""


@pytest.mark.slow
def test_trains_and_resumes(tmp_path, space):
    """Two processes: one dies by kill -9 and both are restarted; SIGTERM; restarted by hand.

    The final weights are bit-identical to those of an uninterrupted training.
    """
    genotype, config = tmp_path / "genotype.json", tmp_path / "config.py"
    random_genotype(space, 0).save(genotype)
    tiny = str(ROOT / "configs" / "tiny.py")
    config.write_text(SMALL_TRAINING.format(tiny=tiny, genotype=str(genotype)))

    def start(name):
        run = [f"--config={config}", f"--workdir={tmp_path / name}"]
        return subprocess.Popen(
            [sys.executable, LAUNCH / "local.py", "--processes=2", "--restarts=1", "--", *run],
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
            stdout=(tmp_path / f"{name}.log").open("a"),
            stderr=subprocess.STDOUT,
        )

    def until_saved(running, step):
        folder = tmp_path / "interrupted" / "train" / "checkpoints"
        while not any(int(path.name) >= step for path in folder.glob("[0-9]*[0-9]")):
            assert running.poll() is None, (tmp_path / "interrupted.log").read_text()
            time.sleep(0.02)

    assert start("whole").wait() == 0, (tmp_path / "whole.log").read_text()

    running = start("interrupted")
    until_saved(running, 20)
    workers = psutil.Process(running.pid).children()
    (second,) = [worker for worker in workers if worker.cmdline()[-1] == "--process=1"]
    second.kill()
    until_saved(running, 60)
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 75
    log = (tmp_path / "interrupted.log").read_text()
    assert "launch: process 1 exited with status 137" in log
    assert "launch: status 137: restarting" in log
    assert start("interrupted").wait() == 0, (tmp_path / "interrupted.log").read_text()

    whole, interrupted = (
        load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "interrupted")
    )
    assert whole.keys() == interrupted.keys()
    assert len(whole) > 10
    assert all(whole[key].tobytes() == interrupted[key].tobytes() for key in whole)
