"""What the generator's process is told and what it tells: length-prefixed MessagePack over a socket."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Protocol

import msgspec

__all__ = ["Closed", "Fate", "Message", "Open", "Prepare", "Ran", "read_message", "write_message"]

_LENGTH = struct.Struct("<Q")


class Channel(Protocol):
    """A buffered stream in both directions, such as a socket's file."""

    def read(self, size: int, /) -> bytes:
        """Read so many bytes, fewer at the end."""

    def write(self, data: bytes, /) -> int:
        """Write all bytes."""

    def flush(self) -> None:
        """Send what was written."""


class Fate(IntEnum):
    """What became of a request."""

    UNSENT = 0
    """The run ended before it was due."""
    ANSWERED = 1
    """With one of the expected statuses."""
    WRONG_STATUS = 2
    TIMED_OUT = 3
    REFUSED = 4
    """No connection could be made."""
    HUNG_UP = 5
    """The connection ended before the answer did."""
    GARBAGE = 6
    """The answer was not HTTP, or there was more than one."""


class Prepare(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Where to send, what, and what counts as an answer."""

    host: str
    """An address, already resolved."""
    port: int
    requests: list[bytes]
    """Whole requests, head and body; they are sent in turn."""
    statuses: list[int]
    """Those of a good answer; empty for all from 200 to 299."""
    timeout_s: float
    max_connections: int
    answers_end_with_connection: bool = False
    """Whether the server marks the end of an answer by closing, as in HTTP/1.0."""
    server_name: str | None = None
    """For TLS; None for none."""
    certificates: str | None = None
    """PEM file of authorities to trust for TLS beside the system's."""


class Open(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Send at these times, whatever the server does."""

    times: bytes
    """float64, seconds from the start."""


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Keep this many requests under way, each connection sending its next when it has an answer."""

    num_connections: int
    duration_s: float
    max_requests: int


class Ran(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What happened. The arrays have one element a request, in the order in which they were due."""

    scheduled_s: bytes
    released_s: bytes
    """When the generator came to it: float64, seconds from the start."""
    sent_s: bytes
    """When it had a connection; not a number if never."""
    done_s: bytes
    fates: bytes
    statuses: bytes
    """uint16, 0 without an answer."""
    wall_s: float
    cpu_s: float
    num_connections: int
    """Opened altogether."""
    most_connections: int
    """Open at once."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The generator cannot go on."""

    reason: str


class Prepared(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ready to run."""


Message = Prepare | Open | Closed | Ran | Failed | Prepared
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def write_message(stream: Channel, message: Message) -> None:
    """Write and flush one message."""
    body = _encode(message)
    stream.write(_LENGTH.pack(len(body)))
    stream.write(body)
    stream.flush()


def read_message(stream: Channel) -> Message | None:
    """Read one message; None when the other end is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    body = stream.read(size)
    return _decode(body) if len(body) == size else None
