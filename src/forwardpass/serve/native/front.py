"""The native front among the others: on the event loop, in front of the same routes, giving up what is not for it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from forwardpass.serve.app import TOO_BUSY, Application
from forwardpass.serve.connections import Connections
from forwardpass.serve.exchange import Exchange, Response, StreamingResponse, render
from forwardpass.serve.http import HttpConnection
from forwardpass.serve.native.line import VersionLine, open_line
from forwardpass.serve.repository import Repository
from forwardpass.serve.responses import message_response
from forwardpass.serve.settings import ServeSettings
from forwardpass.serve.versions import ModelVersion

if TYPE_CHECKING:
    from forwardpass.serve.native._front import Line, NativeConnection

__all__ = ["NativeFront", "is_available"]

SWEEP_S = 0.25
"""How often clients are looked at that should have taken their next step."""
EXHAUSTED_S = 0.1
"""No connections are accepted for so long after there were no file descriptors for them."""
BACKLOG = 1024
TIMED_OUT = Response(status=408, body=b'{"error":"The request was not received in time."}')

log = logging.getLogger("forwardpass.serve")


def is_available() -> bool:
    """Tell whether the compiled part is there."""
    try:
        import_module("forwardpass.serve.native._front")
    except ImportError:
        return False
    return True


class NativeFront:
    """Accepts every connection, answers what it understands, and hands the rest to the application or to `http`."""

    def __init__(
        self, application: Application, repository: Repository, settings: ServeSettings, connections: Connections
    ) -> None:
        from forwardpass.serve.native._front import Front

        self._application = application
        self._repository = repository
        self._settings = settings
        self.connections = connections
        self._loop = asyncio.get_running_loop()
        self._front = Front(
            self,
            header_timeout_s=settings.header_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            keep_alive_s=settings.keep_alive_s,
            max_body_bytes=settings.max_body_bytes,
            max_header_bytes=settings.max_header_bytes,
            too_busy=render(TOO_BUSY, keeps_alive=True, is_head=False),
            timed_out=render(TIMED_OUT, keeps_alive=False, is_head=False),
        )
        self._front.needs_grant = settings.keys is not None
        self._lines: dict[ModelVersion, VersionLine | None] = {}
        self._listening: list[int] = []
        self._sweeping: asyncio.TimerHandle | None = None
        self._is_scheduled = False
        self._taking_over: set[asyncio.Task[None]] = set()

    def start(self, sockets: Iterable[socket.socket]) -> None:
        """Listen on sockets that are bound; they stay the caller's."""
        self.rebuild()
        for one in sockets:
            own = os.dup(one.fileno())
            os.set_blocking(own, False)
            with socket.socket(fileno=os.dup(own)) as listening:
                listening.listen(BACKLOG)
            self._listening.append(own)
            self._front.listen(own)
        self._loop.add_reader(self._front.fileno(), self._turn)
        self._sweep()

    def announce_closing(self) -> None:
        """From now on, every answer is the last of its connection."""
        self._front.is_closing = True

    def stop_listening(self) -> None:
        """Accept no more connections."""
        for descriptor in self._listening:
            self._front.unlisten(descriptor)
            os.close(descriptor)
        self._listening.clear()

    def close(self) -> None:
        """Let go of the event loop, when all connections are gone."""
        self.stop_listening()
        self._loop.remove_reader(self._front.fileno())
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._front.set_routes({})
        self._lines.clear()

    def rebuild(self) -> None:
        """Make the table of lines again after models have come or gone."""
        routes: dict[bytes, Line] = {}
        lines: dict[ModelVersion, VersionLine | None] = {}
        for model in self._repository.models.values():
            for name, version in model.plain_targets():
                if version not in lines:
                    known = self._lines.get(version)
                    lines[version] = known if known is not None else open_line(version, self, self._front)
                line = lines[version]
                if line is not None:
                    suffix = f"/versions/{name}" if name is not None else ""
                    routes[f"/v2/models/{model.name}{suffix}/infer".encode()] = line.line
        self._lines = lines
        self._front.set_routes(routes)

    # --- on the event loop

    def _turn(self) -> None:
        self._is_scheduled = False
        has_more = True  # also where something unforeseen has ended the turn
        try:
            has_more = self._front.turn()
        except Exception:
            log.exception("a turn of the native front was cut short")
        if has_more:
            self.schedule()
        else:
            self._loop.call_soon(self._front.end_turn)

    def schedule(self) -> None:
        """Go on soon: not everything that is there has been read."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)

    def _sweep(self) -> None:
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        self._front.sweep()

    def on_exhausted(self, listening: int) -> None:
        """Wait until there may be file descriptors again; connections wait in the kernel meanwhile."""
        self._front.unlisten(listening)
        self._loop.call_later(EXHAUSTED_S, self._listen_again, listening)

    def _listen_again(self, listening: int) -> None:
        if listening in self._listening:
            self._front.listen(listening)

    # --- what is not for native code

    def exchange(self, connection: NativeConnection, waited_s: float) -> Exchange:
        """Return the open request of a connection as the application takes it; it answers through the connection."""
        exchange = Exchange(connection, waited_s)
        exchange.method, exchange.target, exchange.headers, exchange.body = connection.request()
        connection.attach(exchange)
        return exchange

    def on_request(self, connection: NativeConnection, waited_s: float) -> None:
        """Let the application answer a request that is whole and well framed."""
        exchange = self.exchange(connection, waited_s)
        try:
            refusal = self._application.admit(exchange)
            if refusal is not None:
                exchange.respond(refusal)
                return
            if self._front.needs_grant and (seconds := self._application.grant_s(exchange)):
                self._front.grant(connection, seconds)
            self._application.handle(exchange)
        except Exception:
            log.exception("a request could not be handled")
            exchange.respond(message_response(500, "internal error"))

    def render(self, connection: NativeConnection, exchange: Exchange) -> tuple[bytes, bool] | None:
        """Return an answer as bytes, and whether the connection goes on; None for one that comes piece by piece."""
        response = exchange.response
        assert response is not None, "there is an answer"
        if isinstance(response, StreamingResponse):
            self._take_over_exchange(connection, exchange)
            return None
        keeps_alive = not self.connections.are_closing
        return render(response, keeps_alive=keeps_alive, is_head=False), keeps_alive

    def take_over(self, descriptor: int, data: bytes, predecessor: NativeConnection | None) -> None:
        """Let the Python front have a connection, with what was read of it."""
        self._hand_over(descriptor, data, None, predecessor)

    def _take_over_exchange(self, connection: NativeConnection, exchange: Exchange) -> None:
        self._hand_over(self._front.detach(connection), b"", exchange, connection)

    def _hand_over(
        self, descriptor: int, data: bytes, exchange: Exchange | None, predecessor: NativeConnection | None
    ) -> None:
        """Give a descriptor to the Python front; until it has it, the predecessor keeps its place."""
        application = self._application

        def make() -> HttpConnection:
            connection = HttpConnection(application.admit, application.handle, self._settings, self.connections)
            connection.inherit(data, exchange, predecessor)
            return connection

        async def connect(accepted: socket.socket) -> None:
            try:
                await self._loop.connect_accepted_socket(make, accepted)
            except OSError as error:
                log.warning("a connection could not be taken over (%s)", error)
                accepted.close()
                if predecessor is not None:
                    self.connections.discard(predecessor)
                if exchange is not None:
                    exchange.abandon()

        task = self._loop.create_task(connect(socket.socket(fileno=descriptor)))
        self._taking_over.add(task)
        task.add_done_callback(self._taking_over.discard)
