"""The timer: the process that times files, seen from its parent."""

from __future__ import annotations

import subprocess
import sys
from typing import IO, Self

import msgspec

from forwardpass.optimize.timing import Timed, TimingRequest
from forwardpass.profile.process import child_environment

__all__ = ["Timer"]


class Timer:
    """The child process that times; it starts when it is needed, also after a request that it did not survive.

    One that lasts for a whole search starts once, and may be told to start before: it imports its libraries while its
    parent does something else.
    """

    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process, if it does not run; nothing is timed yet."""
        self._running()

    def time(self, request: TimingRequest) -> Timed:
        """Return the times, or the failure of this request."""
        to, back = _pipes(self._running())
        try:
            to.write(msgspec.json.encode(request) + b"\n")
            to.flush()
            line = back.readline()
        except BrokenPipeError:
            line = b""
        if line:
            return msgspec.json.decode(line, type=Timed)
        self.stop()
        return Timed(failure="the process that measured it ended")

    def stop(self) -> None:
        """End the process, if it runs."""
        if self._process is not None:
            to, back = _pipes(self._process)
            self._process.kill()
            self._process.wait()
            to.close()
            back.close()
        self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        self._process = self._process or subprocess.Popen(
            [sys.executable, "-P", "-m", "forwardpass.optimize.timing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
        )
        return self._process


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None, "it was started with pipes"
    assert process.stdout is not None, "it was started with pipes"
    return process.stdin, process.stdout
