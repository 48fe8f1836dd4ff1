"""One HTTP answer, taken in piece by piece: no socket in here, both clients feed it.

The head goes into a small buffer. A body of known length goes straight to where it stays, laid out so that the first
tensor behind the JSON is aligned: the arrays made of it are views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

import httptools
import numpy as np

from forwardpass.protocol import JSON_LENGTH_HEADER

__all__ = ["MAX_HEAD_BYTES", "Answer", "BadAnswer", "Receiver", "read_count"]

MAX_HEAD_BYTES = 64 * 2**10
MAX_DIGITS = 18
ALIGNMENT = 64
"""Bytes; a cache line, and enough for every dtype."""
_END = b"\r\n\r\n"


class BadAnswer(Exception):
    """The peer sent something that is not an HTTP answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A status, headers by lower-case name, and the body; `keeps_alive` says whether the connection goes on."""

    status: int
    headers: Mapping[str, str]
    body: bytes | memoryview
    keeps_alive: bool


class _Phase(Enum):
    HEAD = auto()
    SIZED = auto()
    CHUNKED = auto()
    UNTIL_CLOSED = auto()


def read_count(text: str) -> int | None:
    """Return the number in a header, or None if it is none: `isdigit` alone takes characters that `int` does not."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


class Receiver:
    """Takes in one answer after another. Write into `buffer()`, then say how much to `received()`."""

    def __init__(self) -> None:
        self._head = bytearray(MAX_HEAD_BYTES)
        self._view = memoryview(self._head)
        self._begin()

    def _begin(self) -> None:
        self._phase = _Phase.HEAD
        self._num_head_bytes = 0
        self._headers: dict[str, str] = {}
        self._body = memoryview(b"")
        self._num_body_bytes = 0
        self._pieces: list[bytes] = []
        self._is_complete = False
        self._status = 0
        self._keeps_alive = False
        self.has_begun = False
        """Whether anything of the answer has come."""

    def buffer(self) -> memoryview:
        """Return where the next bytes belong."""
        if self._phase is _Phase.HEAD:
            return self._view[self._num_head_bytes :]
        return self._body[self._num_body_bytes :] if self._phase is _Phase.SIZED else self._view

    def received(self, num_bytes: int) -> Answer | None:
        """Take note of so many bytes in the buffer; return the answer once it is complete.

        Raises:
            BadAnswer: this is not HTTP.
        """
        self.has_begun = True
        if self._phase is _Phase.HEAD:
            return self._read_head(num_bytes)
        if self._phase is _Phase.SIZED:
            self._num_body_bytes += num_bytes
            return self._finish(self._body) if self._num_body_bytes == len(self._body) else None
        return self._read_stream(self._view[:num_bytes])

    def ended(self) -> Answer | None:
        """Take note that the peer has hung up; return the answer if that is its end, and None if it is cut off."""
        return self._finish(b"".join(self._pieces)) if self._phase is _Phase.UNTIL_CLOSED else None

    # --- httptools calls these

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Note what the headers say of the connection; once the message is complete the parser has forgotten it."""
        self._keeps_alive = self._parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        """Collect what is not of known length."""
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """Note the end of a chunked answer."""
        self._is_complete = True

    def _read_head(self, num_bytes: int) -> Answer | None:
        search_from = max(self._num_head_bytes - len(_END) + 1, 0)
        self._num_head_bytes += num_bytes
        at = self._head.find(_END, search_from, self._num_head_bytes)
        if at < 0:
            if self._num_head_bytes == MAX_HEAD_BYTES:
                raise BadAnswer(f"its headers are larger than {MAX_HEAD_BYTES} bytes")
            return None
        end = at + len(_END)
        self._parse(bytes(self._view[:end]))
        rest = bytes(self._view[end : self._num_head_bytes])
        if 100 <= self._status < 200:
            self._begin()
            self._view[: len(rest)] = rest
            return self._read_head(len(rest)) if rest else None
        return self._start_body(rest)

    def _parse(self, head: bytes) -> None:
        self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserError as error:
            raise BadAnswer(f"it is no HTTP ({str(error)[:100]})") from error
        self._status = self._parser.get_status_code()

    def _start_body(self, rest: bytes) -> Answer | None:
        length = self._headers.get("content-length")
        if "transfer-encoding" in self._headers:
            self._phase = _Phase.CHUNKED
            return self._read_stream(memoryview(rest)) if rest else None
        if self._status in (204, 304):
            return self._finish(b"")
        if length is None:
            self._phase, self._keeps_alive = _Phase.UNTIL_CLOSED, False
            return self._read_stream(memoryview(rest)) if rest else None
        self._phase = _Phase.SIZED
        if len(rest) == int(length):
            return self._finish(self._lay_out(rest) if JSON_LENGTH_HEADER in self._headers else rest)
        self._body = self._lay_out(rest)
        self._num_body_bytes = len(rest)
        return None

    def _lay_out(self, rest: bytes) -> memoryview:
        """Return room for the body, with what is there of it already, in which the byte after the JSON is aligned."""
        length, json_length = int(self._headers["content-length"]), self._headers.get(JSON_LENGTH_HEADER, "0")
        if len(rest) > length:
            raise BadAnswer("more follows than it announces")
        try:
            room = np.empty(length + 2 * ALIGNMENT, np.uint8)
        except (MemoryError, ValueError) as error:
            raise BadAnswer(f"it announces {length} bytes, more than there is memory for") from error
        offset = -(room.__array_interface__["data"][0] + (read_count(json_length) or 0)) % ALIGNMENT
        body = room.data[offset : offset + length]
        body[: len(rest)] = rest
        return body

    def _read_stream(self, data: memoryview) -> Answer | None:
        if self._phase is _Phase.UNTIL_CLOSED:
            self._pieces.append(bytes(data))
            return None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise BadAnswer(f"its chunks are broken ({str(error)[:100]})") from error
        return self._finish(b"".join(self._pieces)) if self._is_complete else None

    def _finish(self, body: bytes | memoryview) -> Answer:
        answer = Answer(status=self._status, headers=self._headers, body=body, keeps_alive=self._keeps_alive)
        self._begin()
        return answer
