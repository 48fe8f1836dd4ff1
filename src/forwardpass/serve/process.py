"""A worker process as the front sees it: started fresh, healed when it dies, replaced when it hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from enum import Enum, auto

import msgspec

from forwardpass.bundle import Bundle
from forwardpass.serve.channel import (
    MAX_MESSAGE_BYTES,
    OUT_OF_MEMORY,
    Arena,
    Done,
    Failed,
    Placed,
    Ready,
    Run,
    WorkerConfig,
    decode,
    encode,
    socket_pair,
)
from forwardpass.serve.endings import find_ending

__all__ = ["WorkerListener", "WorkerProcess", "WorkerState"]

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
EXIT_S = 0.05
"""From the end of a process' last word to that of the process, generously."""
MORE_MEMORY = (
    "Give the server more memory, or serve with fewer workers (--workers), smaller batches (--max-batch) or a smaller "
    "variant."
)

log = logging.getLogger("forwardpass.serve")


class WorkerState(Enum):
    """What the worker can be asked."""

    STARTING = auto()
    IDLE = auto()
    BUSY = auto()
    STOPPED = auto()


class WorkerListener:
    """What the owner of a worker is told; every method runs on the event loop."""

    def __init__(
        self,
        *,
        on_idle: Callable[[], None],
        on_done: Callable[[Done], None],
        on_failed: Callable[[Failed], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.on_idle = on_idle
        self.on_done = on_done
        self.on_failed = on_failed
        self.on_lost = on_lost


NOBODY = WorkerListener(on_idle=lambda: None, on_done=lambda _: None, on_failed=lambda _: None, on_lost=lambda: None)
"""Hears of a worker that has been stopped."""


class WorkerProcess:
    """Keeps one worker running. After a death it is started again, with pauses that double up to five seconds."""

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        num_threads: int,
        listener: WorkerListener,
        *,
        weights: str = "",
        wide_threads: int = 0,
        is_wide_exact: bool = False,
    ) -> None:
        self._bundle = bundle
        self._variant = variant
        self._num_threads = num_threads
        self._weights = weights
        self._wide_threads = wide_threads
        self._is_wide_exact = is_wide_exact
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._first_answer: asyncio.Future[Ready | Failed] = self._loop.create_future()
        self._pause_s = FIRST_PAUSE_S
        self.state = WorkerState.STOPPED
        self.num_starts = 0
        self.has_wide = False
        """Whether it holds the variant a second time, with the threads of all cores."""
        self._is_connected = False
        self._has_hung = self._has_lacked_memory = False
        self._respawning: asyncio.TimerHandle | None = None
        self.arena: Arena
        self._channel: socket.socket
        self._process: subprocess.Popen[bytes]

    async def start(self) -> Ready | Failed:
        """Start the process and return its first message."""
        self._spawn()
        return await self._first_answer

    @property
    def pid(self) -> int:
        """The process that runs now."""
        return self._process.pid

    def run(self, inputs: tuple[Placed, ...], *, is_wide: bool = False) -> None:
        """Hand over the batch that was placed in the arena; it `has_wide` if that is where it is to run."""
        self.state = WorkerState.BUSY
        with contextlib.suppress(ConnectionError):  # it has ended: _read is about to see that, too
            self._channel.send(encode(Run(self.arena.num_bytes, inputs, is_wide)))

    def replace(self) -> None:
        """Kill a worker that has hung; its death is handled like any other."""
        self._has_hung = True
        self._process.kill()

    async def stop(self) -> None:
        """Close the channel, on which the worker ends, and wait for it; one that does not end is killed."""
        self._listener = NOBODY  # its owner holds this worker: the circle would keep both until the collector runs
        if self.num_starts == 0:
            return
        if self._respawning is not None:
            self._respawning.cancel()
        if self.state is WorkerState.STARTING:
            self._process.kill()  # it listens only once it has loaded
        self.state = WorkerState.STOPPED
        self._hang_up()
        try:
            await self._loop.run_in_executor(None, self._process.wait, 5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await self._loop.run_in_executor(None, self._process.wait)

    def _spawn(self) -> None:
        ours, theirs = socket_pair()
        try:
            arena = Arena.create()
            try:
                self._process = self._popen(theirs.fileno(), arena.descriptor)
            except BaseException:  # tried again and again, it must not leave a descriptor each time
                arena.close()
                raise
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._channel, self.arena = ours, arena
        self.state = WorkerState.STARTING
        self.num_starts += 1
        self._has_lacked_memory = False
        self._loop.add_reader(ours.fileno(), self._read)
        self._is_connected = True

    def _popen(self, channel: int, arena: int) -> subprocess.Popen[bytes]:
        config = WorkerConfig(
            bundle=str(self._bundle.path),
            digest=self._bundle.digest,
            variant=self._variant,
            num_threads=self._num_threads,
            channel=channel,
            arena=arena,
            weights=self._weights,
            wide_threads=self._wide_threads,
            is_wide_exact=self._is_wide_exact,
        )
        command = [sys.executable, "-m", "forwardpass.serve.worker", msgspec.json.encode(config).decode()]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(channel, arena))

    def _read(self) -> None:
        try:
            packet = self._channel.recv(MAX_MESSAGE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            packet = b""
        if not packet:
            self._lose()
            return
        message = decode(packet)
        if self.state is WorkerState.STARTING:
            self._note_start(message)
        elif isinstance(message, Done):
            self.state = WorkerState.IDLE
            try:
                self.arena.follow(message.arena_bytes)
            except OSError as error:
                self._listener.on_failed(Failed(OUT_OF_MEMORY, str(error)))
            else:
                self._listener.on_done(message)
        elif isinstance(message, Failed):
            self.state = WorkerState.IDLE
            self._note_failure(message)
            self._listener.on_failed(message)

    def _note_start(self, message: object) -> None:
        is_first = not self._first_answer.done()
        if is_first and isinstance(message, Ready | Failed):
            self._first_answer.set_result(message)
        if is_first and isinstance(message, Failed):  # whoever waits for it says so, and starts no other
            self.state = WorkerState.STOPPED
            self._hang_up()
        elif isinstance(message, Ready):
            self._pause_s = FIRST_PAUSE_S
            self.state = WorkerState.IDLE
            self.has_wide = message.has_wide
            if message.why_not_wide:
                log.warning("%s: no request runs on all cores: %s", self._bundle.name, message.why_not_wide)
            self._listener.on_idle()
        elif isinstance(message, Failed):
            log.error("the worker could not load the variant: %s", message.message)

    def _note_failure(self, failure: Failed) -> None:
        """Tell the first batch that a process got no memory for; clients may send many such."""
        if failure.slug == OUT_OF_MEMORY and not self._has_lacked_memory:
            self._has_lacked_memory = True
            name = self._bundle.name
            log.warning(
                "the worker %d of %s got no memory for a batch: %s. %s", self.pid, name, failure.message, MORE_MEMORY
            )

    def _lose(self) -> None:
        """Handle the end of the process: tell the owner, and start another after a pause."""
        if self.state is WorkerState.STOPPED:
            return
        self._hang_up()
        if self._first_answer.done():
            self.state = WorkerState.STARTING
            self._listener.on_lost()
        else:
            self.state = WorkerState.STOPPED
        self._respawning = self._loop.call_later(EXIT_S, self._tell_loss)

    def _tell_loss(self) -> None:
        """Say why the process has ended: its channel was closed a moment before the system knew."""
        ending = find_ending(self._process)
        why = str(ending or "killed or crashed")
        advice = MORE_MEMORY if ending is not None and ending.is_of_memory else ""
        if self._has_hung:
            why, advice, self._has_hung = "it hung over a batch", "", False
        if not self._first_answer.done():
            reason = f"its worker ended while loading ({why}). {advice}".rstrip()
            self._first_answer.set_result(Failed("worker-lost", reason))
            return
        log.warning(
            "the worker %d of %s ended (%s); starting another in %.1f s",
            self.pid,
            self._bundle.name,
            why,
            self._pause_s,
        )
        if advice:
            log.warning("%s", advice)
        self._respawn_later()

    def _respawn_later(self) -> None:
        self._respawning = self._loop.call_later(self._pause_s, self._respawn)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _respawn(self) -> None:
        self._process.kill()  # it has closed its channel; whatever else it does is of no use
        self._process.wait()
        try:
            self._spawn()
        except OSError as error:
            log.error("no worker can be started (%s); trying again in %.1f s", error, self._pause_s)  # noqa: TRY400
            self._respawn_later()

    def _hang_up(self) -> None:
        if not self._is_connected:
            return
        self._is_connected = False
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        self.arena.close()
