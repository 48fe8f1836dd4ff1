"""A request and the place for its answer, whichever front has read it, and the bytes that answers become."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from forwardpass.serve.tracing import Trace

__all__ = [
    "Answer",
    "Answering",
    "BodyStream",
    "Exchange",
    "Response",
    "StreamingResponse",
    "log_request",
    "render",
    "render_head",
]

log = logging.getLogger("forwardpass.requests")

JSON = "application/json"
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A status, a body, which is JSON unless said otherwise, and headers beyond those that every response has."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = JSON


class BodyStream(Protocol):
    """A body that is made while it is sent. It is asked for a piece only when the client has room for one."""

    def pull(self, give: Callable[[bytes | None], None]) -> None:
        """Call `give` once, later and on the event loop, with the next piece, or with None after the last."""

    def close(self) -> None:
        """Stop: the client has left. A piece that was asked for may still be given."""


class StreamingResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A status, headers, and a body that comes piece by piece."""

    status: int
    stream: BodyStream
    content_type: str
    headers: tuple[tuple[str, str], ...] = ()


Answer: TypeAlias = Response | StreamingResponse


class Answering(Protocol):
    """A connection that writes the answers of its exchanges."""

    def flush(self) -> None:
        """Write the answers that are due."""


class Exchange:
    """One request and the place for its response."""

    __slots__ = (
        "_connection",
        "_response",
        "begun_s",
        "body",
        "headers",
        "is_abandoned",
        "is_head",
        "keeps_alive",
        "method",
        "on_abandoned",
        "refusal",
        "takes_chunks",
        "target",
        "trace",
        "waited_s",
    )

    def __init__(self, connection: Answering, waited_s: float = 0.0) -> None:
        self._connection = connection
        self._response: Answer | None = None
        self.waited_s = waited_s
        """How long it lay in the kernel's buffer while the event loop was busy, about."""
        self.begun_s = time.monotonic() - waited_s
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.keeps_alive = True
        self.takes_chunks = True
        self.is_head = False
        self.is_abandoned = False
        self.on_abandoned: Callable[[], None] | None = None
        self.refusal: Response | None = None
        self.trace: Trace | None = None

    @property
    def response(self) -> Answer | None:
        """The answer, once there is one."""
        return self._response

    def abandon(self) -> None:
        """Note that the client has left, and tell whoever works on the answer."""
        self.is_abandoned = True
        if self.trace is not None and self._response is None:
            self.trace.abandoned()
        if isinstance(self._response, StreamingResponse):
            self._response.stream.close()
        elif self._response is None and self.on_abandoned is not None:
            self.on_abandoned()
        self.on_abandoned = None

    def move(self, connection: Answering) -> None:
        """Let another connection write the answer."""
        self._connection = connection

    def respond(self, response: Answer) -> None:
        """Answer; written when every earlier request of the connection has its answer."""
        if self._response is None:
            self._response = response
            self.on_abandoned = None  # it leads back here: the circle would keep the answer until the collector runs
            if self.trace is not None:
                self.trace.answered(response.status)
            self._connection.flush()
        if self.is_abandoned and isinstance(response, StreamingResponse):
            response.stream.close()


_OK_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"


def render(response: Response, *, keeps_alive: bool, is_head: bool) -> bytes:
    """Return the bytes of a response."""
    if (
        response.status == 200
        and keeps_alive
        and not is_head
        and not response.headers
        and response.content_type is JSON
    ):
        return _OK_JSON % (len(response.body), response.body)
    lines = [
        f"HTTP/1.1 {response.status} {_REASONS[response.status]}",
        f"content-type: {response.content_type}",
        f"content-length: {len(response.body)}",
        *(f"{name}: {value}" for name, value in response.headers),
        *([] if keeps_alive else ["connection: close"]),
    ]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if is_head else head + response.body


def render_head(response: StreamingResponse, exchange: Exchange) -> bytes:
    """Return the bytes before the body of an answer that comes piece by piece."""
    lines = [
        f"HTTP/1.1 {response.status} {_REASONS[response.status]}",
        f"content-type: {response.content_type}",
        *(["transfer-encoding: chunked"] if exchange.takes_chunks else []),
        *(f"{name}: {value}" for name, value in response.headers),
        *([] if exchange.keeps_alive else ["connection: close"]),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def log_request(exchange: Exchange, response: Answer) -> None:
    """Note what was asked and how it went; a path that is not a route could be anything, and is left out."""
    fields = {
        "method": exchange.method.decode("latin-1"),
        "route": "?" if response.status == 404 else exchange.target.partition(b"?")[0].decode("latin-1"),
        "status": response.status,
        "milliseconds": round((time.monotonic() - exchange.begun_s) * 1e3, 3),
    }
    log.info("%s ms", " ".join(map(str, fields.values())), extra={"fields": fields})
