"""The launchers: what they would run, what they refuse, what they do when something fails.

No cloud, no cluster: gcloud, kubectl and sbatch are stand-ins that write down how they were called.
"""

import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import kubernetes_validate
import psutil
import pytest
import yaml
from conftest import ROOT
from safetensors.numpy import load_file

from manas_jax.runtime import signals
from manas_jax.space import random_genotype

LAUNCH = ROOT / "launch"
RUN = ["--", "--config=configs/tiny.py", "--workdir=runs/x"]


def launch(script, *arguments, root=ROOT, **options):
    """Runs a launcher from the repository's root."""
    program = [sys.executable] if script.endswith(".py") else ["bash"]
    return subprocess.run(
        [*program, str(root / "launch" / script), *map(str, arguments)],
        cwd=root,
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
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("started", count)
with starts.open("a") as file:
    print(json.dumps([os.getpid(), sys.argv[3:]]), file=file)
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


def until_started(folder, *processes):
    """Waits for the first start of these; by then they have set their handlers."""
    while not all(starts(folder, process) for process in processes):
        time.sleep(0.01)


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


@pytest.mark.parametrize("failure", [1, 2, 130])
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
def test_local_told_to_end_starts_nothing_after(local, tmp_path, number):
    running = local({"0": ["wait", 0], "1": ["wait", 0]}, "--processes=2", "--restarts=5")
    until_started(tmp_path, 0, 1)
    running.send_signal(number)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 75
    assert {f"[{process}] told SIGTERM" for process in (0, 1)} <= set(out.splitlines())
    assert len(starts(tmp_path, 0)) == len(starts(tmp_path, 1)) == 1
    assert gone(tmp_path)


def test_local_second_signal_ends_at_once(local, tmp_path):
    running = local({"0": ["wait"], "told": "ignore"}, "--restarts=5")
    until_started(tmp_path, 0)
    running.send_signal(signal.SIGTERM)
    assert "telling the processes" in running.stderr.readline()
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
        "'--config.name=a b' '--config.api_key=***' "
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
def test_local_really_trains_and_resumes(tmp_path, space):
    """Two processes; one dies by kill -9 and both start again; told to end; started again by hand.

    In the end the weights are, to the bit, those of a training that nothing interrupted.
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
    assert "launch: process 1 ended with status 137" in log
    assert "launch: status 137: starting again" in log
    assert start("interrupted").wait() == 0, (tmp_path / "interrupted.log").read_text()

    whole, interrupted = (
        load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "interrupted")
    )
    assert whole.keys() == interrupted.keys()
    assert len(whole) > 10
    assert all(whole[key].tobytes() == interrupted[key].tobytes() for key in whole)


# What goes elsewhere: gcloud, kubectl, sbatch, and what runs on the machines that they reach.

# Writes down its arguments and what it reads, then does what the plan says for this call: ends with
# a status, or prints a state. With "worker", what would reach a worker is done in that folder.
STAND_IN = """#!{python} -IS
import json, pathlib, shutil, subprocess, sys
folder = pathlib.Path(__file__).parent
name, words = pathlib.Path(__file__).name, sys.argv[1:]
piped = sys.stdin.read() if "--filename=-" in words else ""
plan = json.loads((folder / "plan").read_text())
verb = next((word for word in words if word in plan), "")
with (folder / "calls").open("a") as file:
    print(json.dumps([name, verb, words, piped]), file=file)
count = sum(json.loads(line)[1] == verb for line in (folder / "calls").open())
outcomes = plan.get(verb) or [0]
outcome = outcomes[min(count, len(outcomes)) - 1]
if isinstance(outcome, str):
    print(outcome)
    sys.exit(outcome == "")
if "worker" in plan:
    if "scp" in words:
        shutil.copy(words[4], pathlib.Path(plan["worker"]) / words[5].split(":")[1])
    elif "ssh" in words:
        command = next(word[10:] for word in words if word.startswith("--command="))
        sys.exit(subprocess.run(["bash", "-c", command], cwd=plan["worker"]).returncode)
sys.exit(outcome)
"""

Call = collections.namedtuple("Call", "name verb words piped")


class Tools:
    """Stand-ins for gcloud and the like, first on the PATH of `environment`."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "sleep"):
            program = folder / name
            program.write_text(STAND_IN.replace("{python}", sys.executable))
            program.chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        self.plan()

    def plan(self, **outcomes):
        """For each verb what its calls do in turn; the last is repeated. Forgets earlier calls."""
        (self.folder / "plan").write_text(json.dumps(outcomes))
        (self.folder / "calls").write_text("")

    def calls(self):
        lines = (self.folder / "calls").read_text().splitlines()
        return [Call(*json.loads(line)) for line in lines]

    def verbs(self):
        """Of the calls that the plan speaks of."""
        return [call.verb for call in self.calls() if call.verb]

    def launch(self, script, *arguments, **options):
        return launch(script, *arguments, env=self.environment, **options)


@pytest.fixture
def tools(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    return Tools(folder)


# Cloud TPU.

PLACE = ["--name=x", "--project=p", "--zone=us-west4-a"]
TPU = [*PLACE, "--accelerator=v5litepod-16"]
FLAGS = [*RUN, "--config.name=a b", "--config.api_key=hush", "--token", "hush"]

QUEUED = "gcloud compute tpus queued-resources {} x --project=p --zone=us-west4-a"
STATE = QUEUED.format("describe") + " '--format=value(state.state)'"
SSH = "gcloud compute tpus tpu-vm ssh x --project=p --zone=us-west4-a --worker=all '--command={}'"
DELETE = QUEUED.format("delete") + " --force --quiet"
CREATE = [
    QUEUED.format("create") + " --node-id=x --accelerator-type=v5litepod-16"
    " --runtime-version=v2-alpha-tpuv5-lite --spot",
    STATE,
]
PUSH = [
    "mkdir -p build",
    "git bundle create --quiet build/manas_jax.bundle HEAD",
    "gcloud compute tpus tpu-vm scp build/manas_jax.bundle x:manas_jax.bundle --project=p"
    " --zone=us-west4-a --worker=all",
    SSH.format(
        "git init -q manas_jax && cd manas_jax && git fetch -q ../manas_jax.bundle HEAD"
        " && git checkout -qf FETCH_HEAD"
    ),
]
INSTALL = [
    SSH.format(
        "sudo apt-get install -qq nfs-common && sudo mkdir -p /mnt/runs"
        " && { mountpoint -q /mnt/runs || sudo mount -t nfs 10.0.0.2:/a /mnt/runs; }"
        " && sudo chmod go+rwx /mnt/runs"
        " && cd manas_jax && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv"
        " && python3 -m uv venv -q --allow-existing --python 3.11 .venv"
        " && python3 -m uv pip install -q --python .venv/bin/python -r requirements.txt"
        " -r requirements-tpu.txt"
    )
]
WORK = SSH.format(
    "cd manas_jax && exec 9>../manas_jax.lock && flock 9"
    " && exec .venv/bin/python -m manas_jax.main --distributed --config=configs/tiny.py"
    r" --workdir=runs/x '\''--config.name=a b'\'' '\''--config.api_key=***'\'' --token '\''***'\''"
)
NONE = r"'\''[.]venv/bin/python -m manas_jax'\'' || echo nothing runs here"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["create", "--spot", *TPU], CREATE),
        (["push", *PLACE], PUSH),
        (["install", "--nfs=10.0.0.2:/a", *PLACE], INSTALL),
        (["run", *PLACE, *FLAGS], [WORK]),
        (
            ["resume", "--spot", "--nfs=10.0.0.2:/a", "--restarts=3", *TPU, *FLAGS],
            [
                "# where the TPU is gone or was taken away:",
                *[DELETE, *CREATE, *PUSH, *INSTALL],
                "# then, and again up to 3 times after interruptions:",
                WORK,
            ],
        ),
        (["stop", *PLACE], [SSH.format("pkill -TERM -f " + NONE)]),
        (["status", *PLACE], [STATE, SSH.format("pgrep -af " + NONE)]),
        (["delete", *PLACE], [DELETE]),
    ],
    ids=["create", "push", "install", "run", "resume", "stop", "status", "delete"],
)
def test_tpu_dry_run(tools, arguments, expected):
    finished = tools.launch("tpu.sh", arguments[0], "--dry-run", *arguments[1:])
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == expected
    assert "hush" not in finished.stdout + finished.stderr
    assert tools.calls() == []


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_tpu_software(accelerator, runtime):
    arguments = ["create", "--dry-run", *PLACE, f"--accelerator={accelerator}"]
    assert f"--runtime-version={runtime}\n" in launch("tpu.sh", *arguments).stdout
    other = launch("tpu.sh", *arguments, "--runtime=other").stdout
    assert "--runtime-version=other\n" in other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", *PLACE], "make: unknown"),
        (["create", *TPU, "--fast"], "--fast: unknown"),
        (["create", "--project=p", "--zone=us-west4-a"], "--name="),
        (["create", *TPU, "--name=X_1"], "--name=X_1: give small letters"),
        (["create", "--name=x", "--zone=us-west4-a"], "--project=... is missing"),
        (["create", *TPU, "--zone=us-west4"], "--zone=us-west4: give a zone"),
        (["create", *PLACE], "--accelerator=: give a type"),
        (["create", *PLACE, "--accelerator=v9z-8"], "give --runtime"),
        (["create", *TPU, *RUN], "create takes no flags"),
        (["install", *PLACE, "--nfs=10.0.0.2"], "give HOST:/SHARE"),
        (["install", *PLACE, "--nfs=a:/b; rm -r x"], "give HOST:/SHARE"),
        (["resume", *TPU, "--restarts=many", *RUN], "--restarts=many: give a whole number"),
        (["run", *PLACE], "--config=... is missing"),
        (["run", *PLACE, "--", "--config=configs/tiny.py"], "--workdir=... is missing"),
        (["run", *PLACE, "--", "--config=no.py", "--workdir=x"], "--config=no.py: no such file"),
        (["resume", *TPU, *RUN, "--distributed"], "--distributed is set by the launcher"),
    ],
)
def test_tpu_refuses_before_anything_is_created(tools, arguments, message):
    assert refused(tools.launch("tpu.sh", *arguments), message)
    assert tools.calls() == []


def test_tpu_create_waits_until_it_is_there(tools):
    states = ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    tools.plan(describe=states, create=[0])
    finished = tools.launch("tpu.sh", "create", *TPU)
    assert finished.returncode == 0, finished.stderr
    assert tools.verbs() == ["describe", "create", *["describe"] * 3]
    assert [call.words for call in tools.calls() if call.name == "sleep"] == [["30"]] * 2
    assert "billed until you delete it" in finished.stderr


def test_tpu_create_leaves_what_is_there_alone(tools):
    tools.plan(describe=["ACTIVE"], create=[0], delete=[0])
    assert refused(tools.launch("tpu.sh", "create", *TPU), "x is there already (ACTIVE)")
    assert tools.verbs() == ["describe"]


def test_tpu_create_that_fails_says_what_may_be_left(tools):
    tools.plan(describe=[""], create=[1], delete=[0])
    assert refused(tools.launch("tpu.sh", "create", *TPU), "x was not created; if")
    assert tools.verbs() == ["describe", "create"]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_tpu_create_that_ends_in_the_queue(tools, state):
    tools.plan(describe=["", "PROVISIONING", state], create=[0])
    finished = tools.launch("tpu.sh", "create", *TPU)
    assert finished.returncode == 2
    assert f"error: x is {state}: delete it" in finished.stderr


def test_tpu_delete_that_fails_is_no_success(tools):
    tools.plan(delete=[1])
    assert refused(tools.launch("tpu.sh", "delete", *PLACE), "was not deleted, and may be billed")


def test_tpu_resume_makes_a_tpu_that_was_taken_away_anew(tools):
    # There at first; taken away during the run; gone; asked for again; and there to the end.
    states = ["ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE"]
    tools.plan(describe=states, create=[0], delete=[0], scp=[0], ssh=[1, 0])
    finished = tools.launch("tpu.sh", "resume", *TPU, *RUN)
    assert finished.returncode == 0, finished.stderr
    assert tools.verbs() == [
        *["describe", "ssh", "describe"],
        *["describe", "delete", "describe", "create", "describe", "scp", "ssh", "ssh"],
        "ssh",
    ]
    commands = [call.words[-1] for call in tools.calls() if call.verb == "ssh"]
    assert "manas_jax.main" in commands[0]
    assert commands[0] == commands[-1]


@pytest.mark.parametrize("status", [75, 255, 137])
def test_tpu_resume_starts_again_where_the_tpu_stayed(tools, status):
    tools.plan(describe=["ACTIVE"], ssh=[status, status, 0])
    finished = tools.launch("tpu.sh", "resume", *TPU, *RUN)
    assert finished.returncode == 0, finished.stderr
    assert tools.verbs().count("ssh") == 3
    tools.plan(describe=["ACTIVE"], ssh=[status])
    finished = tools.launch("tpu.sh", "resume", *TPU, "--restarts=1", *RUN)
    assert finished.returncode == status
    assert tools.verbs().count("ssh") == 2


def test_tpu_resume_does_not_repeat_a_mistake(tools):
    tools.plan(describe=["ACTIVE"], ssh=[1])
    assert tools.launch("tpu.sh", "resume", *TPU, *RUN).returncode == 1
    assert tools.verbs() == ["describe", "ssh", "describe"]


def test_tpu_worker_part_really_runs(tools, tmp_path):
    """Push and run, with a folder for a worker: the commit arrives, twice; flags arrive whole."""
    root, worker = tmp_path / "checkout", tmp_path / "worker"
    worker.mkdir()
    shutil.copytree(LAUNCH, root / "launch")
    (root / "configs").mkdir()
    (root / "configs" / "tiny.py").touch()

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    git("init", "--quiet")
    tools.plan(worker=str(worker))
    for text in ("one", "two"):
        (root / "file").write_text(text)
        git("add", ".")
        git("commit", "--quiet", "--message=x")
        (root / "file").write_text("not committed")
        finished = tools.launch("tpu.sh", "push", *PLACE, root=root)
        assert finished.returncode == 0, finished.stderr
        assert "changes that are not committed are not pushed" in finished.stderr
        assert (worker / "manas_jax" / "file").read_text() == text
        head = (worker / "manas_jax" / ".git" / "HEAD").read_text().strip()
        assert head == git("rev-parse", "HEAD")

    program = worker / "manas_jax" / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\nexit 75\n')
    program.chmod(0o755)
    flags = [*FLAGS, "--config.b=it's $HOME *"]
    finished = tools.launch("tpu.sh", "run", *PLACE, *flags, root=root)
    assert finished.returncode == 75, finished.stderr
    words = ["-m", "manas_jax.main", "--distributed", *flags[1:]]
    assert finished.stdout.splitlines() == [f"<{word}>" for word in words]


@pytest.mark.skipif(not shutil.which("gcloud"), reason="asks gcloud's own parser; not installed")
def test_tpu_commands_are_what_gcloud_knows(tmp_path):
    resume = ["resume", "--dry-run", "--spot", *TPU, *RUN]
    lines = launch("tpu.sh", *resume).stdout.splitlines()
    commands = [{"command_string": line} for line in lines if line.startswith("gcloud")]
    assert len(commands) >= 6
    (tmp_path / "commands").write_text(json.dumps(commands))
    checked = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={tmp_path}/commands"],
        env={
            **os.environ,
            "CLOUDSDK_CONFIG": str(tmp_path),
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    answers = json.loads(checked.stdout)
    assert len(answers) == len(commands)
    assert [a["error_message"] for a in answers if not a["success"]] == []


# GKE.

POD = ["--name=x", "--image=reg/manas:1"]
SLICE = [*POD, "--tpu=tpu-v5-lite-podslice", "--topology=4x4"]
GPUS = [*POD, "--gpu=nvidia-h100-80gb", "--nodes=2"]
ON_VOLUME = ["--", "--config=configs/tiny.py", "--workdir=/runs/x"]


def fields(required, **properties):
    """Schema of an object of these fields and no others."""
    return {
        "type": "object",
        "required": required,
        "additionalProperties": False,
        "properties": properties,
    }


# The fields of a JobSet that are used, as https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2
# has them. What a Job has is left to the schema of Kubernetes.
JOBSET = fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=fields(
        ["name"],
        name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
        annotations={"type": "object", "additionalProperties": {"type": "string"}},
    ),
    spec=fields(
        ["replicatedJobs", "failurePolicy"],
        failurePolicy=fields(
            ["maxRestarts"],
            maxRestarts={"type": "integer", "minimum": 0},
            rules={
                "type": "array",
                "items": fields(
                    ["name", "action"],
                    name={
                        "type": "string",
                        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    },
                    action={
                        "enum": [
                            "FailJobSet",
                            "RestartJobSet",
                            "RestartJobSetAndIgnoreMaxRestarts",
                        ]
                    },
                    onJobFailureReasons={
                        "type": "array",
                        "uniqueItems": True,
                        "items": {
                            "enum": [
                                "BackoffLimitExceeded",
                                "DeadlineExceeded",
                                "FailedIndexes",
                                "MaxFailedIndexesExceeded",
                                "PodFailurePolicy",
                            ]
                        },
                    },
                ),
            },
        ),
        replicatedJobs={
            "type": "array",
            "minItems": 1,
            "items": fields(
                ["name", "template"],
                name={"type": "string"},
                replicas={"type": "integer", "minimum": 1},
                template=fields(["spec"], spec={"type": "object"}),
            ),
        },
    ),
)


def manifest(*arguments):
    """What a dry run of `create` would create, checked against the schemas."""
    finished = launch("gke.py", "create", "--dry-run", *arguments)
    assert finished.returncode == 0, finished.stderr
    first, *lines, last = finished.stdout.splitlines()
    assert first == "kubectl --namespace=default create --filename=- <<'END'"
    assert last == "END"
    jobset = yaml.safe_load("\n".join(lines))
    jsonschema.validate(jobset, JOBSET)
    (job,) = jobset["spec"]["replicatedJobs"]
    as_job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, **job["template"]}
    assert kubernetes_validate.validate(as_job, "1.33", strict=True) == "1.33"
    return jobset


def job_of(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(jobset):
    return job_of(jobset)["template"]["spec"]


def test_gke_tpu_manifest():
    jobset = manifest(*SLICE, "--spot", *ON_VOLUME)
    job = job_of(jobset)
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    pod = pod_of(jobset)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["args"] == ["--distributed", *ON_VOLUME[1:]]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "runs"
    assert container["volumeMounts"] == [{"name": "runs", "mountPath": "/runs"}]


def test_gke_gpu_manifest():
    jobset = manifest(*GPUS, "--gpus-per-node=8", "--secret=keys", *ON_VOLUME)
    pod = pod_of(jobset)
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    (container,) = pod["containers"]
    assert container["args"] == [
        "--coordinator=x-worker-0-0.x:8476",
        "--processes=2",
        "--process=$(JOB_COMPLETION_INDEX)",
        *ON_VOLUME[1:],
    ]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_gke_one_process_needs_no_coordinator():
    one = manifest(*POD, "--tpu=t", "--topology=2x4", "--chips-per-host=8", *ON_VOLUME)
    assert pod_of(one)["containers"][0]["args"] == ON_VOLUME[1:]


def test_gke_what_restarts_and_what_does_not():
    jobset = manifest(*SLICE, "--restarts=7", "--grace=90", *ON_VOLUME)
    (rule,) = job_of(jobset)["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert rule["onExitCodes"]["values"] == [1, 2]  # so neither 75 nor 128 and more
    assert rule["onExitCodes"]["containerName"] == pod_of(jobset)["containers"][0]["name"]
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert pod_of(jobset)["restartPolicy"] == "Never"
    assert pod_of(jobset)["terminationGracePeriodSeconds"] == 90


def test_gke_volume_is_valid():
    claim = yaml.safe_load((LAUNCH / "gke" / "volume.yaml").read_text())
    assert kubernetes_validate.validate(claim, "1.33", strict=True) == "1.33"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["metadata"]["name"] == "runs"  # what gke.py takes by default


SELECTED = "--selector=jobset.sigs.k8s.io/jobset-name=x"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("status", ["get jobset x", f"get pods {SELECTED} --output=wide"]),
        ("logs", [f"logs {SELECTED} --prefix --follow --max-log-requests=64"]),
        ("delete", ["delete jobset x --ignore-not-found --cascade=foreground"]),
    ],
)
def test_gke_dry_run(tools, command, expected):
    finished = tools.launch("gke.py", command, "--name=x", "--namespace=n", "--dry-run")
    lines = finished.stdout.splitlines()
    assert lines == [f"kubectl --namespace=n {line}" for line in expected], finished.stderr
    assert tools.calls() == []


def test_gke_creates_what_the_dry_run_shows(tools):
    arguments = [*SLICE, *ON_VOLUME]
    shown = tools.launch("gke.py", "resume", "--dry-run", *arguments).stdout
    finished = tools.launch("gke.py", "resume", *arguments)
    assert finished.returncode == 0, finished.stderr
    delete, create = tools.calls()
    assert delete.words[1:3] == ["delete", "jobset"]
    assert create.words == ["--namespace=default", "create", "--filename=-"]
    assert f"<<'END'\n{create.piped}END\n" in shown


def test_gke_does_not_create_where_deleting_failed(tools):
    tools.plan(delete=[3], create=[0])
    assert tools.launch("gke.py", "resume", *SLICE, *ON_VOLUME).returncode == 3
    assert tools.verbs() == ["delete"]


def test_gke_hides_secrets():
    run = [*ON_VOLUME, "--config.a.password=hush", "--api-key", "hush"]
    finished = launch("gke.py", "create", "--dry-run", *SLICE, *run)
    assert '"--config.a.password=***", "--api-key", "***"' in finished.stdout
    assert "hush" not in finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", *SLICE, *ON_VOLUME], "invalid choice: 'make'"),
        (["create", *ON_VOLUME], "--name"),
        (["create", *SLICE, "--name=A b", *ON_VOLUME], "--name=A b: give small letters"),
        (["create", SLICE[0], *SLICE[2:], *ON_VOLUME], "--image=... is missing"),
        (["create", *POD, *ON_VOLUME], "give either --tpu"),
        (["create", *SLICE, "--gpu=t", *ON_VOLUME], "give either --tpu"),
        (["create", *POD, "--tpu=t", *ON_VOLUME], "--topology=: give one"),
        (["create", *POD, "--tpu=t", "--topology=2x3", *ON_VOLUME], "has 6 chips"),
        (["create", *SLICE, "--restarts=x", *ON_VOLUME], "'x' is no whole number"),
        (["create", *SLICE, *RUN], "--workdir=runs/x: give a folder under /runs"),
        (["create", *SLICE, *ON_VOLUME, "--process=0"], "--process is set by the launcher"),
        (["delete", "--name=x", *ON_VOLUME], "delete takes no flags"),
    ],
)
def test_gke_refuses_before_anything_is_created(tools, arguments, message):
    assert refused(tools.launch("gke.py", *arguments), message)
    assert tools.calls() == []


# Slurm.

JOB = ["--nodes=2", "--gpus-per-node=4", "--time=1-04:00:00"]


def test_slurm_dry_run(tools):
    arguments = [*JOB, "--partition=gpu", "--account=me", "--restarts=3", *FLAGS]
    finished = tools.launch("slurm.sh", "--dry-run", *arguments)
    assert finished.stdout == (
        "sbatch --nodes=2 --time=1-04:00:00 --ntasks-per-node=4 --gpus-per-node=4 --partition=gpu"
        " --account=me --export=ALL,RESTARTS=3 launch/slurm.sbatch --config=configs/tiny.py"
        " --workdir=runs/x '--config.name=a b' '--config.api_key=***' --token '***'\n"
    ), finished.stderr
    on_cpu = ["--nodes=1", "--gpus-per-node=0", "--time=0:10:00", *RUN]
    finished = tools.launch("slurm.sh", "--dry-run", *on_cpu)
    assert finished.stdout == (
        "sbatch --nodes=1 --time=0:10:00 --ntasks-per-node=1 --export=ALL,RESTARTS=10"
        " launch/slurm.sbatch --config=configs/tiny.py --workdir=runs/x\n"
    )
    assert tools.calls() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus-per-node=4", "--time=4:00:00", *RUN], "--nodes=: give a whole number"),
        ([*JOB, "--nodes=0", *RUN], "--nodes=0: give a whole number"),
        ([*JOB, "--gpus-per-node=all", *RUN], "--gpus-per-node=all: give a whole number"),
        ([*JOB, "--time=soon", *RUN], "--time=soon: give"),
        ([*JOB, "--restarts=-1", *RUN], "--restarts=-1: give a whole number"),
        ([*JOB, "--fast", *RUN], "--fast: unknown"),
        (JOB, "--config=... is missing"),
        ([*JOB, *RUN, "--coordinator=a:1"], "--coordinator is set by the launcher"),
    ],
)
def test_slurm_refuses_before_anything_is_queued(tools, arguments, message):
    assert refused(tools.launch("slurm.sh", *arguments), message)
    assert tools.calls() == []


@pytest.mark.parametrize(
    ("status", "before", "queued"),
    [
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 0),
        (75, 0, 1),
        (137, 2, 1),
        (143, 2, 1),
        (130, 0, 0),
        (75, 3, 0),
    ],
)
def test_slurm_queues_again(tools, status, before, queued):
    tools.environment |= {
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "12",
        "SLURM_RESTART_COUNT": str(before),
        "RESTARTS": "3",
    }
    tools.plan(**{"manas_jax.main": [status]})
    finished = tools.launch("slurm.sbatch", *RUN[1:])
    assert finished.returncode == status
    srun, *rest = tools.calls()
    assert srun.words[2:] == [".venv/bin/python", "-m", "manas_jax.main", "--distributed", *RUN[1:]]
    assert [(call.name, call.words) for call in rest] == [("scontrol", ["requeue", "12"])] * queued


def test_slurm_does_not_queue_again_what_was_cancelled(tools):
    """Slurm tells the script only then; the processes save, and end with 75."""
    (tools.folder / "srun").write_text('#!/bin/sh\nkill -TERM "$PPID"\nexit 75\n')
    tools.environment |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "12"}
    assert tools.launch("slurm.sbatch", *RUN[1:]).returncode == 75
    assert tools.calls() == []


# All of them.


@pytest.mark.parametrize(
    ("script", "arguments", "tool"),
    [
        ("tpu.sh", ["delete", *PLACE], "gcloud"),
        ("slurm.sh", [*JOB, *RUN], "sbatch"),
        ("gke.py", ["create", *SLICE, *ON_VOLUME], "kubectl"),
    ],
)
def test_missing_tool_is_one_line(tmp_path, script, arguments, tool):
    for name in ("bash", "dirname", "git"):
        (tmp_path / name).symlink_to(shutil.which(name))
    environment = {"PATH": str(tmp_path)}
    finished = launch(script, *arguments, env=environment)
    assert refused(finished, f"{tool} is not installed; --dry-run works without it")
    dry = launch(script, arguments[0], "--dry-run", *arguments[1:], env=environment)
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.startswith(tool)


@pytest.mark.parametrize("name", ["PREEMPTED", "CANCELLED"])
def test_statuses_are_those_of_the_package(name):
    for file in ("common.py", "common.sh"):
        text = (LAUNCH / file).read_text()
        (value,) = re.findall(rf"^{name} *= *(\d+)", text, re.MULTILINE)
        assert int(value) == getattr(signals, name)


def checker(name):
    """A linter of requirements-dev.txt."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return shutil.which(name, path=path) or pytest.skip(f"{name}: see requirements-dev.txt")


def test_shell_scripts_pass_shellcheck():
    files = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), ROOT / ".ci" / "run"]
    assert len(files) >= 5
    found = subprocess.run(
        [checker("shellcheck"), "--external-sources", *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


def test_container_file_passes_hadolint():
    found = subprocess.run(
        [checker("hadolint"), str(LAUNCH / "Dockerfile")], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


def test_container_file_copies_what_there_is():
    """Every source exists and is let through, and nothing else is."""
    text = (LAUNCH / "Dockerfile").read_text()
    sources = [
        word for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in line.split()
    ]
    assert {"manas_jax", "configs"} <= set(sources)
    assert all(list(ROOT.glob(source)) for source in sources)
    rules = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if not rule.startswith("#")]
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == sorted(sources)
    for accelerator in ("gpu", "tpu"):
        assert (ROOT / f"requirements-{accelerator}.txt").is_file()


def test_readme_names_every_file():
    text = (LAUNCH / "README.md").read_text()
    for file in LAUNCH.rglob("*"):
        if file.is_file() and file.suffix != ".pyc" and file.name != "README.md":
            assert f"({file.relative_to(LAUNCH)})" in text, file
