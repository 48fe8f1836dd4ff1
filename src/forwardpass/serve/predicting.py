"""The friendly route: what the bundle's processor takes, or plain nested lists."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
import numpy as np

from forwardpass.core.protocols import Processor, StreamingProcessor
from forwardpass.core.tensors import Array, Signature
from forwardpass.errors import MalformedRequest, NotReady, Overloaded, RequestError
from forwardpass.protocol import decode_tensor
from forwardpass.serve.dispatching import Answer
from forwardpass.serve.forms import check_is_json, decode_fields, file_fields
from forwardpass.serve.http import Exchange
from forwardpass.serve.models import Model
from forwardpass.serve.responses import error_response, json_response, message_response
from forwardpass.serve.rest import header_timeout_s
from forwardpass.serve.streaming import EventStream, events_response, wants_events
from forwardpass.serve.versions import ModelVersion

__all__ = ["PredictRoutes"]

NUM_THREADS = 2
MAX_PROCESSING = 256
"""Requests that may be with a processor at once; further ones are refused."""

MAX_STREAMS = 256
"""Answers that may be sent piece by piece at once."""

log = logging.getLogger("forwardpass.serve")


class PredictRoutes:
    """`/v1/models/{model}/predict`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="processor")
        self._num_processing = 0
        self._streams: set[EventStream] = set()

    def predict(self, model: Model, version: str | None, exchange: Exchange) -> None:
        """Answer an object of named fields."""
        chosen = model.version(version)
        try:
            if chosen.processor is None:
                self._predict_tensors(model, chosen, exchange)
            else:
                self._process(model, chosen, chosen.processor, exchange)
        except RequestError as error:
            chosen.failed(error)
            raise

    def end_streams(self) -> None:
        """Tell the readers of streams that theirs end here."""
        for stream in tuple(self._streams):
            stream.stop(NotReady(reason="it is stopping"))

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _predict_tensors(self, model: Model, version: ModelVersion, exchange: Exchange) -> None:
        """Answer `{"inputs": {name: nested list}}` for a model without a processor."""
        check_is_json(_header(exchange, b"content-type"))
        wants_events(_header(exchange, b"accept"), are_available=False)
        tensors = _decode_inputs(exchange.body, version.signature)
        num_rows = version.signature.validate(tensors)

        def answer(result: Mapping[str, Array] | RequestError) -> None:
            if isinstance(result, RequestError):
                exchange.respond(error_response(result))
            else:
                outputs = {name: array.tolist() for name, array in result.items()}
                exchange.respond(json_response({"outputs": outputs}))

        timeout_s = header_timeout_s(exchange.headers)
        exchange.on_abandoned = model.submit(
            version, tensors, num_rows, answer, timeout_s=timeout_s, trace=exchange.trace
        )

    def _process(self, model: Model, version: ModelVersion, processor: Processor, exchange: Exchange) -> None:
        timeout_s = header_timeout_s(exchange.headers)
        accept = _header(exchange, b"accept")
        events = wants_events(accept, are_available=isinstance(processor, StreamingProcessor))
        if events and len(self._streams) >= MAX_STREAMS:
            raise Overloaded(retry_after_s=1.0, reason=f"{len(self._streams)} answers are being streamed")
        if self._num_processing >= MAX_PROCESSING:
            raise Overloaded(retry_after_s=1.0, reason=f"{self._num_processing} requests are being prepared")
        self._num_processing += 1
        version.num_open += 1
        prepared = self._loop.run_in_executor(self._threads, _encode, processor, exchange)
        answer = partial(self._stream_later if events else self._decode_later, version, exchange)
        prepared.add_done_callback(partial(self._on_prepared, model, version, exchange, answer, timeout_s))

    def _on_prepared(
        self,
        model: Model,
        version: ModelVersion,
        exchange: Exchange,
        answer: Answer,
        timeout_s: float | None,
        prepared: asyncio.Future[dict[str, Array]],
    ) -> None:
        self._num_processing -= 1
        version.num_open -= 1
        try:
            tensors = prepared.result()
            if exchange.is_abandoned:
                return
            num_rows = version.signature.validate(tensors)
            exchange.on_abandoned = model.submit(
                version, tensors, num_rows, answer, timeout_s=timeout_s, trace=exchange.trace
            )
        except asyncio.CancelledError:
            exchange.respond(error_response(NotReady(reason="it is stopping")))
        except RequestError as error:
            version.failed(error)
            exchange.respond(error_response(error))
        except Exception:
            log.exception("the processor failed on a request")
            exchange.respond(message_response(500, "the processor failed on this request"))

    def _decode_later(
        self, version: ModelVersion, exchange: Exchange, result: Mapping[str, Array] | RequestError
    ) -> None:
        """Let the processor put the outputs into words; they are copied, since their memory is used again."""
        if isinstance(result, RequestError):
            exchange.respond(error_response(result))
            return
        assert version.processor is not None, "only a processor's requests come here"
        outputs = {name: array.copy() for name, array in result.items()}
        decoded = self._loop.run_in_executor(self._threads, version.processor.decode, outputs)
        decoded.add_done_callback(partial(_respond_decoded, exchange))

    def _stream_later(
        self, version: ModelVersion, exchange: Exchange, result: Mapping[str, Array] | RequestError
    ) -> None:
        """Let the processor put the outputs into words piece by piece, as the client takes them."""
        if isinstance(result, RequestError):
            exchange.respond(error_response(result))
            return
        assert isinstance(version.processor, StreamingProcessor), "only requests of such a processor come here"
        outputs = {name: array.copy() for name, array in result.items()}
        stream = EventStream(partial(version.processor.stream, outputs), self._threads)
        self._streams.add(stream)
        stream.on_end = partial(self._streams.discard, stream)
        exchange.respond(events_response(stream))


def _encode(processor: Processor, exchange: Exchange) -> dict[str, Array]:
    """Read the body and let the processor make tensors of it; a large form is too much work for the event loop."""
    fields = decode_fields(exchange.body, _header(exchange, b"content-type"), file_fields(processor))
    return processor.encode(fields)


def _header(exchange: Exchange, name: bytes) -> str:
    return exchange.headers.get(name, b"").decode("latin-1")


class _Inputs(msgspec.Struct, forbid_unknown_fields=True):
    inputs: dict[str, msgspec.Raw]


def _decode_inputs(body: bytes, signature: Signature) -> dict[str, Array]:
    try:
        given = msgspec.json.decode(body, type=_Inputs).inputs
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = 'this model has no processor; send {"inputs": {"name": [[…]]}}'
        raise MalformedRequest(reason=f"{error}; {hint}") from error
    specs = {spec.name: spec for spec in signature.inputs}
    tensors: dict[str, Array] = {}
    for name, raw in given.items():
        if name not in specs:
            tensors[name] = np.zeros(0)  # Signature.validate says so, with the names there are
            continue
        tensors[name] = decode_tensor(raw, _nested_shape(_decode_any(raw)), specs[name])
    return tensors


def _decode_any(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except RecursionError as error:
        raise MalformedRequest(reason="it is nested too deeply") from error


def _nested_shape(value: object) -> tuple[int, ...]:
    """Return the shape of nested lists, judged by the first element of each."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _respond_decoded(exchange: Exchange, decoded: asyncio.Future[Mapping[str, object]]) -> None:
    try:
        exchange.respond(json_response(decoded.result()))
    except asyncio.CancelledError:
        exchange.respond(error_response(NotReady(reason="it is stopping")))
    except Exception:
        log.exception("the processor failed on an answer")
        exchange.respond(message_response(500, "the processor failed on this answer"))
