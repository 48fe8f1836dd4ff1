"""What Linux does for a process that asks for it: no dump of its memory, and an end with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys

__all__ = ["end_with_parent", "forbid_dumps"]

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """Let no core dump of this process be written, and no other process of this user look into its memory.

    A limit on the size of dumps would not do: it does not hold for those that are piped to a program.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def end_with_parent() -> None:
    """Have this process killed when the thread that started it ends, whatever this one is doing then."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
