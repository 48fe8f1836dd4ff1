"""How long requests have waited to be read, in front of a made-up loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from forwardpass.serve.backlog import Backlog


class Turns:
    """A loop of which only the end of a turn is used, and its clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._ends: list[Callable[[], None]] = []
        self.backlog = Backlog(cast(asyncio.AbstractEventLoop, self), clock=lambda: self.now_s)

    def call_soon(self, callback: Callable[[], None], *args: Any) -> None:
        self._ends.append(callback)

    def turn(self, *seconds: float) -> list[float]:
        """Read as many requests as there are numbers, each of which takes so long; return how long they had waited."""
        waited = []
        for each_s in seconds:
            waited.append(self.backlog.wait_s())
            self.now_s += each_s
        for end in self._ends:
            end()
        self._ends.clear()
        return waited


def test_what_wakes_a_sleeping_loop_has_not_waited() -> None:
    turns = Turns()
    turns.turn(0.01)
    turns.now_s += 0.5
    assert turns.turn(0.001, 0.001) == [0.0, 0.0]


def test_what_is_ready_at_once_has_waited_for_the_turn_before() -> None:
    turns = Turns()
    turns.now_s += 1.0
    turns.turn(*[0.001] * 30)
    assert all(abs(waited - 0.03) < 1e-9 for waited in turns.turn(*[0.001] * 10))
    assert all(abs(waited - 0.01) < 1e-9 for waited in turns.turn(0.001))


def test_a_turn_is_looked_at_once() -> None:
    """However much is read in it, the loop is asked to call back once."""
    turns = Turns()
    for _ in range(5):
        turns.backlog.wait_s()
    assert len(turns._ends) == 1
