"""The hot path of the generator: connections, the pool that keeps them, and the two ways to drive it.

Every request is a number: its place in arrays that were made before the run. What is sent was encoded before, too;
while the run lasts, a request costs one write, one parse and three looks at the clock.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from forwardpass.loadtest.alarm import Alarm
from forwardpass.loadtest.messages import Closed, Fate, Prepare

__all__ = ["Log", "Pool", "run_closed", "run_open"]

_NOTHING = -1
_MAX_SENT_AT_ONCE = 64
"""After a stall all that is overdue goes out; answers are read in between."""
_REOPEN_PAUSE_S = 0.02
"""A closed loop whose server refuses connections must not spin."""
_NAN = float("nan")

now = time.monotonic


class Log:
    """What is written down about each request."""

    def __init__(self, scheduled_s: array[float]) -> None:
        num_requests = len(scheduled_s)
        self.scheduled_s = scheduled_s
        self.released_s = array("d", [_NAN]) * num_requests
        self.sent_s = array("d", [_NAN]) * num_requests
        self.done_s = array("d", [_NAN]) * num_requests
        self.fates = bytearray(num_requests)
        self.statuses = array("H", bytes(2 * num_requests))


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    __slots__ = ("_keeps_alive", "_num_answers", "_parser", "_pool", "has_head", "index", "transport")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._num_answers = 0
        self._keeps_alive = False
        self.has_head = False
        self.index = _NOTHING

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the pool."""
        self.transport = cast("asyncio.Transport", transport)
        self._pool.on_connected(self)

    def data_received(self, data: bytes) -> None:
        """Read what belongs to the answer; what is no answer ends the connection."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._pool.on_broken(self, Fate.GARBAGE)
            return
        if not self._num_answers:
            return
        if self._num_answers > 1 or self.index == _NOTHING:
            self._pool.on_broken(self, Fate.GARBAGE)
            return
        self._num_answers = 0
        self.has_head = False
        self._pool.on_answer(self, self._parser.get_status_code(), self._keeps_alive)

    def on_headers_complete(self) -> None:
        """Note that there is an answer, which the end of the connection may end."""
        self.has_head = True

    def on_message_complete(self) -> None:
        """Count the answer; an interim one (1xx) is none."""
        if self._parser.get_status_code() >= 200:
            self._num_answers += 1
            self._keeps_alive = self._parser.should_keep_alive()

    def connection_lost(self, error: Exception | None) -> None:
        """Leave the pool."""
        if self._pool.answers_end_with_connection and self.has_head and error is None and self.index != _NOTHING:
            self._pool.on_answer(self, self._parser.get_status_code(), False)
        self._pool.on_broken(self, Fate.HUNG_UP)


class Pool:
    """Gives each request a connection: an idle one, or a new one while there are fewer than the bound.

    Requests without one wait in order. Those that are not answered in time are given up, with their connections.
    """

    def __init__(
        self, prepared: Prepare, log: Log, tls: ssl.SSLContext | None, *, start_s: float, max_connections: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._prepared = prepared
        self._requests = prepared.requests
        self._num_requests = len(prepared.requests)
        self._statuses = frozenset(prepared.statuses or range(200, 300))
        self._tls = tls
        self._start_s = start_s
        self._max_connections = max_connections
        self._log = log
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[int] = deque()
        self._oldest = 0
        self._num_submitted = 0
        self._sweeping: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.answers_end_with_connection = prepared.answers_end_with_connection
        self.on_finished: Callable[[Fate], None] = lambda _: None
        self.num_finished = 0
        self.num_connections = 0
        self.most_connections = 0

    def submit(self, index: int) -> None:
        """Send a request as soon as it has a connection. Requests are submitted in the order of their numbers."""
        self._log.released_s[index] = now() - self._start_s
        self._num_submitted = index + 1
        if self._sweeping is None:
            self._sweep()
        if self._idle:
            self._send(self._idle.pop(), index)
            return
        self._waiting.append(index)
        self._open_more()

    async def close(self) -> None:
        """Hang up."""
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in list(self._open):
            connection.transport.abort()

    # --- what connections report

    def on_connected(self, connection: Connection) -> None:
        """Use a new connection."""
        self._open.add(connection)
        self.num_connections += 1
        self.most_connections = max(self.most_connections, len(self._open))
        self._reuse(connection)

    def on_answer(self, connection: Connection, status: int, keeps_alive: bool) -> None:
        """Note the answer, and use the connection again if it may be."""
        index, connection.index = connection.index, _NOTHING
        self._log.statuses[index] = status
        fate = Fate.ANSWERED if status in self._statuses else Fate.WRONG_STATUS
        if keeps_alive and not connection.transport.is_closing():
            self._reuse(connection)
        else:
            self._forget(connection)
        self._finish(index, fate)

    def on_broken(self, connection: Connection, fate: Fate) -> None:
        """Give up a connection, and the request on it."""
        index, connection.index = connection.index, _NOTHING
        self._forget(connection)
        if index != _NOTHING:
            self._finish(index, fate)

    # --- within

    def _send(self, connection: Connection, index: int) -> None:
        connection.index = index
        connection.transport.write(self._requests[index % self._num_requests])
        self._log.sent_s[index] = now() - self._start_s

    def _reuse(self, connection: Connection) -> None:
        """Put a waiting request on the connection, or keep it; the last used is the next used, so that few are."""
        while self._waiting:
            index = self._waiting.popleft()
            if self._log.fates[index] == Fate.UNSENT:
                self._send(connection, index)
                return
        self._idle.append(connection)

    def _forget(self, connection: Connection) -> None:
        if connection not in self._open:
            return
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        connection.transport.abort()
        if self._waiting:
            self._open_more()

    def _finish(self, index: int, fate: Fate) -> None:
        log = self._log
        if log.fates[index] != Fate.UNSENT:
            return
        log.done_s[index] = now() - self._start_s
        log.fates[index] = fate
        self.num_finished += 1
        self.on_finished(fate)

    def _open_more(self) -> None:
        """Open a connection for each request that waits, up to the bound."""
        while (
            not self._is_closed
            and len(self._opening) < len(self._waiting)
            and len(self._opening) + len(self._open) < self._max_connections
        ):
            task = self._loop.create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._on_opened)

    def _on_opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self._open_more()

    async def _connect(self) -> None:
        prepared = self._prepared
        try:
            await self._loop.create_connection(
                lambda: Connection(self),
                prepared.host,
                prepared.port,
                ssl=self._tls,
                server_hostname=prepared.server_name if self._tls is not None else None,
            )
        except OSError:
            self._refuse_one()

    def _refuse_one(self) -> None:
        """A connection that failed takes one of the waiting requests with it; the others try their own."""
        while self._waiting and not self._is_closed:
            index = self._waiting.popleft()
            if self._log.fates[index] == Fate.UNSENT:
                self._finish(index, Fate.REFUSED)
                return

    def _sweep(self) -> None:
        """Give up what is late. Deadlines are in the order of the requests, so that one timer is enough for all."""
        log, timeout_s = self._log, self._prepared.timeout_s
        late_before_s = now() - self._start_s - timeout_s
        late = set()
        while self._oldest < self._num_submitted:
            if log.fates[self._oldest] == Fate.UNSENT:
                if log.scheduled_s[self._oldest] > late_before_s:
                    break
                late.add(self._oldest)
            self._oldest += 1
        if late:
            for connection in [it for it in self._open if it.index in late]:
                self.on_broken(connection, Fate.TIMED_OUT)
            for index in sorted(late):
                self._finish(index, Fate.TIMED_OUT)
        wait_s = timeout_s
        if self._oldest < self._num_submitted:
            wait_s = max(log.scheduled_s[self._oldest] - late_before_s, 0.002)
        self._sweeping = self._loop.call_later(wait_s, self._sweep)


async def run_open(pool: Pool, log: Log, *, start_s: float) -> None:
    """Submit each request when it is due and return when all have their fate."""
    loop = asyncio.get_running_loop()
    scheduled, num_requests = log.scheduled_s, len(log.scheduled_s)
    finished = loop.create_future()
    at = 0

    def on_due() -> None:
        nonlocal at
        until = min(at + _MAX_SENT_AT_ONCE, num_requests)
        while at < until and scheduled[at] <= now() - start_s:
            pool.submit(at)
            at += 1
        if at < num_requests:
            alarm.set(start_s + scheduled[at])

    def on_finished(_: Fate) -> None:
        if pool.num_finished == num_requests and not finished.done():
            finished.set_result(None)

    pool.on_finished = on_finished
    alarm = Alarm(loop, on_due)
    alarm.set(start_s + scheduled[0])
    try:
        await finished
    finally:
        alarm.close()


async def run_closed(pool: Pool, log: Log, order: Closed, *, start_s: float) -> int:
    """Keep `num_connections` requests under way until the time or the requests are used up; return how many were."""
    loop = asyncio.get_running_loop()
    scheduled = log.scheduled_s
    finished = loop.create_future()
    at = 0

    def submit_next() -> None:
        nonlocal at
        if at < order.max_requests and (since_s := now() - start_s) < order.duration_s:
            scheduled[at] = since_s
            at += 1
            pool.submit(at - 1)
        elif pool.num_finished == at and not finished.done():
            finished.set_result(None)

    def on_finished(fate: Fate) -> None:
        if fate is Fate.REFUSED:
            loop.call_later(_REOPEN_PAUSE_S, submit_next)
        else:
            submit_next()

    pool.on_finished = on_finished
    for _ in range(min(order.num_connections, order.max_requests)):
        submit_next()
    await finished
    return at
