"""One call from its first attempt to its result: what to send, when to try again, what an error is.

There is no socket and no sleep in here. Both clients drive the same generator: it yields what to send and gets the
answer, or yields how long to pause.
"""

from __future__ import annotations

import math
import os
import random
import re
import socket
import ssl
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from forwardpass.client.addresses import Address, Tls, check_headers, parse_url, render
from forwardpass.client.failures import RetryPolicy, error_of
from forwardpass.client.operations import Buffer, Operation
from forwardpass.client.receiving import Answer, BadAnswer
from forwardpass.errors import DeadlineExceeded, InvalidAnswer, InvalidOption, ServerUnreachable
from forwardpass.protocol import TIMEOUT_HEADER

__all__ = [
    "Call",
    "Pause",
    "Peer",
    "Send",
    "coalesce",
    "converse",
    "make_peer",
    "make_tls",
    "translated",
]

DEFAULT_TIMEOUT_S = 60.0
MIN_GRACE_S, GRACE_SHARE, MAX_GRACE_S = 0.05, 0.25, 1.0
"""How much longer than its deadline a call waits for the server's own word that it is over, as a share of it."""
MAX_COPIED_BYTES = 32 * 2**10
"""Pieces up to this are joined before they are sent: one system call costs more than the copy."""
_ERRNO = re.compile(r"\[Errno (\d+)\]")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server and how we deal with it. `lines` are the headers of every request, the key among them.

    `timeout_s` is the deadline of calls that set none of their own; None where the client was made without one.
    """

    address: Address
    tls: Tls
    lines: str
    timeout_s: float | None
    max_connections: int
    policy: RetryPolicy

    def __repr__(self) -> str:
        return f"Peer({self.address.url})"

    def limit_s(self, timeout_s: float | None) -> float:
        """Return how long a call may take that was given `timeout_s`."""
        return self.told_s(timeout_s) or DEFAULT_TIMEOUT_S

    def told_s(self, timeout_s: float | None) -> float | None:
        """Return the deadline that the server is told, if any: our default would only prolong its own."""
        return timeout_s if timeout_s is not None else self.timeout_s


def make_peer(
    url: str,
    *,
    key: str | None,
    timeout_s: float | None,
    max_retries: int,
    max_connections: int,
    headers: Mapping[str, str] | None,
    tls: Tls,
) -> Peer:
    """Check what a client is made with.

    Raises:
        InvalidOption: something of it cannot be.
    """
    address = parse_url(url)
    tls.check(address)
    _check_timeout(timeout_s)
    if max_connections <= 0:
        raise InvalidOption(option="max_connections", value=str(max_connections), expected="more than 0")
    if max_retries < 0:
        raise InvalidOption(option="max_retries", value=str(max_retries), expected="0 or more")
    if key is not None and not (key.isascii() and key.isprintable() and key):
        raise InvalidOption(option="key", value="(not shown)", expected="a key of printable ASCII")
    authorization = {"authorization": f"Bearer {key}"} if key is not None else {}
    host = f"[{address.host}]" if ":" in address.host else address.host
    own = {"host": f"{host}:{address.port}", "accept": "*/*", **authorization, **(headers or {})}
    return Peer(
        address=address,
        tls=tls,
        lines=check_headers(own),
        timeout_s=timeout_s,
        max_connections=max_connections,
        policy=RetryPolicy(max_retries=max_retries),
    )


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None and not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise InvalidOption(option="timeout_s", value=str(timeout_s), expected="more than 0 seconds, and not for ever")


def make_tls(
    *, verify: bool, ca: Path | str | None, certificate: Path | str | None, private_key: Path | str | None
) -> Tls:
    """Return how TLS is spoken."""
    return Tls(
        verify=verify,
        authority=Path(ca) if ca is not None else None,
        certificate=Path(certificate) if certificate is not None else None,
        private_key=Path(private_key) if private_key is not None else None,
    )


@dataclass(frozen=True, slots=True)
class Send:
    """Send these pieces and come back with the answer, before `until_s` on the monotonic clock."""

    pieces: Sequence[Buffer]
    until_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Come back after so many seconds."""

    seconds: float


Call: TypeAlias = Generator[Send | Pause, Answer | None, T]


def converse(
    peer: Peer,
    operation: Operation[T],
    *,
    timeout_s: float | None = None,
    headers: Mapping[str, str] | None = None,
    begun_s: float | None = None,
) -> Call[T]:
    """Yield what to do until the operation has its result.

    A deadline that the caller sets, for the call or the client, is told to the server, and the answer that it is over
    is waited for a little longer. The header is left alone where the caller writes it.

    Raises:
        RequestError: the server refused it, did not answer in time or not by the protocol.
        InvalidOption: a header or the deadline cannot be.
    """
    _check_timeout(timeout_s)
    limit_s, is_told = peer.limit_s(timeout_s), peer.told_s(timeout_s) is not None
    until_s = (begun_s if begun_s is not None else time.monotonic()) + limit_s
    grace_s = min(max(GRACE_SHARE * limit_s, MIN_GRACE_S), MAX_GRACE_S) if is_told else 0.0
    lines = peer.lines + check_headers(headers) if headers else peer.lines
    is_written = f"{TIMEOUT_HEADER}:" in lines.lower()
    num_tried = 0
    while True:
        told_s = until_s - time.monotonic() if is_told and not is_written else None
        head = render(operation, prefix=peer.address.prefix, lines=lines, left_s=told_s)
        answer = yield Send((head, *operation.body), until_s + grace_s)
        assert answer is not None, "an answer comes for what was sent"
        num_tried += 1
        if answer.status in operation.accepts:
            return operation.read(answer)
        left_s, jitter = until_s - time.monotonic(), random.random()  # noqa: S311 - nothing secret
        pause_s = peer.policy.pause_s(answer, num_tried=num_tried, left_s=left_s, jitter=jitter)
        if pause_s is None:
            error = error_of(answer, path=operation.path, deadline_s=limit_s)
            is_ours = told_s is not None and isinstance(error, DeadlineExceeded)
            raise DeadlineExceeded(deadline_s=limit_s) if is_ours else error  # the server knows what was left of it
        yield Pause(pause_s)


@contextmanager
def translated(peer: Peer, timeout_s: float | None) -> Iterator[None]:
    """Raise what goes wrong below as errors of forwardpass."""
    try:
        yield
    except TimeoutError as error:
        if isinstance(error, DeadlineExceeded):
            raise
        raise DeadlineExceeded(deadline_s=peer.limit_s(timeout_s)) from error
    except BadAnswer as error:
        raise InvalidAnswer(url=peer.address.url, reason=str(error)) from error
    except ServerUnreachable:
        raise
    except OSError as error:
        raise ServerUnreachable(url=peer.address.url, reason=_reason(error)) from error


def _reason(error: OSError) -> str:
    """Return the system's words; asyncio puts its own around them, and joins those of all addresses of a name."""
    if isinstance(error, ssl.SSLError):
        words = getattr(error, "verify_message", "") or (error.reason or str(error)).replace("_", " ").lower()
        return f"TLS failed ({words})"
    text = error.strerror or str(error) or type(error).__name__
    number = error.errno or int((_ERRNO.search(text) or ["0", "0"])[1])
    if number > 0 and not isinstance(error, socket.gaierror):
        text = os.strerror(number)
    return text[:1].lower() + text[1:].rstrip(".")


def coalesce(pieces: Sequence[Buffer]) -> list[Buffer]:
    """Join neighbours that are small, and leave large ones as they are, to be sent without a copy."""
    joined: list[Buffer] = []
    small: list[Buffer] = []
    num_bytes = 0
    for piece in pieces:
        if num_bytes + len(piece) <= MAX_COPIED_BYTES:
            small.append(piece)
            num_bytes += len(piece)
            continue
        if small:
            joined.append(b"".join(small))
        joined.append(piece)
        small, num_bytes = [], 0
    if small:
        joined.append(b"".join(small))
    return joined
