"""An event loop whose clock jumps to the next timer: hours pass in milliseconds, and always in the same way."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

__all__ = ["VirtualTimeLoop"]


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Look at the sockets once, and instead of waiting move the clock."""
        ready = super().select(0)
        if not ready and timeout:
            self.now_s += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Timers fire in order, at once; `time` says when they would have."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-9  # a timer is never taken to be due early

    def time(self) -> float:
        """Return the virtual time."""
        return self._jumping.now_s
