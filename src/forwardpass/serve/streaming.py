"""Answers that come piece by piece: server-sent events, made on a thread only as fast as the client reads them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import suppress

import msgspec

from forwardpass.errors import NotAcceptable, NotReady, RequestError
from forwardpass.serve.exchange import StreamingResponse
from forwardpass.serve.responses import error_document

__all__ = ["EVENTS", "EventStream", "events_response", "wants_events"]

EVENTS = "text/event-stream"
JSON_RANGES = ("application/json", "application/*", "*/*")
HEADERS = (("cache-control", "no-store"), ("x-accel-buffering", "no"))
"""An answer that a proxy keeps or collects would not come piece by piece."""

log = logging.getLogger("forwardpass.serve")

_encode = msgspec.json.Encoder().encode

Give = Callable[[bytes | None], None]


class EventStream:
    """Turns a generator of objects into events: one for each, then `done`; or `error`, when something goes wrong.

    The generator is advanced by one step for every piece that the connection asks for, so a client that does not read
    costs the memory of one event. Whoever makes the stream hears once when it has ended, one way or the other.
    """

    def __init__(self, start: Callable[[], Iterator[Mapping[str, object]]], threads: Executor) -> None:
        self._start = start
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._objects: Iterator[Mapping[str, object]] | None = None
        self._give: Give | None = None
        self._last: bytes | None = None
        self._num_events = 0
        self._is_running = self._is_over = self._is_closed = False
        self.on_end: Callable[[], None] | None = None

    def pull(self, give: Give) -> None:
        """Give the next event."""
        if self._is_over:
            self._loop.call_soon(give, None)
            return
        self._give = give
        if self._last is not None:
            self._loop.call_soon(self._finish, self._last)
            return
        self._is_running = True
        work = self._loop.run_in_executor(self._threads, self._step)
        work.add_done_callback(self._on_step)

    def close(self) -> None:
        """Close the generator: nobody listens any more."""
        self._give = None
        self._end()

    def stop(self, error: RequestError) -> None:
        """Let `error` be the last event, now if the client waits for one, or else when it asks for the next."""
        self._last = _event("error", error_document(error))
        if self._give is not None:
            self._finish(self._last)

    def _step(self) -> bytes | None:
        """Return the next event, or None at the end. Runs on a thread."""
        if self._objects is None:
            self._objects = iter(self._start())
        for item in self._objects:
            return _event(None, item)
        return None

    def _on_step(self, work: asyncio.Future[bytes | None]) -> None:
        self._is_running = False
        event, is_last = self._outcome(work)
        if self._is_closed:
            self._close_objects()
        elif self._give is not None and is_last:
            self._finish(event)
        elif self._give is not None:
            self._num_events += 1
            give, self._give = self._give, None
            give(event)

    def _outcome(self, work: asyncio.Future[bytes | None]) -> tuple[bytes, bool]:
        """Return what to send, and whether it is the last."""
        try:
            event = work.result()
        except RequestError as error:
            return _event("error", error_document(error)), True
        except asyncio.CancelledError:
            return _event("error", error_document(NotReady(reason="it is stopping"))), True
        except Exception:
            log.exception("the processor failed in the middle of an answer")
            return _event("error", {"error": "the processor failed on this answer"}), True
        if event is None:
            return _event("done", {"num_events": self._num_events}), True
        return event, False

    def _finish(self, event: bytes) -> None:
        give, self._give = self._give, None
        if give is not None:
            self._end()
            give(event)

    def _end(self) -> None:
        self._is_over = True
        if not self._is_closed:
            self._is_closed = True
            if not self._is_running:
                self._close_objects()
            if self.on_end is not None:
                self.on_end()

    def _close_objects(self) -> None:
        """Close the generator where it runs; its `finally` may take a while."""
        close = getattr(self._objects, "close", None)
        if close is not None:
            with suppress(RuntimeError):  # the threads are gone, and with them whoever could mind
                self._loop.run_in_executor(self._threads, close).add_done_callback(_note_failure)


def events_response(stream: EventStream) -> StreamingResponse:
    """Answer with events."""
    return StreamingResponse(status=200, stream=stream, content_type=EVENTS, headers=HEADERS)


def wants_events(accept: str, *, are_available: bool) -> bool:
    """Tell whether a client that sent this `Accept` header gets events: it names them, and there are some.

    >>> wants_events("text/event-stream", are_available=True), wants_events("*/*", are_available=True)
    (True, False)

    Raises:
        NotAcceptable: it takes events alone, and there are none.
    """
    accepted = _accepted(accept)
    if EVENTS not in accepted:
        return False
    if not are_available and not accepted.intersection(JSON_RANGES):
        raise NotAcceptable(wanted=EVENTS, available="application/json")
    return are_available


def _accepted(accept: str) -> set[str]:
    """Return the media ranges of an `Accept` header whose quality is not 0."""
    accepted = set()
    for entry in accept.lower().split(","):
        media_range, *parameters = (piece.strip() for piece in entry.split(";"))
        qualities = [value for name, _, value in (piece.partition("=") for piece in parameters) if name.strip() == "q"]
        if not qualities or qualities[0].strip("0. "):
            accepted.add(media_range)
    return accepted


def _event(name: str | None, document: object) -> bytes:
    """Write one event; JSON has no line breaks, so its data is one line."""
    line = b"event: %b\n" % name.encode() if name else b""
    return line + b"data: " + _encode(document) + b"\n\n"


def _note_failure(work: asyncio.Future[None]) -> None:
    if not work.cancelled() and work.exception() is not None:
        log.error("the processor failed when a stream was closed", exc_info=work.exception())
