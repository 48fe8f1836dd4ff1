"""HTTP/1.1 over `httptools`: requests in, responses out in their order, and limits on what a stranger can hold.

uvicorn has no deadline for receiving a request, and an ASGI task costs more than the whole of a small inference; this
is a protocol class with callbacks instead of tasks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import httptools

from forwardpass.serve.exchange import Exchange, Response, StreamingResponse, log_request, render, render_head
from forwardpass.serve.settings import ServeSettings
from forwardpass.serve.timers import call_at

if TYPE_CHECKING:
    from forwardpass.serve.connections import Connection, Connections

__all__ = ["HttpConnection"]

MAX_PIPELINED = 16
"""Requests of one connection that are worked on at once; those read with them wait, and the rest in the socket."""
MAX_UNWANTED_BYTES = 16 * 2**10
"""A body up to this is read even if its request is refused, so that the connection can be used again."""
LINGER_S = 2.0
"""A refused client may go on sending for so long: hanging up on unread bytes would discard the refusal, too."""

LATE_S = 0.05
"""A deadline that the event loop notices later than this is put off once by as much."""

TLS_HANDSHAKE = b"\x16\x03"
"""The first bytes of whoever speaks TLS."""
NOT_HTTPS = Response(
    status=400,
    content_type="text/plain",
    body=b"This port speaks HTTP, not HTTPS: ask http:// instead of https://, or serve with --tls-cert.\n",
)
"""Plain text, for people who look at what came over the wire: no client of HTTP reads it."""

Handler = Callable[[Exchange], None]
Admission = Callable[[Exchange], Response | None]
"""Looks at a request whose headers are there; returns the refusal of one whose body is not to be read."""


class HttpConnection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, admit: Admission, handler: Handler, settings: ServeSettings, connections: Connections) -> None:
        self._admit = admit
        self._handler = handler
        self._settings = settings
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._open: deque[Exchange] = deque()
        self._unbegun: deque[Exchange] = deque()
        self._incoming: Exchange | None = None
        self._chunks: list[bytes] = []
        self._num_body_bytes = self._num_header_bytes = self._num_unparsed_bytes = self._num_begun = 0
        self._is_paused = self._is_refused = self._is_closing = False
        self._is_streaming = self._is_pulling = self._is_flushing = False
        self._can_write = self._is_in_headers = False
        self._deadline_s = self._waited_s = 0.0
        self._inherited: tuple[bytes, Exchange | None, Connection | None] = (b"", None, None)
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._parser: httptools.HttpRequestParser

    def inherit(self, data: bytes, exchange: Exchange | None, predecessor: Connection | None) -> None:
        """Begin with what another front has read of the client, or an exchange that has its answer, in its place."""
        self._inherited = (data, exchange, predecessor)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the client, unless there are too many."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit it
        self._parser = httptools.HttpRequestParser(self)
        self._can_write = True
        self._connections.backlog.wait_s()
        (data, exchange, predecessor), self._inherited = self._inherited, (b"", None, None)
        if predecessor is not None:
            self._connections.replace(predecessor, self)
        elif not self._connections.add(self):
            self._refuse(503, "There are too many connections. Try again later.")
            return
        self._wait(self._settings.header_timeout_s)
        if exchange is not None:
            exchange.move(self)
            self._open.append(exchange)
            self.flush()
        if data:
            self.data_received(data)
            self._loop.call_soon(self._pause_again)  # reading begins after this, paused or not

    def _pause_again(self) -> None:
        if self._is_paused and not self._transport.is_closing():
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell those who work for this client that it has left."""
        self._connections.backlog.wait_s()
        self._connections.discard(self)
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        for exchange in self._open:
            exchange.abandon()
        self._open.clear()
        self._unbegun.clear()
        self._incoming = None
        self._chunks = []
        del self._parser  # it leads back here

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if self._is_refused or self._is_closing:
            return
        was_between, self._num_begun = self._incoming is None, 0
        self._waited_s = self._connections.backlog.wait_s()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "This server does not switch protocols.")
        except httptools.HttpParserError:
            if was_between and data.startswith(TLS_HANDSHAKE):
                self._refuse_with(NOT_HTTPS)
            else:
                self._refuse(400, "This is not HTTP/1.1.")
        if self._is_in_headers and self._num_begun <= was_between:  # otherwise it begins with another request's end
            self._num_unparsed_bytes += len(data)
            self._check_header(self._num_unparsed_bytes)
        if self._num_begun > 1 and not (self._is_paused or self._is_closing):
            self._transport.pause_reading()  # one that sends much ahead lets others in between
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not (self._is_paused or self._transport.is_closing()):
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """Hang up: a client that has left cannot be told from one that only has nothing more to say."""
        return False

    def pause_writing(self) -> None:
        """Stop reading from a client that does not take its answers."""
        self._can_write = False
        self._steer_reading()
        self._wait(self._settings.body_timeout_s)

    def resume_writing(self) -> None:
        """Go on."""
        self._can_write = True
        self._wait(None)
        self.flush()

    # --- httptools callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        self._incoming = Exchange(self, self._waited_s)
        self._chunks = []
        self._num_body_bytes = self._num_header_bytes = self._num_unparsed_bytes = 0
        self._num_begun += 1
        self._is_in_headers = True
        if not self._open:
            self._wait(self._settings.header_timeout_s)

    def on_url(self, url: bytes) -> None:
        """Take the request's target, which may come in pieces."""
        assert self._incoming is not None, "on_message_begin came before"
        self._incoming.target += url
        self._num_header_bytes += len(url)
        self._check_header(self._num_header_bytes)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        assert self._incoming is not None, "on_message_begin came before"
        self._incoming.headers[name.lower()] = value
        self._num_header_bytes += len(name) + len(value)
        self._check_header(self._num_header_bytes)

    def on_headers_complete(self) -> None:
        """Check what is announced before any of the body is read."""
        exchange = self._incoming
        assert exchange is not None, "on_message_begin came before"
        self._is_in_headers = False
        if self._is_refused:
            return
        exchange.method = self._parser.get_method()
        exchange.is_head = exchange.method == b"HEAD"
        exchange.keeps_alive = self._parser.should_keep_alive()
        if not exchange.keeps_alive or b"connection" in exchange.headers:  # HTTP/1.0 goes on only if it says so
            exchange.takes_chunks = self._parser.get_http_version() == "1.1"  # this look costs a microsecond
        announced = exchange.headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._settings.max_body_bytes:
            self._refuse_body()
            return
        exchange.refusal = self._admit(exchange)
        is_small = announced.isdigit() and int(announced) <= MAX_UNWANTED_BYTES
        if exchange.refusal is not None and not (is_small and b"transfer-encoding" not in exchange.headers):
            self._refuse_with(exchange.refusal)
            return
        if exchange.headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if announced != b"0" or b"transfer-encoding" in exchange.headers:
            self._wait(self._settings.body_timeout_s)

    def on_body(self, body: bytes) -> None:
        """Collect the body up to the limit."""
        if self._is_refused:
            return
        self._num_body_bytes += len(body)
        if self._num_body_bytes > self._settings.max_body_bytes:
            self._refuse_body()
        else:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        """Hand the request over."""
        exchange, self._incoming = self._incoming, None
        if exchange is None or self._is_refused or self._is_closing:
            return
        exchange.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        self._open.append(exchange)
        if len(self._open) >= MAX_PIPELINED:
            self._steer_reading()
        if self._can_write:
            self._wait(None)
        if len(self._open) > MAX_PIPELINED:
            self._unbegun.append(exchange)
        else:
            self._begin(exchange)

    def _begin(self, exchange: Exchange) -> None:
        if exchange.refusal is not None:
            exchange.respond(exchange.refusal)
        else:
            self._handler(exchange)

    # --- answers

    @property
    def is_idle(self) -> bool:
        """Whether no request is open or half received."""
        return not self._open and self._incoming is None

    def flush(self) -> None:
        """Write the answers that are due, in the order of the requests, and begin what waited for a place."""
        if self._is_flushing:  # by an answer that was there at once: the loop below goes on with it
            return
        self._is_flushing = True
        try:
            self._flush()
        finally:
            self._is_flushing = False

    def _flush(self) -> None:
        while self._open:
            while self._unbegun and len(self._open) - len(self._unbegun) < MAX_PIPELINED:
                self._begin(self._unbegun.popleft())
            response = self._open[0].response
            if response is None or not self._can_write:
                break
            if isinstance(response, StreamingResponse):
                self._go_on_streaming(self._open[0], response)
                break
            exchange = self._open.popleft()
            is_last = self._connections.are_closing and self.is_idle
            keeps_alive = exchange.keeps_alive and not is_last
            self._transport.write(render(response, keeps_alive=keeps_alive, is_head=exchange.is_head))
            if self._settings.log_requests:
                log_request(exchange, response)
            if not keeps_alive:
                self._hang_up()
                return
        if not self._open and self._can_write and not self._is_closing:
            self._wait(self._settings.keep_alive_s if self._incoming is None else self._settings.body_timeout_s)
        if self._is_paused:
            self._steer_reading()

    def _go_on_streaming(self, exchange: Exchange, response: StreamingResponse) -> None:
        """Begin an answer that is made while it is sent, or ask for its next piece; there is never more than one."""
        if not self._is_streaming:
            self._is_streaming = True
            exchange.keeps_alive = exchange.keeps_alive and exchange.takes_chunks and not self._connections.are_closing
            self._transport.write(render_head(response, exchange))
        if not (self._is_pulling or self._is_closing):
            self._is_pulling = True
            response.stream.pull(partial(self._on_piece, exchange, response))

    def _on_piece(self, exchange: Exchange, response: StreamingResponse, piece: bytes | None) -> None:
        self._is_pulling = False
        if self._is_closing:
            return
        if piece:
            self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if exchange.takes_chunks else piece)
        elif piece is None:
            self._end_streaming(exchange, response)
        if not self._is_closing:
            self.flush()

    def _end_streaming(self, exchange: Exchange, response: StreamingResponse) -> None:
        self._is_streaming = False
        if exchange.takes_chunks:
            self._transport.write(b"0\r\n\r\n")
        self._open.popleft()
        if self._settings.log_requests:
            log_request(exchange, response)
        if not exchange.keeps_alive or (self._connections.are_closing and self.is_idle):
            self._hang_up()

    def close(self) -> None:
        """Close once everything is written."""
        self._is_closing = True
        self._transport.close()

    def _hang_up(self) -> None:
        """Close after the last answer; a client that is still sending gets time to read it."""
        if not self._is_refused:
            self.close()
            return
        self._is_closing = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._steer_reading()
        self._wait(LINGER_S)

    def _steer_reading(self) -> None:
        """Read while the client takes its answers and has not too many open; what a refused one sends is discarded."""
        can_read = self._is_closing or (self._can_write and len(self._open) < MAX_PIPELINED)
        if can_read == self._is_paused and not self._transport.is_closing():
            self._is_paused = not can_read
            if can_read:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _check_header(self, num_bytes: int) -> None:
        """Limit what was parsed of a header, and what came in while it is incomplete: the parser would keep it all."""
        if num_bytes > self._settings.max_header_bytes:
            self._refuse(431, f"The headers are larger than the limit of {self._settings.max_header_bytes} bytes.")

    def _refuse_body(self) -> None:
        self._refuse(413, f"The request body is larger than the limit of {self._settings.max_body_bytes} bytes.")

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer something that is not a request, after the requests before it, and hang up."""
        if not (self._is_refused or self._is_closing):
            self._refuse_with(Response(status=status, body=b'{"error":"%s"}' % sentence.encode()))

    def _refuse_with(self, response: Response) -> None:
        self._is_refused = True
        self._wait(None)
        exchange = Exchange(self)
        exchange.keeps_alive = False
        self._open.append(exchange)
        exchange.respond(response)

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
            self._timer = call_at(self._loop, self._deadline_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._deadline_s == 0.0:
            return
        late_s = self._loop.time() - self._deadline_s
        if late_s > LATE_S:  # the loop was busy: what the client has sent in the meantime is read first
            self._wait(LATE_S)
        elif late_s < 0:
            self._timer = call_at(self._loop, self._deadline_s, self._on_timer)
        elif self._incoming is None or self._is_refused or not self._can_write:
            self._transport.abort()
        else:
            self._refuse(408, "The request was not received in time.")
