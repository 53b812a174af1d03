"""Joining flags, and the exchange of values between processes.

Real processes work together in tests/integration/test_processes.py.
"""

import pytest

from manas_jax.errors import UserError
from manas_jax.runtime import distributed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None), "--processes, --process: missing"),
        ((None, 2, 0), "--coordinator: missing"),
        (("localhost:1", 2, 2), "--process=2: give 0 to 1"),
        (("localhost:1", 2, -1), "--process=-1: give 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_together(arguments, message):
    with pytest.raises(UserError, match=message):
        distributed.start(*arguments)


def test_single_process():
    distributed.start(None, None, None)
    assert distributed.is_primary()
    assert distributed.broadcast_from_primary(lambda: {"a": 1}) == {"a": 1}
    assert distributed.gather([3, 1, 2]) == [3, 1, 2]
    assert not distributed.is_peer_failure(ValueError("gloo: connection closed"))


@pytest.mark.parametrize("length", [0, 2, 6, 7])
def test_gather_restores_the_order(monkeypatch, length):
    items = list(range(length))
    shards = [items[i::3] for i in range(3)]
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 3)
    monkeypatch.setattr(distributed, "_all_gather", lambda _: shards)
    assert distributed.gather(shards[1]) == items


def test_peer_failures_are_told_from_bugs(monkeypatch):
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    gone = "UNKNOWN: Gloo all-reduce failed: Read error [127.0.0.1]:1925: Connection reset by peer"
    assert distributed.is_peer_failure(ValueError(gone))
    assert not distributed.is_peer_failure(ValueError("shapes differ"))
    assert not distributed.is_peer_failure(KeyError("gloo"))
