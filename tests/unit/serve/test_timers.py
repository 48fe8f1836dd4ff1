"""Timers of the event loop that serving uses."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.serve.timers import RESOLUTION_S, call_at


class HeldUp:
    """A uvloop whose first look at the clock is half a millisecond old before it is used."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._num_looks = 0

    def time(self) -> float:
        self._num_looks += 1
        return self._loop.time() - (RESOLUTION_S if self._num_looks == 1 else 0.0)

    def call_at(self, *args: Any) -> asyncio.TimerHandle:
        return self._loop.call_at(*args)


def test_a_thread_that_is_held_up_still_gets_a_timer() -> None:
    loop = uvloop.new_event_loop()
    try:
        held_up = HeldUp(loop)
        assert not hasattr(loop.call_at(held_up.time() + RESOLUTION_S, lambda: None), "when"), "the loop is as it was"
        timer = call_at(cast(asyncio.AbstractEventLoop, HeldUp(loop)), 0.0, lambda: None)
        assert timer.when() > 0
    finally:
        loop.close()


@pytest.mark.parametrize("make_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
@given(delay_s=st.floats(-10.0, 10.0))
def test_every_timer_knows_when_it_is_due(make_loop: type[asyncio.AbstractEventLoop], delay_s: float) -> None:
    loop = make_loop()
    try:
        due_s = loop.time() + delay_s
        timer = call_at(loop, due_s, lambda: None)
        assert timer.when() >= due_s - RESOLUTION_S
        timer.cancel()
    finally:
        loop.close()
