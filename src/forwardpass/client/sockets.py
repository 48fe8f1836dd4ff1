"""Connections that block, and the pool that threads share."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Sequence

from forwardpass.client.calling import Peer, Send, coalesce
from forwardpass.client.operations import Buffer
from forwardpass.client.receiving import Answer, Receiver
from forwardpass.errors import ServerUnreachable

__all__ = ["SocketPool"]


class Stale(ConnectionError):
    """The server closed the connection while it was idle; nothing of this request was answered."""


class SocketPool:
    """Takes idle connections again, the latest first. Safe for threads, and for processes that were forked."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._context = peer.tls.context() if peer.address.is_tls else None
        self._idle: list[_Connection] = []
        self._places = threading.BoundedSemaphore(peer.max_connections)
        self._pid = os.getpid()
        self._is_closed = False

    def exchange(self, send: Send) -> Answer:
        """Send a request and return its answer.

        What is sent is safe to send again if the server hung up without a word: inference changes nothing, and loading
        what is loaded does nothing.

        Raises:
            OSError: there is no connection, it broke, or the time is over.
            BadAnswer: the answer is no HTTP.
        """
        if not self._places.acquire(timeout=max(send.until_s - time.monotonic(), 0.0)):
            raise TimeoutError("no connection became free")
        try:
            while True:
                connection = self._reusable()
                is_fresh = connection is None
                if connection is None:
                    connection = _Connection(self._peer, self._context, send.until_s)
                try:
                    answer = connection.exchange(send.pieces, send.until_s)
                except Stale:
                    connection.close()
                    if is_fresh:
                        raise
                    continue
                except BaseException:
                    connection.close()
                    raise
                self._give_back(connection, answer)
                return answer
        finally:
            self._places.release()

    def close(self) -> None:
        """Close what is idle, and take nothing in again."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def _reusable(self) -> _Connection | None:
        if self._is_closed:
            raise ServerUnreachable(url=self._peer.address.url, reason="this client was closed")
        if os.getpid() != self._pid:  # the connections are the parent's
            self._idle, self._pid = [], os.getpid()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if not connection.is_stale():
                return connection
            connection.close()

    def _give_back(self, connection: _Connection, answer: Answer) -> None:
        if answer.keeps_alive and not self._is_closed:
            self._idle.append(connection)
        else:
            connection.close()


class _Connection:
    """One connection, one exchange at a time."""

    def __init__(self, peer: Peer, context: ssl.SSLContext | None, until_s: float) -> None:
        self._receiver = Receiver()
        host = peer.address.host
        plain = socket.create_connection((host, peer.address.port), timeout=_left(until_s))
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = context.wrap_socket(plain, server_hostname=host) if context is not None else plain
        except BaseException:
            plain.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def is_stale(self) -> bool:
        """Whether something came, which while the connection is idle can only be its end."""
        return bool(self._poll.poll(0))

    def exchange(self, pieces: Sequence[Buffer], until_s: float) -> Answer:
        try:
            for piece in coalesce(pieces):
                self._socket.settimeout(_left(until_s))
                self._socket.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a server that refuses may hang up before it has read everything: its answer may be there
        return self._receive(until_s)

    def close(self) -> None:
        self._socket.close()

    def _receive(self, until_s: float) -> Answer:
        receiver, source = self._receiver, self._socket
        while True:
            source.settimeout(_left(until_s))
            try:
                num_bytes = source.recv_into(receiver.buffer())
            except ConnectionResetError as error:
                if receiver.has_begun:
                    raise
                raise Stale("the server hung up") from error
            answer = receiver.received(num_bytes) if num_bytes else receiver.ended()
            if answer is not None:
                return answer
            if not num_bytes:
                if receiver.has_begun:
                    raise ConnectionResetError("the answer was cut off")
                raise Stale("the server hung up")


def _left(until_s: float) -> float:
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the time is over")
    return left_s
