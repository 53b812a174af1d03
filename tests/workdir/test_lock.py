"""One run at a time in a workdir, and locks whose holder is gone."""

import os
import socket
import subprocess
import sys
import threading

import pytest

from manas_jax.errors import UserError
from manas_jax.workdir import lock

HOLDER = """
import sys, manas_jax.workdir.lock as lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the workdir `tmp_path / "run"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_holder_is_named_and_a_dead_one_replaced(tmp_path, other):
    named = rf"run is in use by process {other.pid} on {socket.gethostname()}, last seen at 20"
    with pytest.raises(UserError, match=named), lock.hold(tmp_path / "run"):
        pass
    other.kill()
    other.wait()
    with lock.hold(tmp_path / "run"):
        assert f"pid={os.getpid()}" in (tmp_path / "run" / lock.NAME).read_text()
        (tmp_path / "run" / "result").write_text("x")
    assert os.listdir(tmp_path / "run") == ["result"]


def test_workdir_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 0.3)
    monkeypatch.setattr(lock, "_HEARTBEAT", 0.05)
    monkeypatch.setattr(lock, "_POLL", 0.02)


def _foreign(tmp_path):
    text = "filelock/2\npid=7\nhost=elsewhere\nmode=lease\ntoken=t\nduration=0.3\n"
    (tmp_path / lock.NAME).write_text(text)


def test_holder_on_another_machine_shows_a_sign_of_life(tmp_path, quick, monkeypatch):
    _foreign(tmp_path)
    polls = iter(range(100))
    monkeypatch.setattr(
        lock.time, "sleep", lambda _: os.utime(tmp_path / lock.NAME, (1, next(polls)))
    )
    with pytest.raises(UserError, match="process 7 on elsewhere"), lock.hold(tmp_path):
        pass


@pytest.mark.parametrize("content", [None, "", "rubbish"])
def test_lock_without_a_sign_of_life_is_taken_over(tmp_path, quick, monkeypatch, content):
    _foreign(tmp_path)
    if content is not None:
        (tmp_path / lock.NAME).write_text(content)
    with lock.hold(tmp_path):
        assert f"pid={os.getpid()}" in (tmp_path / lock.NAME).read_text()


def test_loss_of_the_lock_is_noticed(tmp_path, quick, monkeypatch):
    lost = threading.Event()
    monkeypatch.setattr(lock, "_stop", lambda *_: lost.set())
    with lock.hold(tmp_path):
        assert not lost.wait(0.2)
        (tmp_path / lock.NAME).unlink()
        assert lost.wait(10)


def test_message_of_a_lost_lock(tmp_path, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    lock._stop(tmp_path, "owner-changed")
    assert ended == [1]
    assert "run.lock is lost (owner-changed)" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "/below"])
def test_workdir_that_is_a_file(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    path = f"{tmp_path}/file{below}"
    with pytest.raises(UserError, match=r"--workdir=.* cannot be written"), lock.hold(path):
        pass
    assert (tmp_path / "file").read_text() == "mine"
