"""How a process ended, and whether it was likely for lack of memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass

__all__ = ["RSS_UNIT_BYTES", "Ending", "find_ending"]

RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""In which the system tells `ru_maxrss`."""
OF_MEMORY = (-signal.SIGKILL, -signal.SIGABRT)
"""Linux kills who has most when there is no more, in the machine or the container; C++ aborts who gets none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the system says of a process that has ended."""

    code: int
    """Its exit code, or a signal, negative."""
    peak_rss_bytes: int
    """The most memory that it had; never less than what its parent had when it was started."""

    @property
    def is_of_memory(self) -> bool:
        """Whether it was probably for lack of memory, if nobody has killed it on purpose."""
        return self.code in OF_MEMORY

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exit code {self.code}"
        words = f"signal {signal.Signals(-self.code).name}"
        return f"{words}, probably for lack of memory: it held up to {self._peak}" if self.is_of_memory else words

    @property
    def _peak(self) -> str:
        return f"{self.peak_rss_bytes / 1e6:.0f} MB"


def find_ending(process: subprocess.Popen[bytes]) -> Ending | None:
    """Return how a process has ended that nobody has waited for; None if it is still there, or that is not known."""
    if process.returncode is not None:
        return None
    try:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    except ChildProcessError:
        return None
    if pid == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ending(code=process.returncode, peak_rss_bytes=usage.ru_maxrss * RSS_UNIT_BYTES)
