"""Which route answers a request, and who may use it: the one gate that every front passes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from forwardpass.core.version import VERSION
from forwardpass.errors import ForwardpassError, NotFound, Overloaded, RequestError
from forwardpass.serve.auth import Gate, Scope
from forwardpass.serve.compression import decompress
from forwardpass.serve.control import ControlRoutes
from forwardpass.serve.documents import DocumentRoutes
from forwardpass.serve.exchange import Exchange, Response
from forwardpass.serve.exposition import MetricsRoutes
from forwardpass.serve.predicting import PredictRoutes
from forwardpass.serve.repository import Repository
from forwardpass.serve.responses import error_response, json_response, message_response, not_allowed
from forwardpass.serve.rest import EXTENSIONS, InferRoutes, header_timeout_s
from forwardpass.serve.served import Served
from forwardpass.serve.tracing import Tracer

__all__ = ["Application", "Endpoint"]

MAX_WAITED_SHARE = 0.5
"""Of its time: a request that has waited longer to be read is refused unread, which leaves time for those behind it."""
UNREAD = Overloaded(retry_after_s=1.0, reason="requests come faster than they can be read")
TOO_BUSY = error_response(UNREAD)

log = logging.getLogger("forwardpass.serve")

Handler = Callable[[Exchange], None]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers a method of a route, and what somebody must be allowed to do to use it; None for anybody."""

    handler: Handler
    scope: Scope | None
    is_too_late: Callable[[Exchange], bool] | None = None
    """Whether a request has waited so long to be read that its answer is of no use."""


class Application:
    """Answers exchanges for all models. Everything runs on the event loop but processors, which have threads."""

    def __init__(
        self,
        repository: Repository,
        gate: Gate,
        *,
        max_body_bytes: int,
        is_draining: Callable[[], bool],
        tracer: Tracer | None = None,
    ) -> None:
        self._repository = repository
        self._gate = gate
        self._max_body_bytes = max_body_bytes
        self._is_draining = is_draining
        self._tracer = tracer
        self._infer = InferRoutes()
        self._predict = PredictRoutes()
        self._control = ControlRoutes(repository)
        self._metrics = MetricsRoutes(repository, is_ready=lambda: self.is_ready)
        self._documents = DocumentRoutes(repository)
        self._routes: Mapping[str, Mapping[bytes, Endpoint]] = {}
        self._by_target: Mapping[tuple[bytes, bytes], Endpoint] = {}
        self.rebuild()

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered: every model is there, and the server is not stopping."""
        return not self._is_draining() and self._repository.is_ready

    @property
    def routes(self) -> Mapping[str, Mapping[bytes, Endpoint]]:
        """Every path that is answered, by method."""
        return self._routes

    def rebuild(self) -> None:
        """Make the table of routes again after models have come or gone."""
        routes: dict[str, dict[bytes, Endpoint]] = {
            "/": {b"GET": Endpoint(self._index, Scope.READ)},
            "/v2": {b"GET": Endpoint(self._server_metadata, None)},
            "/v2/health/live": {b"GET": Endpoint(partial(self._state, "live", lambda: True), None)},
            "/v2/health/ready": {b"GET": Endpoint(partial(self._state, "ready", lambda: self.is_ready), None)},
            "/v2/models/stats": {b"GET": Endpoint(self._metrics.all_statistics, Scope.READ)},
            "/v2/repository/index": {b"POST": Endpoint(self._control.index, Scope.READ)},
            "/metrics": {b"GET": Endpoint(self._metrics.prometheus, Scope.READ)},
            "/openapi.json": {b"GET": Endpoint(self._documents.openapi, Scope.READ)},
            "/docs": {b"GET": Endpoint(self._documents.page, Scope.READ)},
        }
        for model in self._repository.served.values():
            routes |= self._model_routes(model)
        self._routes = routes
        self._by_target = {
            (method, path.encode()): endpoint
            for path, methods in routes.items()
            for method, endpoint in methods.items()
        }

    def _model_routes(self, model: Served) -> dict[str, dict[bytes, Endpoint]]:
        routes: dict[str, dict[bytes, Endpoint]] = {}
        is_too_late = partial(_is_too_late, model)
        for version in (None, *model.names):
            suffix = f"/versions/{version}" if version is not None else ""
            base, friendly = f"/v2/models/{model.name}{suffix}", f"/v1/models/{model.name}{suffix}"
            routes |= {
                base: {b"GET": Endpoint(partial(self._infer.metadata, model, version), Scope.READ)},
                f"{base}/ready": {b"GET": Endpoint(partial(self._model_ready, model, version), None)},
                f"{base}/config": {b"GET": Endpoint(partial(self._infer.config, model, version), Scope.READ)},
                f"{base}/stats": {b"GET": Endpoint(partial(self._metrics.statistics, model, version), Scope.READ)},
                f"{base}/infer": {
                    b"POST": Endpoint(partial(self._infer.infer, model, version), Scope.INFER, is_too_late)
                },
                f"{friendly}/predict": {
                    b"POST": Endpoint(partial(self._predict.predict, model, version), Scope.INFER, is_too_late)
                },
            }
        return routes

    def admit(self, exchange: Exchange) -> Response | None:
        """Decide after the headers whether the body is read at all; return the refusal if not."""
        try:
            endpoint = self._find(exchange)
        except NotFound:
            return self._refusal(exchange, None)  # handle says so, and names what there is: not to everybody
        if isinstance(endpoint, Response) or endpoint.scope is None:
            return None
        refusal = self._refusal(exchange, endpoint.scope)
        if refusal is not None:
            return refusal
        if exchange.waited_s and endpoint.is_too_late is not None and endpoint.is_too_late(exchange):
            return TOO_BUSY
        return None

    def _refusal(self, exchange: Exchange, scope: Scope | None) -> Response | None:
        try:
            self._gate.check(exchange.headers, scope)
        except RequestError as error:
            return error_response(error)
        return None

    def grant_s(self, exchange: Exchange) -> float:
        """Return for how many seconds inferences with the key of an admitted exchange may pass unchecked."""
        endpoint = self._by_target.get((exchange.method, exchange.target))
        if endpoint is None or endpoint.scope is not Scope.INFER:
            return 0.0
        return self._gate.grant_s(exchange.headers, Scope.INFER)

    def handle(self, exchange: Exchange) -> None:
        """Answer an exchange that was admitted, now or later; whatever goes wrong becomes a response."""
        if b"content-encoding" in exchange.headers and exchange.body:
            self._decompress_first(exchange)
            return
        try:
            endpoint = self._find(exchange)
            if isinstance(endpoint, Response):
                exchange.respond(endpoint)
                return
            if self._tracer is not None and endpoint.scope is Scope.INFER:
                exchange.trace = self._tracer.begin("infer", exchange.headers, begun_s=exchange.begun_s)
            endpoint.handler(exchange)
        except ForwardpassError as error:
            if exchange.trace is not None:
                exchange.trace.failed(error)
            exchange.respond(error_response(error))
        except Exception:
            log.exception("a request could not be handled")
            exchange.respond(message_response(500, "internal error"))

    def end_streams(self) -> None:
        """Tell the readers of answers that come piece by piece that no more will come."""
        self._predict.end_streams()

    def close(self) -> None:
        """Let the threads of the processors go."""
        self._predict.close()

    def _find(self, exchange: Exchange) -> Endpoint | Response:
        if (known := self._by_target.get((exchange.method, exchange.target))) is not None:
            return known
        path = exchange.target.partition(b"?")[0].decode("latin-1")
        methods = self._routes.get(path) or self._routes.get(path.rstrip("/")) or self._control.endpoints(path)
        if methods is None:
            raise _nothing_at(path, self._repository.served)
        endpoint = methods.get(b"GET" if exchange.is_head else exchange.method)
        return endpoint if endpoint is not None else not_allowed(tuple(methods))

    def _decompress_first(self, exchange: Exchange) -> None:
        encoding = exchange.headers.pop(b"content-encoding").decode("latin-1").lower().strip()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(None, decompress, exchange.body, encoding, self._max_body_bytes)
        work.add_done_callback(partial(self._on_decompressed, exchange))

    def _on_decompressed(self, exchange: Exchange, work: asyncio.Future[bytes]) -> None:
        try:
            exchange.body = work.result()
        except RequestError as error:
            exchange.respond(error_response(error))
        else:
            if not exchange.is_abandoned:
                self.handle(exchange)

    # --- what the server says of itself

    def _index(self, exchange: Exchange) -> None:
        models = sorted(self._repository.served)
        exchange.respond(json_response({"name": "forwardpass", "models": models, "routes": sorted(self._routes)}))

    def _server_metadata(self, exchange: Exchange) -> None:
        exchange.respond(json_response({"name": "forwardpass", "version": VERSION, "extensions": EXTENSIONS}))

    def _state(self, word: str, is_so: Callable[[], bool], exchange: Exchange) -> None:
        exchange.respond(json_response({word: is_so()}, status=200 if is_so() else 503))

    def _model_ready(self, model: Served, version: str | None, exchange: Exchange) -> None:
        chosen = model.described(version)
        ready = not self._is_draining() and chosen.is_ready
        exchange.respond(json_response({"name": model.name, "ready": ready}, status=200 if ready else 503))


def _is_too_late(model: Served, exchange: Exchange) -> bool:
    """Tell whether a request can hardly be answered in time; refusing it now costs a fraction of reading it."""
    timeout_s = model.default.timeout_s
    with contextlib.suppress(RequestError):  # the handler says what is wrong with the header
        timeout_s = header_timeout_s(exchange.headers) or timeout_s
    if exchange.waited_s < MAX_WAITED_SHARE * timeout_s:
        return False
    model.default.metrics.finished(UNREAD, exchange.waited_s, 0)
    return True


def _nothing_at(path: str, models: Mapping[str, Served]) -> NotFound:
    """Say what there is in place of a path: other models, versions or routes.

    The routes of inference are told to those, too, who ask as KServe v1 and TensorFlow Serving have it (`:predict`).
    """
    shown = path if path.isprintable() and len(path) <= 200 else "this path"
    parts = path.split("/")
    if not path.startswith(("/v2/models/", "/v1/models/")):
        return NotFound(what=f"route '{shown}'", available=("/", "/docs"))
    name = parts[3].partition(":")[0]
    model = models.get(name)
    if model is None:
        wanted = f"model '{name[:64]}'" if name.isprintable() else "such model"
        return NotFound(what=wanted, available=tuple(models))
    if parts[4:5] == ["versions"] and len(parts) > 5:
        version = parts[5].partition(":")[0]
        if version not in model.names and version.isprintable():
            return NotFound(what=f"version '{version[:64]}' of '{model.name}'", available=model.names)
    return NotFound(
        what=f"route '{shown}'", available=(f"/v2/models/{model.name}/infer", f"/v1/models/{model.name}/predict")
    )
