"""Keeps what clients send out of files that the system writes by itself."""

from __future__ import annotations

import contextlib
import ctypes
import sys

__all__ = ["forbid_dumps"]

_PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """Let no core dump of this process be written, and no other process of this user look into its memory.

    A limit on the size of dumps would not do: it does not hold for those that are piped to a program.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
