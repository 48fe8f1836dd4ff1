"""How long what is read now has waited to be read, while the event loop was busy with others.

A request's deadline counts from when it came, and when there is more to do than one loop can, it lies in the kernel's
buffer for longer than it takes to answer. The kernel does not say for how long. But whatever is ready in one turn of
the loop came during the turn before, and is handed out in the order in which it came: so it has waited about as long
as that turn took.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["Backlog"]

IDLE_S = 200e-6
"""If nothing was ready for so long, the loop was asleep, and what woke it has just come."""

NEGLIGIBLE_S = 2e-3
"""A few requests at once are no backlog."""


class Backlog:
    """Watches the turns of an event loop in which something is read; costs nothing while nothing is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._is_in_turn = False
        self._began_s = self._ended_s = clock()
        self._wait_s = 0.0

    def wait_s(self) -> float:
        """Return how long what has just been read had waited; call it whenever something is read."""
        if not self._is_in_turn:
            now_s = self._clock()
            self._is_in_turn = True
            turn_s = now_s - self._began_s
            self._wait_s = turn_s if now_s - self._ended_s < IDLE_S and turn_s > NEGLIGIBLE_S else 0.0
            self._began_s = now_s
            self._loop.call_soon(self._end_turn)
        return self._wait_s

    def _end_turn(self) -> None:
        """Run by the loop when all that was ready has been handed out, before it looks again."""
        self._is_in_turn = False
        self._ended_s = self._clock()
