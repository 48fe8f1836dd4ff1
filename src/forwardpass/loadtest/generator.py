"""The generator's process, seen from its parent."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from forwardpass.errors import ChildFailed
from forwardpass.loadtest.messages import (
    Closed,
    Failed,
    Message,
    Open,
    Prepare,
    Prepared,
    Ran,
    read_message,
    write_message,
)
from forwardpass.loadtest.schedules import Schedule

__all__ = ["Generator"]

_ARGUMENTS = ("-P", "-m", "forwardpass.loadtest.child")
"""`-P` keeps the working directory off the path: a file of the user's named like a module must not replace it."""
_SLACK_S = 60.0
"""For starting, sending back what happened, and a machine that has other things to do."""
_TICK_S = 0.25
_EXIT_WAIT_S = 5.0


class Generator:
    """A process of its own that sends; whatever happens, it is gone when left."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, *_ARGUMENTS, str(number), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(number,),
                env=_environment(),
            )
        self._socket = ours
        self._channel = ours.makefile("rwb")
        answer = self._ask(self._prepare, _SLACK_S, lambda _: None)
        if not isinstance(answer, Prepared):
            self.__exit__(ChildFailed, None, None)
            raise self._failed(answer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        with contextlib.suppress(OSError):
            self._channel.close()
        self._socket.close()
        try:
            self._process.wait(_EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run_open(self, schedule: Schedule, *, on_time: Callable[[float], None] = lambda _: None) -> Ran:
        """Send at the times of the schedule; `on_time` hears now and then how long it has been running.

        Raises:
            ChildFailed: the process ended or hangs.
        """
        longest_s = float(schedule[-1]) if len(schedule) else 0.0
        return self._run(Open(times=schedule.tobytes()), longest_s, on_time)

    def run_closed(
        self,
        *,
        num_connections: int,
        duration_s: float,
        max_requests: int,
        on_time: Callable[[float], None] = lambda _: None,
    ) -> Ran:
        """Keep so many requests under way.

        Raises:
            ChildFailed: the process ended or hangs.
        """
        order = Closed(num_connections=num_connections, duration_s=duration_s, max_requests=max_requests)
        return self._run(order, duration_s, on_time)

    def _run(self, order: Open | Closed, longest_s: float, on_time: Callable[[float], None]) -> Ran:
        answer = self._ask(order, longest_s + self._prepare.timeout_s + _SLACK_S, on_time)
        if not isinstance(answer, Ran):
            raise self._failed(answer)
        return answer

    def _ask(self, order: Message, max_wait_s: float, on_time: Callable[[float], None]) -> Message | None:
        watchdog = threading.Timer(max_wait_s, self._process.kill)
        watchdog.start()
        begun_s = time.monotonic()
        try:
            write_message(self._channel, order)
            with selectors.DefaultSelector() as selector:
                selector.register(self._socket, selectors.EVENT_READ)
                while not selector.select(_TICK_S):
                    on_time(time.monotonic() - begun_s)
            return read_message(self._channel)
        except ConnectionError:
            return None
        finally:
            watchdog.cancel()

    def _failed(self, answer: Message | None) -> ChildFailed:
        if isinstance(answer, Failed):
            return ChildFailed(purpose="generating load", reason=answer.reason)
        return ChildFailed(purpose="generating load", reason=f"it ended with exit status {self._process.wait()}")


def _environment() -> dict[str, str]:
    """Return an environment in which the child finds the same modules as this process."""
    search = [entry for entry in sys.path if entry and Path(entry).exists()]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
