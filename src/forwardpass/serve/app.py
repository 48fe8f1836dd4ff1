"""The routes of one served model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec
import numpy as np

from forwardpass.bundle import BundledVariant
from forwardpass.core.protocols import Processor
from forwardpass.core.tensors import Array, Signature
from forwardpass.core.version import VERSION
from forwardpass.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    InputRejected,
    MalformedRequest,
    NotFound,
    NotReady,
    Overloaded,
    RequestError,
    TensorMismatch,
    WorkerLost,
)
from forwardpass.serve.dispatching import Dispatcher, Request
from forwardpass.serve.http import Exchange, Response
from forwardpass.serve.oip import ResponseWriter, decode_infer, decode_tensor, describe_tensors

__all__ = ["Application"]

STATUSES: tuple[tuple[type[RequestError], int], ...] = (
    (MalformedRequest, 400),
    (TensorMismatch, 400),
    (InputRejected, 400),
    (NotFound, 404),
    (BodyTooLarge, 413),
    (Overloaded, 429),
    (NotReady, 503),
    (WorkerLost, 503),
    (DeadlineExceeded, 504),
)
"""The one place where an error becomes an HTTP status."""

MODEL_VERSION = "1"
TIMEOUT_HEADER = b"x-request-timeout-ms"
MAX_TIMEOUT_DIGITS = 9
MAX_PROCESSING = 256
"""Requests that may be with the processor at once; further ones are refused."""

log = logging.getLogger("forwardpass.serve")
_encode = msgspec.json.Encoder().encode


class Application:
    """Answers exchanges for one model. Everything runs on the event loop but the processor, which has threads."""

    def __init__(
        self,
        *,
        name: str,
        signature: Signature,
        variant: BundledVariant,
        processor: Processor | None,
        dispatcher: Dispatcher,
        timeout_s: float,
        is_ready: Callable[[], bool],
    ) -> None:
        self._name = name
        self._signature = signature
        self._variant = variant
        self._processor = processor
        self._dispatcher = dispatcher
        self._timeout_s = timeout_s
        self._is_ready = is_ready
        self._writer = ResponseWriter(name, MODEL_VERSION)
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="processor")
        self._num_processing = 0
        model = f"/v2/models/{name}"
        self._routes: dict[str, dict[bytes, Callable[[Exchange], None]]] = {
            "/": {b"GET": self._index},
            "/v2": {b"GET": self._server_metadata},
            "/v2/health/live": {b"GET": partial(self._state, "live", lambda: True)},
            "/v2/health/ready": {b"GET": partial(self._state, "ready", is_ready)},
            f"/v1/models/{name}/predict": {b"POST": self._predict},
        }
        for base in (model, f"{model}/versions/{MODEL_VERSION}"):
            self._routes[base] = {b"GET": self._model_metadata}
            self._routes[f"{base}/ready"] = {b"GET": self._model_ready}
            self._routes[f"{base}/infer"] = {b"POST": self._infer}

    def handle(self, exchange: Exchange) -> None:
        """Answer an exchange, now or later; whatever goes wrong becomes a response."""
        try:
            self._route(exchange)(exchange)
        except RequestError as error:
            exchange.respond(_error_response(error))
        except Exception:
            log.exception("a request could not be handled")
            exchange.respond(_error(500, "internal error"))

    def close(self) -> None:
        """Let the processor's threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _route(self, exchange: Exchange) -> Callable[[Exchange], None]:
        path = exchange.target.partition(b"?")[0].decode("latin-1")
        methods = self._routes.get(path) or self._routes.get(path.rstrip("/"))
        if methods is None:
            raise _nothing_at(path, self._name)
        method = b"GET" if exchange.is_head else exchange.method
        if method not in methods:
            return partial(_not_allowed, tuple(methods))
        return methods[method]

    # --- what the server says of itself

    def _index(self, exchange: Exchange) -> None:
        exchange.respond(_json({"name": "forwardpass", "model": self._name, "routes": sorted(self._routes)}))

    def _server_metadata(self, exchange: Exchange) -> None:
        exchange.respond(_json({"name": "forwardpass", "version": VERSION, "extensions": ["schedule_policy"]}))

    def _state(self, word: str, is_so: Callable[[], bool], exchange: Exchange) -> None:
        exchange.respond(_json({word: is_so()}, status=200 if is_so() else 503))

    def _model_ready(self, exchange: Exchange) -> None:
        ready = self._is_ready()
        exchange.respond(_json({"name": self._name, "ready": ready}, status=200 if ready else 503))

    def _model_metadata(self, exchange: Exchange) -> None:
        exchange.respond(
            _json(
                {
                    "name": self._name,
                    "versions": [MODEL_VERSION],
                    "platform": f"{self._variant.format.value}_{self._variant.format.value}v1",
                    "inputs": describe_tensors(self._signature.inputs),
                    "outputs": describe_tensors(self._signature.outputs),
                    "properties": {"variant": self._variant.name, "precision": self._variant.precision.value},
                }
            )
        )

    # --- inference

    def _infer(self, exchange: Exchange) -> None:
        call = decode_infer(exchange.body, self._signature)

        def answer(result: dict[str, Array] | RequestError) -> None:
            if isinstance(result, RequestError):
                exchange.respond(_error_response(result))
            else:
                exchange.respond(Response(status=200, body=self._writer.write(result, call)))

        self._submit(exchange, call.tensors, call.num_rows, answer, call.timeout_s)

    def _predict(self, exchange: Exchange) -> None:
        fields = _decode_object(exchange.body)
        if self._processor is None:
            self._predict_tensors(exchange, exchange.body)
            return
        if self._num_processing >= MAX_PROCESSING:
            raise Overloaded(retry_after_s=1.0, reason=f"{self._num_processing} requests are being prepared")
        self._num_processing += 1
        prepared = self._loop.run_in_executor(self._threads, self._processor.encode, fields)
        prepared.add_done_callback(partial(self._on_prepared, exchange))

    def _on_prepared(self, exchange: Exchange, prepared: asyncio.Future[dict[str, Array]]) -> None:
        self._num_processing -= 1
        try:
            tensors = prepared.result()
            num_rows = self._signature.validate(tensors)
            self._submit(exchange, tensors, num_rows, partial(self._decode_later, exchange))
        except asyncio.CancelledError:
            exchange.respond(_error_response(NotReady(reason="it is stopping")))
        except RequestError as error:
            exchange.respond(_error_response(error))
        except Exception:
            log.exception("the processor failed on a request")
            exchange.respond(_error(500, "the processor failed on this request"))

    def _decode_later(self, exchange: Exchange, result: dict[str, Array] | RequestError) -> None:
        """Let the processor put the outputs into words; they are copied, since their memory is used again."""
        if isinstance(result, RequestError):
            exchange.respond(_error_response(result))
            return
        assert self._processor is not None, "only a processor's requests come here"
        outputs = {name: array.copy() for name, array in result.items()}
        decoded = self._loop.run_in_executor(self._threads, self._processor.decode, outputs)
        decoded.add_done_callback(partial(_respond_decoded, exchange))

    def _predict_tensors(self, exchange: Exchange, body: bytes) -> None:
        """Answer `{"inputs": {name: nested list}}` for a model without a processor."""
        tensors = _decode_inputs(body, self._signature)
        num_rows = self._signature.validate(tensors)

        def answer(result: dict[str, Array] | RequestError) -> None:
            if isinstance(result, RequestError):
                exchange.respond(_error_response(result))
            else:
                exchange.respond(_json({"outputs": {name: array.tolist() for name, array in result.items()}}))

        self._submit(exchange, tensors, num_rows, answer)

    def _submit(
        self,
        exchange: Exchange,
        tensors: dict[str, Array],
        num_rows: int,
        answer: Callable[[dict[str, Array] | RequestError], None],
        timeout_s: float | None = None,
    ) -> None:
        if exchange.is_abandoned:
            return
        timeout = self._timeout_s if timeout_s is None else timeout_s
        if (header_s := _header_timeout(exchange)) is not None:
            timeout = header_s if timeout_s is None else min(header_s, timeout_s)
        request = Request(
            num_rows=num_rows,
            shape_key=self._signature.shape_key(tensors),
            deadline_s=self._loop.time() + timeout,
            tensors=tensors,
            answer=answer,
            timeout_s=timeout,
        )
        exchange.on_abandoned = partial(setattr, request, "is_abandoned", True)
        self._dispatcher.submit(request)


def _header_timeout(exchange: Exchange) -> float | None:
    text = exchange.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    if not text.isdigit() or len(text) > MAX_TIMEOUT_DIGITS or int(text) == 0:
        raise MalformedRequest(reason="the header X-Request-Timeout-Ms must be a positive number of milliseconds")
    return int(text) / 1e3


def _decode_object(body: bytes) -> dict[str, object]:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRequest(reason=str(error)) from error
    except RecursionError as error:
        raise MalformedRequest(reason="it is nested too deeply") from error
    if not isinstance(fields, dict):
        raise MalformedRequest(reason="the body must be a JSON object")
    return fields


class _Inputs(msgspec.Struct, forbid_unknown_fields=True):
    inputs: dict[str, msgspec.Raw]


def _decode_inputs(body: bytes, signature: Signature) -> dict[str, Array]:
    try:
        given = msgspec.json.decode(body, type=_Inputs).inputs
    except msgspec.DecodeError as error:
        hint = 'this model has no processor; send {"inputs": {"name": [[…]]}}'
        raise MalformedRequest(reason=f"{error}; {hint}") from error
    specs = {spec.name: spec for spec in signature.inputs}
    tensors = {}
    for name, raw in given.items():
        if name not in specs:
            tensors[name] = np.zeros(0)  # Signature.validate says so, with the names there are
            continue
        tensors[name] = decode_tensor(raw, _nested_shape(msgspec.json.decode(raw)), specs[name])
    return tensors


def _nested_shape(value: object) -> tuple[int, ...]:
    """Return the shape of nested lists, judged by the first element of each."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _respond_decoded(exchange: Exchange, decoded: asyncio.Future[Mapping[str, object]]) -> None:
    try:
        exchange.respond(_json(decoded.result()))
    except asyncio.CancelledError:
        exchange.respond(_error_response(NotReady(reason="it is stopping")))
    except Exception:
        log.exception("the processor failed on an answer")
        exchange.respond(_error(500, "the processor failed on this answer"))


def _nothing_at(path: str, model: str) -> NotFound:
    shown = path if path.isprintable() and len(path) <= 200 else "this path"
    if path.startswith(("/v2/models/", "/v1/models/")):
        wanted = path.split("/")[3]
        if wanted != model:
            return NotFound(what=f"model '{wanted[:64]}'" if wanted.isprintable() else "such model", available=(model,))
    return NotFound(what=f"route '{shown}'")


def _not_allowed(methods: tuple[bytes, ...], exchange: Exchange) -> None:
    allowed = ", ".join("GET, HEAD" if method == b"GET" else method.decode() for method in methods)
    body = _encode({"error": f"This route takes {allowed}."})
    exchange.respond(Response(status=405, body=body, headers=(("allow", allowed),)))


def _json(document: object, *, status: int = 200) -> Response:
    return Response(status=status, body=_encode(document))


def _error(status: int, sentence: str) -> Response:
    return Response(status=status, body=_encode({"error": sentence}))


def _error_response(error: RequestError) -> Response:
    status = next(status for kind, status in STATUSES if isinstance(error, kind))
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, Overloaded):
        headers = (("retry-after", str(max(1, round(error.retry_after_s)))),)
    elif isinstance(error, NotReady | WorkerLost):
        headers = (("retry-after", "1"),)
    return Response(status=status, body=_encode({"error": str(error)}), headers=headers)
