"""Waking an event loop on time.

The timers of uvloop and of asyncio's selectors have a resolution of a millisecond, and round. A load generator that
sends a millisecond early or late cannot measure a server that answers in half of one. On Linux the kernel has timers
for which a file descriptor becomes readable at the exact time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Alarm"]

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_TFD_TIMER_ABSTIME = 1


_libc = ctypes.CDLL(None)
_create: Any = getattr(_libc, "timerfd_create", None)
_settime: Any = getattr(_libc, "timerfd_settime", None)
if _settime is not None:
    _settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Alarm:
    """Calls `on_due` on the event loop at a time of the monotonic clock; there is one such time at most."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self._fallback: asyncio.TimerHandle | None = None
        self._spec = _TimerSpec()
        self._fd = _open_timer()
        if self._fd is not None:
            loop.add_reader(self._fd, self._on_readable)

    def set(self, due_s: float) -> None:
        """Wake at `due_s`; a time that has passed wakes at once."""
        if self._fd is None:
            self._fallback = self._loop.call_later(max(due_s - time.monotonic(), 0.0), self._on_due)
            return
        seconds = int(due_s)
        value = self._spec.value
        value.seconds = seconds
        value.nanoseconds = int((due_s - seconds) * 1e9)
        _settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None)

    def close(self) -> None:
        """Never wake again."""
        if self._fallback is not None:
            self._fallback.cancel()
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _on_readable(self) -> None:
        assert self._fd is not None
        with contextlib.suppress(BlockingIOError):  # set anew since it went off
            os.read(self._fd, 8)
            self._on_due()


def _open_timer() -> int | None:
    """Return a timer's file descriptor, or None where the system has none."""
    if _create is None:
        return None
    fd: int = _create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
    return fd if fd >= 0 else None
