"""HTTP/1.1 over `httptools`: requests in, responses out in their order, and limits on what a stranger can hold.

uvicorn has no deadline for receiving a request, and an ASGI task costs more than the whole of a small inference; this
is a protocol class with callbacks instead of tasks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import httptools

from forwardpass.serve.settings import ServeSettings

if TYPE_CHECKING:
    from forwardpass.serve.connections import Connections

__all__ = ["Exchange", "Handler", "HttpConnection", "Response"]

MAX_PIPELINED = 16
"""Requests of one connection that may be open at once; further ones wait in the socket."""

_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A status, a body, and headers beyond those that every response has."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Exchange:
    """One request and the place for its response."""

    __slots__ = (
        "_connection",
        "_response",
        "body",
        "headers",
        "is_head",
        "keeps_alive",
        "method",
        "on_abandoned",
        "target",
    )

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self._response: Response | None = None
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.keeps_alive = True
        self.is_head = False
        self.on_abandoned: Callable[[], None] | None = None

    @property
    def response(self) -> Response | None:
        """The answer, once there is one."""
        return self._response

    def respond(self, response: Response) -> None:
        """Answer; written when every earlier request of the connection has its answer."""
        if self._response is None:
            self._response = response
            self._connection.flush()


Handler = Callable[[Exchange], None]


class HttpConnection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, handler: Handler, settings: ServeSettings, connections: Connections) -> None:
        self._handler = handler
        self._settings = settings
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._open: deque[Exchange] = deque()
        self._incoming: Exchange | None = None
        self._chunks: list[bytes] = []
        self._num_body_bytes = self._num_header_bytes = 0
        self._is_paused = self._is_closing = self._can_write = self._is_in_headers = False
        self._deadline_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._parser: httptools.HttpRequestParser

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the client, unless there are too many."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit it
        self._parser = httptools.HttpRequestParser(self)
        self._can_write = True
        if not self._connections.add(self):
            self._refuse(503, "too many connections")
            return
        self._wait(self._settings.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell those who work for this client that it has left."""
        self._connections.discard(self)
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        for exchange in self._open:
            if exchange.response is None and exchange.on_abandoned is not None:
                exchange.on_abandoned()
        self._open.clear()

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if self._is_closing:
            return
        try:
            self._parser.feed_data(data)
            if self._is_in_headers:
                self._count_header(len(data))
        except httptools.HttpParserUpgrade:
            self._refuse(400, "this server does not switch protocols")
        except httptools.HttpParserError:
            self._refuse(400, "this is not HTTP/1.1")

    def eof_received(self) -> bool:
        """Keep the write side open while answers are due."""
        return bool(self._open)

    def pause_writing(self) -> None:
        """Stop reading from a client that does not take its answers."""
        self._can_write = False
        self._transport.pause_reading()
        self._wait(self._settings.body_timeout_s)

    def resume_writing(self) -> None:
        """Go on."""
        self._can_write = True
        self.flush()
        self._resume_reading()

    # --- httptools callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        self._incoming = Exchange(self)
        self._chunks = []
        self._num_body_bytes = self._num_header_bytes = 0
        self._is_in_headers = True
        if self._timer is None or not self._open:
            self._wait(self._settings.header_timeout_s)

    def on_url(self, url: bytes) -> None:
        """Take the request's target, which may come in pieces."""
        assert self._incoming is not None, "on_message_begin came before"
        self._incoming.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        assert self._incoming is not None, "on_message_begin came before"
        self._incoming.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Check what is announced before any of the body is read."""
        exchange = self._incoming
        assert exchange is not None, "on_message_begin came before"
        self._is_in_headers = False
        exchange.method = self._parser.get_method()
        exchange.is_head = exchange.method == b"HEAD"
        exchange.keeps_alive = self._parser.should_keep_alive()
        announced = exchange.headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._settings.max_body_bytes:
            self._refuse_body()
            return
        if exchange.headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if announced != b"0" or b"transfer-encoding" in exchange.headers:
            self._wait(self._settings.body_timeout_s)

    def on_body(self, body: bytes) -> None:
        """Collect the body up to the limit."""
        self._num_body_bytes += len(body)
        if self._num_body_bytes > self._settings.max_body_bytes:
            self._refuse_body()
        elif not self._is_closing:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        """Hand the request over."""
        exchange, self._incoming = self._incoming, None
        if exchange is None or self._is_closing:
            return
        exchange.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        self._open.append(exchange)
        if len(self._open) >= MAX_PIPELINED and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wait(None)
        self._handler(exchange)

    # --- answers

    @property
    def is_idle(self) -> bool:
        """Whether no request is open or half received."""
        return not self._open and self._incoming is None

    def flush(self) -> None:
        """Write the answers that are due, in the order of the requests."""
        while self._open and self._can_write and (response := self._open[0].response) is not None:
            exchange = self._open.popleft()
            keeps_alive = exchange.keeps_alive and not self._connections.are_closing
            self._transport.write(_render(response, keeps_alive=keeps_alive, is_head=exchange.is_head))
            if not keeps_alive:
                self.close()
                return
        if not self._open and not self._is_closing:
            self._wait(self._settings.keep_alive_s if self._incoming is None else self._settings.body_timeout_s)
        self._resume_reading()

    def close(self) -> None:
        """Close once everything is written."""
        self._is_closing = True
        self._transport.close()

    def _resume_reading(self) -> None:
        if self._is_paused and len(self._open) < MAX_PIPELINED and self._can_write and not self._is_closing:
            self._is_paused = False
            self._transport.resume_reading()

    def _count_header(self, num_bytes: int) -> None:
        """Count what was received while a header is incomplete: the parser itself would collect it for ever."""
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > self._settings.max_header_bytes:
            self._refuse(431, f"the headers are larger than the limit of {self._settings.max_header_bytes} bytes")

    def _refuse_body(self) -> None:
        self._refuse(413, f"The request body is larger than the limit of {self._settings.max_body_bytes} bytes.")

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer something that is not a request, and hang up."""
        if self._is_closing:
            return
        self._is_closing = True
        body = b'{"error":"%s"}' % sentence.encode()
        self._transport.write(_render(Response(status=status, body=body), keeps_alive=False, is_head=False))
        self._transport.close()

    # --- deadlines

    def _wait(self, seconds: float | None) -> None:
        """Expect the client's next step within `seconds`. One timer is moved, never one made per request."""
        if seconds is None:
            self._deadline_s = 0.0
            return
        self._deadline_s = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._deadline_s == 0.0 or self._is_closing:
            return
        if self._loop.time() < self._deadline_s:
            self._timer = self._loop.call_at(self._deadline_s, self._on_timer)
        elif self._incoming is not None:
            self._refuse(408, "the request was not received in time")
        else:
            self._transport.abort()


def _render(response: Response, *, keeps_alive: bool, is_head: bool) -> bytes:
    head = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n" % (
        response.status,
        _REASONS[response.status].encode(),
        response.content_type,
        len(response.body),
    )
    for name, value in response.headers:
        head += f"{name}: {value}\r\n".encode("latin-1")
    if not keeps_alive:
        head += b"connection: close\r\n"
    return head + b"\r\n" + (b"" if is_head else response.body)
