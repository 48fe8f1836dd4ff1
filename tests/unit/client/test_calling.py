"""One call, step by step: what it sends, how long it waits, and what it says in the end."""

from __future__ import annotations

import time

import pytest

from forwardpass.client.calling import Peer, Send, converse, make_peer, make_tls
from forwardpass.client.operations import describe_server
from forwardpass.client.receiving import Answer
from forwardpass.errors import DeadlineExceeded, InvalidOption

LATE = b'{"error":"Late.","slug":"deadline-exceeded","facts":{"deadline_s":1.25}}'


def a_peer(timeout_s: float | None) -> Peer:
    tls = make_tls(verify=True, ca=None, certificate=None, private_key=None)
    return make_peer(
        "localhost", key=None, timeout_s=timeout_s, max_retries=0, max_connections=1, headers=None, tls=tls
    )


def waits_s(peer: Peer, timeout_s: float | None) -> float:
    """Return how long after its begin a call waits for its answer."""
    begun_s = time.monotonic()
    step = next(converse(peer, describe_server(), timeout_s=timeout_s, begun_s=begun_s))
    assert isinstance(step, Send)
    return step.until_s - begun_s


def test_the_servers_own_word_that_it_is_late_is_waited_for_a_little_longer() -> None:
    assert waits_s(a_peer(None), None) == pytest.approx(60.0), "the server was told nothing"
    assert waits_s(a_peer(2.0), None) == pytest.approx(2.5)
    assert waits_s(a_peer(2.0), 0.02) == pytest.approx(0.07)
    assert waits_s(a_peer(None), 600.0) == pytest.approx(601.0)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deadline_that_is_none_is_refused(timeout_s: float) -> None:
    with pytest.raises(InvalidOption, match="for timeout_s: expected more than 0"):
        a_peer(timeout_s)
    with pytest.raises(InvalidOption, match="for timeout_s: expected more than 0"):
        next(converse(a_peer(None), describe_server(), timeout_s=timeout_s))


def test_late_is_said_of_the_whole_deadline_not_of_what_the_server_was_left() -> None:
    call = converse(a_peer(2.0), describe_server())
    next(call)
    with pytest.raises(DeadlineExceeded) as caught:
        call.send(Answer(status=504, headers={}, body=LATE, keeps_alive=True))
    assert caught.value.deadline_s == 2.0


def test_a_deadline_of_the_servers_own_is_told_as_it_is() -> None:
    call = converse(a_peer(None), describe_server())
    next(call)
    with pytest.raises(DeadlineExceeded) as caught:
        call.send(Answer(status=504, headers={}, body=LATE, keeps_alive=True))
    assert caught.value.deadline_s == 1.25
