"""One run at a time in a workdir, and locks whose holder is gone."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from manas_jax import buckets
from manas_jax.errors import UserError
from manas_jax.workdir import lock, object_lock

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


IN_A_BUCKET = "gs://bucket/run"


def _object():
    return buckets.as_path(IN_A_BUCKET) / lock.NAME


def test_bucket_is_held_by_one_process(bucket):
    with lock.hold(IN_A_BUCKET):
        assert json.loads(_object().read_text())["process"] == os.getpid()
        done = subprocess.run(
            [sys.executable, "-c", HOLDER.replace("import sys", QUICK), IN_A_BUCKET],
            input="",
            capture_output=True,
            text=True,
        )
    assert f"run is in use by process {os.getpid()} on {socket.gethostname()}" in done.stderr
    assert "held" not in done.stdout
    assert not _object().exists()


QUICK = "import manas_jax.workdir.lock; manas_jax.workdir.lock._POLL = 0.1; import sys"


@pytest.mark.parametrize(
    "content",
    [
        {"process": os.getpid(), "host": socket.gethostname(), "token": "before a restart"},
        {"process": 7, "host": "elsewhere", "token": "abandoned"},
        "rubbish",
    ],
)
def test_lock_in_a_bucket_of_a_dead_process_is_taken_over(bucket, quick, content):
    _object().write_text(json.dumps(content))
    with lock.hold(IN_A_BUCKET):
        assert json.loads(_object().read_text())["process"] == os.getpid()
    assert not _object().exists()


def test_one_of_several_takes_a_lock_in_a_bucket_over(bucket, quick):
    """All of them have seen the same dead lock when the first of them replaces it."""
    _object().write_text('{"process": 7, "host": "elsewhere", "token": "abandoned"}')
    store = object_lock.ts.KvStore.open({"driver": "gcs", "bucket": "bucket"}).result()
    seen = object_lock._read(store, "run/run.lock")
    holders = [object_lock.Holder(n, "here", str(n)) for n in range(3)]
    written = [object_lock._write(store, "run/run.lock", h, seen.generation) for h in holders]
    assert written[0] and written[1:] == [None, None]
    assert object_lock._read(store, "run/run.lock").holder == holders[0]


def test_loss_of_a_lock_in_a_bucket_is_noticed(bucket, quick, monkeypatch):
    lost = threading.Event()
    monkeypatch.setattr(lock, "_stop", lambda *_: lost.set())
    with lock.hold(IN_A_BUCKET):
        assert not lost.wait(0.2)
        _object().write_text('{"process": 7, "host": "elsewhere", "token": "another"}')
        assert lost.wait(10)
    assert "elsewhere" in _object().read_text()


@pytest.mark.parametrize("status", [403, 404])
def test_bucket_that_refuses(bucket, status):
    bucket(status)
    with (
        pytest.raises(UserError, match=r"--workdir=gs://bucket/run cannot be written .*bucket"),
        lock.hold(IN_A_BUCKET),
    ):
        pass
