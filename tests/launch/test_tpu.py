"""launch/tpu.sh with a fake gcloud."""

import json
import os
import shutil
import subprocess

import pytest
from launchers import LAUNCH, RUN, SECRET_FLAGS, FakeTools, assert_refused, launch


@pytest.fixture
def tools(tmp_path):
    return FakeTools(tmp_path / "bin")


PLACE = ["--name=x", "--project=p", "--zone=us-west4-a"]
TPU = [*PLACE, "--accelerator=v5litepod-16"]

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
        " -r requirements-gcs.txt -r requirements-tpu.txt"
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
        (
            ["preflight", "--accelerator=v5litepod-16", *SECRET_FLAGS],
            [
                "python -m manas_jax.preflight --topology=v5litepod-16 --config=configs/tiny.py"
                " --workdir=runs/x '--config.name=a b' '--config.api_key=***' --token '***'"
            ],
        ),
        (["create", "--spot", *TPU], CREATE),
        (["push", *PLACE], PUSH),
        (["install", "--nfs=10.0.0.2:/a", *PLACE], INSTALL),
        (["run", *PLACE, *SECRET_FLAGS], [WORK]),
        (
            ["resume", "--spot", "--nfs=10.0.0.2:/a", "--restarts=3", *TPU, *SECRET_FLAGS],
            [
                "# if the TPU is missing or was preempted:",
                *[DELETE, *CREATE, *PUSH, *INSTALL],
                "# then, and up to 3 more times after interruptions:",
                WORK,
            ],
        ),
        (["stop", *PLACE], [SSH.format("pkill -TERM -f " + NONE)]),
        (["status", *PLACE], [STATE, SSH.format("pgrep -af " + NONE)]),
        (["delete", *PLACE], [DELETE]),
    ],
    ids=["preflight", "create", "push", "install", "run", "resume", "stop", "status", "delete"],
)
def test_dry_run(tools, arguments, expected):
    finished = tools.launch("tpu.sh", arguments[0], "--dry-run", *arguments[1:])
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == expected
    assert "hush" not in finished.stdout + finished.stderr
    assert tools.calls() == []


def test_workdir_in_a_bucket_holds_the_compiled_programs():
    flags = ["--", "--config=configs/tiny.py", "--workdir=gs://bucket/a b"]
    printed = launch("tpu.sh", "run", "--dry-run", *PLACE, *flags).stdout
    cache = r"'\''JAX_COMPILATION_CACHE_DIR=gs://bucket/a b/compilation_cache'\''"
    assert f"exec env {cache} .venv/bin/python -m manas_jax.main" in printed


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_runtime_version(accelerator, runtime):
    arguments = ["create", "--dry-run", *PLACE, f"--accelerator={accelerator}"]
    assert f"--runtime-version={runtime}\n" in launch("tpu.sh", *arguments).stdout
    other = launch("tpu.sh", *arguments, "--runtime=other").stdout
    assert "--runtime-version=other\n" in other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", *PLACE], "make: unknown"),
        (["create", *TPU, "--fast"], "--fast: unknown"),
        (["preflight", *RUN], "--accelerator=: give a type"),
        (["preflight", *TPU], "--config=... is missing"),
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
def test_refuses_before_anything_is_created(tools, arguments, message):
    assert_refused(tools.launch("tpu.sh", *arguments), message)
    assert tools.calls() == []


def test_create_waits_until_it_is_ready(tools):
    states = ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    tools.plan(describe=states, create=[0])
    finished = tools.launch("tpu.sh", "create", *TPU)
    assert finished.returncode == 0, finished.stderr
    assert tools.verbs() == ["describe", "create", *["describe"] * 3]
    assert [call.words for call in tools.calls() if call.name == "sleep"] == [["30"]] * 2
    assert "billed until you delete it" in finished.stderr


def test_waits_on_when_gcloud_fails_now_and_then(tools):
    tools.plan(describe=["", 1, "WAITING_FOR_RESOURCES", 1, "ACTIVE"], create=[0])
    finished = tools.launch("tpu.sh", "create", *TPU)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("gcloud cannot tell the state of x, trying again") == 2
    tools.plan(describe=[1], create=[0])
    for verb in ("create", "status"):
        assert "error: gcloud cannot tell" in tools.launch("tpu.sh", verb, *TPU).stderr
    assert "create" not in tools.verbs()


def test_create_refuses_an_existing_tpu(tools):
    tools.plan(describe=["ACTIVE"], create=[0], delete=[0])
    assert_refused(tools.launch("tpu.sh", "create", *TPU), "x exists already (ACTIVE)")
    assert tools.verbs() == ["describe"]


def test_create_offers_the_preflight(tools):
    tools.plan(describe=["", "ACTIVE"], create=[0])
    offer, *_ = tools.launch("tpu.sh", "create", *TPU).stderr.splitlines()
    assert "launch/tpu.sh preflight` compiles a run for v5litepod-16" in offer


def test_failed_create_says_what_may_be_left(tools):
    tools.plan(describe=[""], create=[1], delete=[0])
    finished = tools.launch("tpu.sh", "create", *TPU)
    assert finished.returncode == 2
    assert "error: x was not created; if" in finished.stderr.splitlines()[-1]
    assert tools.verbs() == ["describe", "create"]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_that_fails_in_the_queue(tools, state):
    tools.plan(describe=["", "PROVISIONING", state], create=[0])
    finished = tools.launch("tpu.sh", "create", *TPU)
    assert finished.returncode == 2
    assert f"error: x is {state}: delete it" in finished.stderr


def test_failed_delete_is_an_error(tools):
    tools.plan(delete=[1])
    assert_refused(tools.launch("tpu.sh", "delete", *PLACE), "was not deleted, and may be billed")


def test_resume_recreates_a_preempted_tpu(tools):
    # Active at first; preempted during the run; gone; requested again; active to the end.
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
def test_resume_restarts_on_the_same_tpu(tools, status):
    tools.plan(describe=["ACTIVE"], ssh=[status, status, 0])
    finished = tools.launch("tpu.sh", "resume", *TPU, *RUN)
    assert finished.returncode == 0, finished.stderr
    assert tools.verbs().count("ssh") == 3
    tools.plan(describe=["ACTIVE"], ssh=[status])
    finished = tools.launch("tpu.sh", "resume", *TPU, "--restarts=1", *RUN)
    assert finished.returncode == status
    assert tools.verbs().count("ssh") == 2


def test_resume_does_not_restart_after_a_mistake(tools):
    tools.plan(describe=["ACTIVE"], ssh=[1])
    assert tools.launch("tpu.sh", "resume", *TPU, *RUN).returncode == 1
    assert tools.verbs() == ["describe", "ssh", "describe"]


def test_push_and_run_on_a_local_worker(tools, tmp_path):
    """A folder is the worker: each pushed commit arrives; flags arrive unchanged."""
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
        assert "uncommitted changes are not pushed" in finished.stderr
        assert (worker / "manas_jax" / "file").read_text() == text
        head = (worker / "manas_jax" / ".git" / "HEAD").read_text().strip()
        assert head == git("rev-parse", "HEAD")

    program = worker / "manas_jax" / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\nexit 75\n')
    program.chmod(0o755)
    flags = [*SECRET_FLAGS, "--config.b=it's $HOME *"]
    finished = tools.launch("tpu.sh", "run", *PLACE, *flags, root=root)
    assert finished.returncode == 75, finished.stderr
    words = ["-m", "manas_jax.main", "--distributed", *flags[1:]]
    assert finished.stdout.splitlines() == [f"<{word}>" for word in words]


@pytest.mark.skipif(not shutil.which("gcloud"), reason="asks gcloud's own parser; not installed")
def test_commands_pass_the_parser_of_gcloud(tmp_path):
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
