"""The routes that change what is served: the model repository extension, and the traffic of a model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from forwardpass.core.canary import ERROR_RATE, TOLERANCE, CanaryLimits
from forwardpass.errors import ForwardpassError, InvalidOption, MalformedRequest
from forwardpass.serve.auth import Scope
from forwardpass.serve.exchange import Exchange, Response
from forwardpass.serve.models import Traffic
from forwardpass.serve.repository import MODEL_NAME, Repository
from forwardpass.serve.responses import error_response, json_response, message_response

if TYPE_CHECKING:
    from forwardpass.serve.app import Endpoint

__all__ = ["ControlRoutes", "TrafficBody"]

PREFIX = "/v2/repository/models/"
TRAFFIC_PREFIX = "/v1/models/"

log = logging.getLogger("forwardpass.serve")

_T = TypeVar("_T")


class _IndexBody(msgspec.Struct):
    ready: bool = False


class RollbackBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a version loses its share of the split."""

    error_rate: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = ERROR_RATE
    tolerance: Annotated[float, msgspec.Meta(ge=0, lt=1)] = TOLERANCE

    def limits(self) -> CanaryLimits:
        """Return it as the server uses it."""
        return CanaryLimits(error_rate=self.error_rate, tolerance=self.tolerance)


class TrafficBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Labels, split and shadow as they stand in a request or a configuration file."""

    labels: dict[str, str | int] = {}
    split: dict[str, float] = {}
    shadow: str | int | None = None
    rollback: bool | RollbackBody = True

    def traffic(self) -> Traffic:
        """Return it as the server uses it.

        Raises:
            InvalidOption: a share is negative, all are zero, or a label looks like a version.
        """
        if any(share < 0 for share in self.split.values()) or (self.split and not any(self.split.values())):
            raise InvalidOption(option="split", value=str(self.split), expected="shares from 0 up, not all of them 0")
        for label in self.labels:
            if not MODEL_NAME.fullmatch(label) or label.isdigit():
                expected = "labels of letters, digits, '.', '_' and '-' that are no numbers"
                raise InvalidOption(option="labels", value=label[:64], expected=expected)
        labels = {label: str(number) for label, number in self.labels.items()}
        asked = RollbackBody() if self.rollback is True else self.rollback
        rollback = asked.limits() if asked else None
        shadow = str(self.shadow) if self.shadow is not None else None
        return Traffic(labels=labels, split=self.split, shadow=shadow, rollback=rollback)


class ControlRoutes:
    """Loading, unloading, and who gets which version."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._tasks: set[asyncio.Task[None]] = set()

    def endpoints(self, path: str) -> Mapping[bytes, Endpoint] | None:
        """Return what answers a path that names a model, loaded or not."""
        from forwardpass.serve.app import Endpoint

        prefix = PREFIX if path.startswith(PREFIX) else TRAFFIC_PREFIX
        name, _, action = path.removeprefix(prefix).partition("/")
        actions = {
            (PREFIX, "load"): self.load,
            (PREFIX, "unload"): self.unload,
            (TRAFFIC_PREFIX, "traffic"): self.traffic,
        }
        handler = actions.get((prefix, action)) if path.startswith(prefix) else None
        if handler is None or not MODEL_NAME.fullmatch(name):
            return None
        if handler == self.traffic:
            shown = Endpoint(partial(self.show_traffic, name), Scope.READ)
            return {b"GET": shown, b"PUT": Endpoint(partial(handler, name), Scope.ADMIN)}
        return {b"POST": Endpoint(partial(handler, name), Scope.ADMIN)}

    def index(self, exchange: Exchange) -> None:
        """List what is served, and what is not, with the reason."""
        wanted = _decode(exchange.body or b"{}", _IndexBody)
        entries = [entry for entry in self._repository.index() if entry.state == "READY" or not wanted.ready]
        exchange.respond(json_response([asdict(entry) for entry in entries]))

    def load(self, name: str, exchange: Exchange) -> None:
        """Load a model, or its changes. Bundles come from the operator's disk, never with the request."""
        given = _decode(exchange.body or b"{}", dict[str, object]).get("parameters") or {}
        if not isinstance(given, dict) or any(key != "unload_dependents" for key in given):
            raise MalformedRequest(reason="a model is loaded as it is on disk; 'config' and files cannot be sent")
        self._do(self._repository.load(name), exchange)

    def unload(self, name: str, exchange: Exchange) -> None:
        """Take a model out of service."""
        self._do(self._repository.unload(name), exchange)

    def show_traffic(self, name: str, exchange: Exchange) -> None:
        """Tell who gets which version, and which version has lost its share and why."""
        exchange.respond(json_response(asdict(self._repository.traffic(name))))

    def traffic(self, name: str, exchange: Exchange) -> None:
        """Set labels, split, shadow and rollback."""
        self._do(self._repository.set_traffic(name, _decode(exchange.body, TrafficBody).traffic()), exchange)

    def _do(self, work: Coroutine[object, object, None], exchange: Exchange) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._respond, exchange))

    def _respond(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            exchange.respond(Response(status=200, body=b"{}"))
        elif isinstance(error, ForwardpassError):
            exchange.respond(error_response(error))
        else:
            log.error("a model could not be changed", exc_info=error)
            exchange.respond(message_response(500, "internal error"))


def _decode(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(reason=str(error)) from error
