"""Timers that can be moved: an event loop's own, but always with a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["call_at"]

RESOLUTION_S = 1e-3


def call_at(
    loop: asyncio.AbstractEventLoop, due_s: float, callback: Callable[..., object], *args: object
) -> asyncio.TimerHandle:
    """Call back at `due_s`, and at least a tick of the loop's clock later.

    What is due within half a millisecond uvloop calls at once, and returns a handle that does not know when it is due:
    `TimerHandle.when` is missing there. A thread that is held up between the two looks at the clock tries again.
    """
    while True:
        timer = loop.call_at(max(due_s, loop.time() + RESOLUTION_S), callback, *args)
        if hasattr(timer, "when"):
            return timer
        timer.cancel()
