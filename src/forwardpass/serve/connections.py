"""All open connections, so that there are never too many, and that stopping can wait for them."""

from __future__ import annotations

import asyncio
from typing import Protocol

from forwardpass.serve.backlog import Backlog

__all__ = ["Connection", "Connections"]


class Connection(Protocol):
    """A client's connection, whichever front it is of."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is open or half received."""

    def close(self) -> None:
        """Close once everything is written."""


class Connections:
    """The set of open connections."""

    def __init__(self, *, max_connections: int) -> None:
        self._max_connections = max_connections
        self.backlog = Backlog(asyncio.get_running_loop())
        self._open: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.are_closing = False

    def add(self, connection: Connection) -> bool:
        """Take in a connection, or return False if there are too many."""
        if len(self._open) >= self._max_connections:
            return False
        self._open.add(connection)
        self._empty.clear()
        return True

    def replace(self, connection: Connection, successor: Connection) -> None:
        """Let a connection go on as another one, which takes its place."""
        self._open.discard(connection)
        self._open.add(successor)
        self._empty.clear()

    def discard(self, connection: Connection) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        if not self._open:
            self._empty.set()

    def announce_closing(self) -> None:
        """From now on, the last answer of a connection tells the client that it is the last."""
        self.are_closing = True

    async def close(self) -> None:
        """Close the idle ones now and the others after their answer; return when all are gone."""
        self.are_closing = True
        for connection in tuple(self._open):
            if connection.is_idle:
                connection.close()
        await self._empty.wait()

    def close_all(self) -> None:
        """Close every connection once what was written has been sent."""
        for connection in tuple(self._open):
            connection.close()
