"""Timers of the event loop that serving uses."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.serve.timers import RESOLUTION_S, call_at


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
