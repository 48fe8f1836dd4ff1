"""A child process that measures one variant, seen from its parent."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from forwardpass.errors import ChildFailed, ForwardpassError
from forwardpass.profile.protocol import Answer, Command, Failed

__all__ = ["ChildProcess", "child_environment"]

_A = TypeVar("_A")
_ARGUMENTS = ("-P", "-m", "forwardpass.profile.child")
"""`-P` keeps the working directory off the path: a file of the user's named like a module must not replace it."""
_STDERR_TAIL_BYTES = 2000
_EXIT_WAIT_S = 5.0
_decoder = msgspec.json.Decoder(Answer)


class ChildProcess:
    """Starts the child when entered; whatever happens, it is gone when left."""

    def __init__(self, *, purpose: str, max_wait_s: float, environment: Mapping[str, str] | None = None) -> None:
        self._purpose = purpose
        self._environment = environment or {}
        self._max_wait_s = max_wait_s
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed on leaving
        self._pending = b""

    def __enter__(self) -> Self:
        self.started_s = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, *_ARGUMENTS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            env={**child_environment(), **self._environment},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        self._process.stdin.close()
        try:
            self._process.wait(_EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, command: Command, expected: type[_A]) -> _A:
        """Send a command and wait for its answer.

        Raises:
            ForwardpassError: the child raised it.
            ChildFailed: the child ended, hung, or raised anything else.
        """
        self.tell(command)
        return self.hear(expected)

    def tell(self, command: Command) -> None:
        """Send a command, whose answer is heard later.

        Raises:
            ChildFailed: the child has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(command) + b"\n")
        except BrokenPipeError:
            raise self._ended() from None

    def hear(self, expected: type[_A]) -> _A:
        """Wait for the answer to what was told.

        Raises:
            ForwardpassError: the child raised it.
            ChildFailed: the child ended, hung, or raised anything else.
        """
        answer = _decoder.decode(self._read_line())
        if isinstance(answer, Failed):
            raise _raised_by(answer, self._purpose)
        assert isinstance(answer, expected), f"the child answered {answer}"
        return answer

    def _read_line(self) -> bytes:
        """Read up to the next line end."""
        assert self._process.stdout is not None
        due_s = time.monotonic() + self._max_wait_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(due_s - time.monotonic(), 0)):
                    raise ChildFailed(purpose=self._purpose, reason=f"it gave no answer within {self._max_wait_s:g} s")
                part = os.read(self._process.stdout.fileno(), 1 << 20)
                if not part:
                    raise self._ended()
                self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _ended(self) -> ChildFailed:
        """Describe the end of the child from its exit status and the last thing it said."""
        status = self._process.wait()
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._stderr.tell() - _STDERR_TAIL_BYTES, 0))
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        reason = _describe_status(status)
        return ChildFailed(
            purpose=self._purpose, reason=f"{reason}; its last words were: {said[-1]}" if said else reason
        )


def _describe_status(status: int) -> str:
    """Say in words how a process ended.

    >>> _describe_status(-11)
    'it was ended by SIGSEGV'
    """
    if status >= 0:
        return f"it ended with exit status {status}"
    if -status == signal.SIGKILL:
        return "it was killed (SIGKILL), which is what the system does when memory runs out"
    return f"it was ended by {signal.Signals(-status).name}"


def _raised_by(failed: Failed, purpose: str) -> ForwardpassError:
    """Rebuild the error that the child raised."""
    for kind in _leaves(ForwardpassError):
        if failed.slug and kind.slug == failed.slug:
            return kind(**failed.facts)
    return ChildFailed(purpose=purpose, reason=failed.reason)


def _leaves(kind: type[ForwardpassError]) -> list[type[ForwardpassError]]:
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [kind]


def child_environment() -> dict[str, str]:
    """Return an environment in which the child finds the same modules as this process."""
    search = [entry for entry in sys.path if entry and Path(entry).exists()]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
