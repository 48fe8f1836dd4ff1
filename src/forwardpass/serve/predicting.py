"""The friendly route: what the bundle's processor takes, or plain nested lists."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np

from forwardpass.core.protocols import Decoder, Encoder, StreamingDecoder
from forwardpass.core.strings import readable_lists
from forwardpass.core.tensors import Array, Signature
from forwardpass.errors import DeadlineExceeded, MalformedRequest, NotReady, Overloaded, RequestError
from forwardpass.protocol import decode_tensor
from forwardpass.serve.exchange import Exchange
from forwardpass.serve.forms import check_is_json, decode_fields, file_fields
from forwardpass.serve.request import Answer, Result
from forwardpass.serve.responses import error_response, json_response, message_response
from forwardpass.serve.rest import header_timeout_s
from forwardpass.serve.served import Served, ServedVersion
from forwardpass.serve.streaming import EventStream, events_response, wants_events

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

    def predict(self, model: Served, version: str | None, exchange: Exchange) -> None:
        """Answer an object of named fields, files, or plain tensors."""
        chosen = model.version(version)
        try:
            answer = self._answering(chosen.decoder, exchange)
            prediction = _Prediction(model, chosen, exchange, answer, _asked_s(exchange, chosen))
            encoder = chosen.encoder
            if encoder is not None:
                self._encode_later(prediction, encoder)
                return
            check_is_json(_header(exchange, b"content-type"))
            tensors = _decode_inputs(exchange.body, chosen.signature)
            num_rows = chosen.signature.validate(tensors)
        except RequestError as error:
            chosen.failed(error)
            raise
        _submit(prediction, tensors, num_rows)

    def end_streams(self) -> None:
        """Tell the readers of streams that theirs end here."""
        for stream in tuple(self._streams):
            stream.stop(NotReady(reason="it is stopping"))

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _answering(self, decoder: Decoder | None, exchange: Exchange) -> Answer:
        """Return what makes an answer of the outputs, in the form that the client accepts.

        Raises:
            NotAcceptable: it cannot be made.
            Overloaded: too many answers are being streamed.
        """
        are_available = isinstance(decoder, StreamingDecoder)
        if wants_events(_header(exchange, b"accept"), are_available=are_available):
            assert isinstance(decoder, StreamingDecoder), "events are available"
            if len(self._streams) >= MAX_STREAMS:
                raise Overloaded(retry_after_s=1.0, reason=f"{len(self._streams)} answers are being streamed")
            return partial(self._stream_later, decoder, exchange)
        if decoder is None:
            return partial(_answer_lists, exchange)
        return partial(self._decode_later, decoder, exchange)

    def _encode_later(self, prediction: _Prediction, encoder: Encoder) -> None:
        if self._num_processing >= MAX_PROCESSING:
            raise Overloaded(retry_after_s=1.0, reason=f"{self._num_processing} requests are being prepared")
        self._num_processing += 1
        prediction.version.hold()
        encoded = self._loop.run_in_executor(self._threads, _encode, encoder, prediction)
        encoded.add_done_callback(partial(self._on_encoded, prediction))

    def _on_encoded(self, prediction: _Prediction, encoded: asyncio.Future[dict[str, Array]]) -> None:
        self._num_processing -= 1
        prediction.version.release()
        exchange, version = prediction.exchange, prediction.version
        try:
            tensors = encoded.result()
            num_rows = version.signature.validate(tensors)
            prediction.check_time()
        except asyncio.CancelledError:
            _refuse(exchange, NotReady(reason="it is stopping"))
        except RequestError as error:
            if not exchange.is_abandoned:
                version.failed(error)
                _refuse(exchange, error)
        except Exception:
            log.exception("the processor failed on a request")
            exchange.respond(message_response(500, "the processor failed on this request"))
        else:
            if not exchange.is_abandoned:
                _submit(prediction, tensors, num_rows)

    def _decode_later(self, decoder: Decoder, exchange: Exchange, result: Mapping[str, Array] | RequestError) -> None:
        """Let the processor put the outputs into words; they are copied, since their memory is used again."""
        if isinstance(result, RequestError):
            exchange.respond(error_response(result))
            return
        outputs = {name: array.copy() for name, array in result.items()}
        decoded = self._loop.run_in_executor(self._threads, decoder.decode, outputs)
        decoded.add_done_callback(partial(_respond_decoded, exchange))

    def _stream_later(
        self, decoder: StreamingDecoder, exchange: Exchange, result: Mapping[str, Array] | RequestError
    ) -> None:
        """Let the processor put the outputs into words piece by piece, as the client takes them."""
        if isinstance(result, RequestError):
            exchange.respond(error_response(result))
            return
        outputs = {name: array.copy() for name, array in result.items()}
        stream = EventStream(partial(decoder.stream, outputs), self._threads)
        self._streams.add(stream)
        stream.on_end = partial(self._streams.discard, stream)
        exchange.respond(events_response(stream))


@dataclass(frozen=True, slots=True)
class _Prediction:
    """A request with the time that it has, of which a part may pass before it is read or while a processor has it."""

    model: Served
    version: ServedVersion
    exchange: Exchange
    answer: Answer
    timeout_s: float | None
    begun_s: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float | None:
        """How much of that time is left."""
        if self.timeout_s is None:
            return None
        return self.timeout_s - self.exchange.waited_s - (time.monotonic() - self.begun_s)

    def check_time(self) -> None:
        """Raise if the answer would come too late.

        Raises:
            DeadlineExceeded: the client's time is over.
        """
        if self.timeout_s is not None and (self.left_s or 0.0) <= 0:
            raise DeadlineExceeded(deadline_s=self.timeout_s)

    def on_answer(self, result: Result) -> None:
        """Answer; a deadline is told as it was set."""
        if isinstance(result, DeadlineExceeded) and self.timeout_s is not None:
            result = DeadlineExceeded(deadline_s=self.timeout_s)
        self.answer(result)


def _asked_s(exchange: Exchange, version: ServedVersion) -> float | None:
    """Return the client's deadline, or the model's own where a part of that has passed; None leaves it to the model.

    Raises:
        MalformedRequest: the header is not a positive whole number.
    """
    asked_s = header_timeout_s(exchange.headers)
    return version.timeout_s if asked_s is None and exchange.waited_s else asked_s


def _submit(prediction: _Prediction, tensors: dict[str, Array], num_rows: int) -> None:
    exchange = prediction.exchange
    try:
        exchange.on_abandoned = prediction.model.submit(
            prediction.version,
            tensors,
            num_rows,
            prediction.on_answer,
            timeout_s=prediction.left_s,
            trace=exchange.trace,
        )
    except RequestError as error:
        _refuse(exchange, error)


def _refuse(exchange: Exchange, error: RequestError) -> None:
    if exchange.trace is not None:
        exchange.trace.failed(error)
    exchange.respond(error_response(error))


def _answer_lists(exchange: Exchange, result: Mapping[str, Array] | RequestError) -> None:
    """Answer outputs that no processor puts into words."""
    if isinstance(result, RequestError):
        exchange.respond(error_response(result))
    else:
        exchange.respond(json_response({"outputs": {name: readable_lists(array) for name, array in result.items()}}))


def _encode(encoder: Encoder, prediction: _Prediction) -> dict[str, Array]:
    """Read the body and let the processor make tensors of it; a large form is too much work for the event loop.

    A request may have waited for its thread: no work is done for a client that has left, or whose time is over.
    """
    exchange = prediction.exchange
    if exchange.is_abandoned:
        raise NotReady(reason="the client has left")
    prediction.check_time()
    fields = decode_fields(exchange.body, _header(exchange, b"content-type"), file_fields(encoder))
    return encoder.encode(fields)


def _header(exchange: Exchange, name: bytes) -> str:
    return exchange.headers.get(name, b"").decode("latin-1")


class _Inputs(msgspec.Struct, forbid_unknown_fields=True):
    inputs: dict[str, msgspec.Raw]


def _decode_inputs(body: bytes, signature: Signature) -> dict[str, Array]:
    try:
        given = msgspec.json.decode(body, type=_Inputs).inputs
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        names = ", ".join(f'"{spec.name}": [[…]]' for spec in signature.inputs)
        hint = f'this model has no processor; send {{"inputs": {{{names}}}}}'
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
