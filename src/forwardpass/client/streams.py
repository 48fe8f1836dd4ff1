"""Connections of an event loop, and their pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import cast

from forwardpass.client.calling import Peer, Send, coalesce
from forwardpass.client.operations import Buffer
from forwardpass.client.receiving import Answer, BadAnswer, Receiver
from forwardpass.errors import ServerUnreachable

__all__ = ["StreamPool"]

MAX_WRITTEN_BYTES = 2**20
"""Large bodies go in pieces of this, so that little of them is copied into the transport's buffer."""


class StreamPool:
    """Takes idle connections again, the latest first. It belongs to the event loop that uses it first."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._context = peer.tls.context() if peer.address.is_tls else None
        self._idle: list[_Link] = []
        self._places = asyncio.Semaphore(peer.max_connections)
        self._is_closed = False

    async def exchange(self, send: Send) -> Answer:
        """Send a request and return its answer; as that of `SocketPool`.

        Raises:
            OSError: there is no connection, it broke, or the time is over.
            BadAnswer: the answer is no HTTP.
        """
        async with asyncio.timeout(max(send.until_s - time.monotonic(), 0.0)), self._places:
            while True:
                link = self._reusable()
                is_fresh = link is None
                if link is None:
                    link = await self._connect()
                try:
                    answer = await link.exchange(send.pieces)
                except ConnectionError:
                    link.close()
                    if is_fresh or link.has_begun:
                        raise
                    continue
                except BaseException:
                    link.close()
                    raise
                if answer.keeps_alive and not self._is_closed:
                    self._idle.append(link)
                else:
                    link.close()
                return answer

    async def close(self) -> None:
        """Close what is idle, and take nothing in again."""
        self._is_closed = True
        links, self._idle = self._idle, []
        for link in links:
            link.close()
        await asyncio.gather(*(link.closed for link in links))

    def _reusable(self) -> _Link | None:
        if self._is_closed:
            raise ServerUnreachable(url=self._peer.address.url, reason="this client was closed")
        while self._idle:
            link = self._idle.pop()
            if not link.closed.done():
                return link
        return None

    async def _connect(self) -> _Link:
        address = self._peer.address
        _, link = await asyncio.get_running_loop().create_connection(
            _Link, address.host, address.port, ssl=self._context
        )
        return link


class _Link(asyncio.BufferedProtocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._receiver = Receiver()
        self._answer: asyncio.Future[Answer] | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.has_begun = False

    async def exchange(self, pieces: Sequence[Buffer]) -> Answer:
        """Send and wait for the answer; it may come before everything is sent."""
        self.has_begun = False
        self._answer = answer = asyncio.get_running_loop().create_future()
        try:
            for piece in coalesce(pieces):
                await self._write(piece, answer)
            return await answer
        finally:
            self._answer = None

    def close(self) -> None:
        """Hang up, unless that has happened."""
        if not self.closed.done():
            self._transport.abort()

    async def _write(self, piece: Buffer, answer: asyncio.Future[Answer]) -> None:
        if len(piece) <= MAX_WRITTEN_BYTES and self._can_write.is_set():
            self._transport.write(piece)
            return
        view = memoryview(piece)
        for start in range(0, len(view), MAX_WRITTEN_BYTES):
            if answer.done():
                return
            self._transport.write(view[start : start + MAX_WRITTEN_BYTES])
            await self._can_write.wait()

    # --- the event loop calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where the next bytes go."""
        return self._receiver.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Take in what came."""
        if self._answer is None or self._answer.done():
            self._transport.abort()  # nobody asked
            return
        self.has_begun = True
        try:
            answer = self._receiver.received(nbytes)
        except BadAnswer as error:
            self._answer.set_exception(error)
            return
        if answer is not None:
            self._answer.set_result(answer)

    def eof_received(self) -> bool:
        """Take note that the server sends no more."""
        if self._answer is not None and not self._answer.done() and (answer := self._receiver.ended()) is not None:
            self._answer.set_result(answer)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits."""
        self._can_write.set()
        if self._answer is not None and not self._answer.done():
            reason = "the answer was cut off" if self.has_begun else "the server hung up"
            self._answer.set_exception(ConnectionResetError(reason))
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Wait until the server reads."""
        self._can_write.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._can_write.set()
