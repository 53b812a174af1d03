"""The launchers: what they would run, what they refuse, what they do when something fails.

No cloud, no cluster: gcloud, kubectl and sbatch are stand-ins that write down how they were called.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
RUN = ["--", "--config=configs/tiny.py", "--workdir=runs/x"]


def launch(script, *arguments, **options):
    """Runs a launcher from the repository's root; without a PATH of its own, nothing is found."""
    program = [sys.executable] if script.endswith(".py") else ["bash"]
    return subprocess.run(
        [*program, str(LAUNCH / script), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def refused(finished, message):
    """One line, non-zero, no traceback."""
    assert finished.returncode not in (0, 75), finished.stdout
    assert message in finished.stderr
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    return True


# One machine.

# What a stand-in does at its Nth start, N counted for each process, by the plan in its arguments:
# end with a status, die by a signal (negative), or wait for SIGTERM and end with a status ("wait").
WORKER = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
plan = json.loads(sys.argv[2])
process = next((a[10:] for a in sys.argv if a.startswith("--process=")), "0")
for number in plan.keys() & {"0", "1"}:
    (folder / f"starts-{number}").touch()
starts = folder / f"starts-{process}"
count = len(starts.read_text().splitlines())
def told(number, frame):
    print("told", signal.Signals(number).name)
    os._exit(plan.get("told", 75))
if plan.get("told") != "ignore":
    signal.signal(signal.SIGTERM, told)
    signal.signal(signal.SIGINT, told)
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with starts.open("a") as file:
    print(json.dumps([os.getpid(), sys.argv[3:]]), file=file)
print("started", count)
for other in plan.keys() & {"0", "1"}:  # nothing ends before all are there
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
    """Starts launch/local.py on stand-ins that follow a plan; gives a Popen."""
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
    """Process id and arguments of every start of a stand-in."""
    file = folder / f"starts-{process}"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def gone(folder):
    """Whether no process that was ever started is left."""
    for file in folder.glob("starts-*"):
        for line in file.read_text().splitlines():
            try:
                os.kill(json.loads(line)[0], 0)
            except ProcessLookupError:
                continue
            return False
    return True


@pytest.mark.parametrize("failure", [75, -signal.SIGKILL, -signal.SIGABRT, 137, 134, 139])
def test_local_starts_the_whole_group_again(local, tmp_path, failure):
    plan = {"0": ["wait", 0], "1": [failure, 0]}
    running = local(plan, "--processes=2", "--restarts=1")
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 2
    assert {"[0] started 0", "[0] told SIGTERM", "[1] started 1"} <= set(out.splitlines())
    assert gone(tmp_path)


@pytest.mark.parametrize("failure", [1, 2, 3])
def test_local_does_not_repeat_a_mistake(local, tmp_path, failure):
    plan = {"0": ["wait"], "1": [failure]}
    running = local(plan, "--processes=2", "--restarts=5")
    running.communicate(timeout=60)
    assert running.returncode == failure
    assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 1
    assert gone(tmp_path)


def test_local_gives_up_after_so_many_restarts(local, tmp_path):
    running = local({"0": [75, 75, 75, 0]}, "--restarts=2")
    _, err = running.communicate(timeout=60)
    assert running.returncode == 75
    assert len(starts(tmp_path, 0)) == 3
    assert "1 restarts left" in err and "0 restarts left" in err


def test_local_kills_what_does_not_end(local, tmp_path):
    plan = {"0": ["wait"], "1": [-signal.SIGSEGV], "told": "ignore"}
    running = local(plan, "--processes=2", "--grace=1")
    _, err = running.communicate(timeout=50)  # the stand-in would wait 60 s
    assert running.returncode == 128 + signal.SIGSEGV, err
    assert gone(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on_and_starts_nothing_after(local, tmp_path, number):
    running = local({"0": ["wait", 0], "1": ["wait", 0]}, "--processes=2", "--restarts=5")
    for _ in range(2):  # both are there, and have set their handlers
        assert "started 0" in running.stdout.readline()
    running.send_signal(number)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 75
    assert sorted(out.splitlines()) == [f"[{p}] told {number.name}" for p in (0, 1)]
    assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 1
    assert gone(tmp_path)


def test_local_second_signal_ends_at_once(local, tmp_path):
    running = local({"0": ["wait"], "told": "ignore"}, "--restarts=5")
    assert "started 0" in running.stdout.readline()
    running.send_signal(signal.SIGTERM)
    assert "passing it on" in running.stderr.readline()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=50)
    assert running.returncode == 128 + signal.SIGKILL
    assert gone(tmp_path)


def test_local_tells_each_process_its_place(local, tmp_path):
    running = local({"0": [75, 0], "1": ["wait", 0]}, "--processes=2", "--restarts=1")
    running.communicate(timeout=60)
    for attempt in (0, 1):
        zero, one = (starts(tmp_path, process)[attempt][1] for process in (0, 1))
        assert re.fullmatch(r"--coordinator=127\.0\.0\.1:\d+", zero[0])
        assert zero[1:] == ["--processes=2", "--process=0"]
        assert one == [*zero[:2], "--process=1"]


def test_local_one_process_needs_no_coordinator(local, tmp_path):
    local({"0": [0]}).communicate(timeout=60)
    assert starts(tmp_path, 0)[0][1] == []


def test_local_dry_run():
    environment = {"PATH": os.environ["PATH"], "XLA_FLAGS": "--xla_a"}
    finished = launch(
        "local.py", "--processes=2", "--devices-per-process=4", "--port=5000", "--dry-run",
        "--worker=python -m manas_jax.main", *RUN, "--config.name=a b", "--config.api_key=hush",
        env=environment,
    )  # fmt: skip
    before = (
        f"PYTHONPATH={ROOT} PYTHONUNBUFFERED=1 "
        "XLA_FLAGS='--xla_a --xla_force_host_platform_device_count=4' JAX_PLATFORMS=cpu "
        "python -m manas_jax.main --config=configs/tiny.py --workdir=runs/x "
        "--config.name='a b' --config.api_key=*** "
        "--coordinator=127.0.0.1:5000 --processes=2 --process="
    )
    assert finished.stdout == f"{before}0\n{before}1\n", finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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
def test_local_refuses(arguments, message):
    assert refused(launch("local.py", *arguments), message)
