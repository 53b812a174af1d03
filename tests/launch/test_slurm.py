"""launch/slurm.sh and slurm.sbatch with fakes of sbatch, srun and scontrol."""

import pytest
from conftest import ROOT
from launchers import RUN, SECRET_FLAGS, FakeTools, assert_refused


@pytest.fixture
def tools(tmp_path):
    return FakeTools(tmp_path / "bin")


JOB = ["--nodes=2", "--gpus-per-node=4", "--time=1-04:00:00"]


def test_dry_run(tools):
    arguments = [*JOB, "--partition=gpu", "--account=me", "--restarts=3", *SECRET_FLAGS]
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
    named = ["--", "--config=pretrained:general", "--workdir=runs/x"]
    finished = tools.launch("slurm.sh", "--dry-run", *on_cpu[:3], *named)
    assert finished.stdout.endswith("sbatch --config=pretrained:general --workdir=runs/x\n")
    assert tools.calls() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus-per-node=4", "--time=4:00:00", *RUN], "--nodes=: give a whole number"),
        ([*JOB, "--", "--config=quick", "--workdir=x"], "--config=quick: no such file"),
        ([*JOB, "--nodes=0", *RUN], "--nodes=0: give a whole number"),
        ([*JOB, "--gpus-per-node=all", *RUN], "--gpus-per-node=all: give a whole number"),
        ([*JOB, "--gpus-per-node=08", *RUN], "--gpus-per-node=08: give a whole number"),
        ([*JOB, "--time=soon", *RUN], "--time=soon: give"),
        ([*JOB, "--restarts=010", *RUN], "--restarts=010: give a whole number"),
        ([*JOB, "--restarts=-1", *RUN], "--restarts=-1: give a whole number"),
        ([*JOB, "--fast", *RUN], "--fast: unknown"),
        (JOB, "--config=... is missing"),
        ([*JOB, *RUN, "--coordinator=a:1"], "--coordinator is set by the launcher"),
    ],
)
def test_refuses_before_anything_is_queued(tools, arguments, message):
    assert_refused(tools.launch("slurm.sh", *arguments), message)
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
def test_requeues(tools, status, before, queued):
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


def test_does_not_requeue_a_cancelled_job(tools):
    """Only then the script gets SIGTERM; the processes save, and exit with 75."""
    (tools.folder / "srun").write_text('#!/bin/sh\nkill -TERM "$PPID"\nexit 75\n')
    tools.environment |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "12"}
    assert tools.launch("slurm.sbatch", *RUN[1:]).returncode == 75
    assert tools.calls() == []
