"""Answers that are errors, as the errors that they are; and whether it helps to try again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from forwardpass import errors
from forwardpass.client.receiving import Answer, read_count
from forwardpass.errors import (
    BodyTooLarge,
    ConversionError,
    DeadlineExceeded,
    Forbidden,
    ForwardpassError,
    MalformedRequest,
    NotFound,
    NotReady,
    Overloaded,
    RequestError,
    ServerFailed,
    Unauthorized,
)

__all__ = ["RetryPolicy", "error_of", "retry_after_s"]

MAX_SHOWN = 300
"""Characters of a foreign server's own words."""
UNSTATED_WAIT_S = 1.0
"""When a server says that it is overloaded, but not for how long."""
_KINDS: Mapping[str, type[ForwardpassError]] = {
    kind.slug: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ForwardpassError) and not issubclass(kind, ConversionError)
}
"""All that a server can meet."""
_LIMIT = re.compile(r"limit of (\d+) bytes")


class _Body(msgspec.Struct):
    error: str = ""
    slug: str = ""
    facts: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Body).decode


def error_of(answer: Answer, *, path: str, deadline_s: float) -> ForwardpassError:
    """Return what an answer that is no 200 says.

    A forwardpass server names its error with the facts, and the same error is made of them here. Of other servers the
    status tells the kind, and the sentence is theirs.
    """
    body = _read(answer)
    kind = _KINDS.get(body.slug)
    if kind is not None:
        try:
            return kind(**body.facts)
        except TypeError:  # a server of another version has other facts; the status has to do
            pass
    sentence = _shown(body.error) or "it gives no reason"
    made = _BY_STATUS.get(answer.status)
    if made is not None:
        return made(_Told(sentence=sentence, path=path, wait_s=retry_after_s(answer), deadline_s=deadline_s))
    return ServerFailed(status=answer.status, reason=sentence)


def retry_after_s(answer: Answer) -> float | None:
    """Return how long the server asks to wait, if it does; a date is no use between clocks that differ."""
    seconds = read_count(answer.headers.get("retry-after", "").strip())
    return float(seconds) if seconds is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Whether a refused call is tried again, and when: only where the server says that it did nothing and when to come.

    At most `max_retries` times, never past the caller's deadline, and spread, so that those who were refused together
    do not come back together.
    """

    max_retries: int = 3
    spread: float = 0.5

    def pause_s(self, answer: Answer, *, num_tried: int, left_s: float, jitter: float) -> float | None:
        """Return how long to wait before the next attempt, or None to give up; `jitter` is from 0 to 1."""
        wait_s = retry_after_s(answer)
        if answer.status not in (429, 503) or wait_s is None or num_tried > self.max_retries:
            return None
        pause_s = wait_s * (1 + self.spread * jitter)
        return pause_s if pause_s < left_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What there is to make an error of."""

    sentence: str
    path: str
    wait_s: float | None
    deadline_s: float


def _too_large(told: _Told) -> RequestError:
    limit = _LIMIT.search(told.sentence)
    return BodyTooLarge(max_bytes=int(limit[1])) if limit else ServerFailed(status=413, reason=told.sentence)


_BY_STATUS: Mapping[int, Callable[[_Told], RequestError]] = {
    400: lambda told: MalformedRequest(reason=told.sentence),
    401: lambda told: Unauthorized(reason=told.sentence),
    403: lambda told: Forbidden(reason=told.sentence),
    404: lambda told: NotFound(what=f"'{told.path}' ({told.sentence})"),
    413: _too_large,
    429: lambda told: Overloaded(retry_after_s=told.wait_s or UNSTATED_WAIT_S, reason=told.sentence),
    503: lambda told: NotReady(reason=told.sentence),
    504: lambda told: DeadlineExceeded(deadline_s=told.deadline_s),
}


def _read(answer: Answer) -> _Body:
    try:
        return _decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Body(error=bytes(answer.body[: 2 * MAX_SHOWN]).decode("utf-8", "replace"))


def _shown(text: str) -> str:
    """Return a foreign sentence on one line, without its full stop."""
    return " ".join(text.split())[:MAX_SHOWN].rstrip(".")
