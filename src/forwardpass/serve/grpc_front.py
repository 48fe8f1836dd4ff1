"""The gRPC front: the same models, the same queue and the same gate as over HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import grpc
import numpy as np

from forwardpass.core.tensors import Array, Signature
from forwardpass.core.version import VERSION
from forwardpass.errors import (
    AddressInUse,
    ForwardpassError,
    InvalidOption,
    MalformedRequest,
    NotFound,
    RequestError,
    TensorMismatch,
)
from forwardpass.protocol import NAMES, check_shape, decode_raw, encode_raw
from forwardpass.serve.auth import Gate, Scope
from forwardpass.serve.exposition import describe_statistics
from forwardpass.serve.grpc_schema import DATA_TYPES, KIND_CPU, message_class
from forwardpass.serve.oip import (
    InferCall,
    call_priority,
    call_timeout_s,
    check_tensor_parameters,
    spec_for,
    wanted_outputs,
)
from forwardpass.serve.repository import Repository
from forwardpass.serve.responses import grpc_code
from forwardpass.serve.rest import EXTENSIONS, describe_config, describe_model, shorter
from forwardpass.serve.served import Served, ServedVersion
from forwardpass.serve.settings import ServeSettings
from forwardpass.serve.tracing import Trace, Tracer

__all__ = ["GrpcFront"]

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
SERVING, NOT_SERVING = 1, 2
MAX_STREAMED = 64
"""Requests of one stream that may be open at once."""

_CONTENTS = {
    "bool": "bool_contents",
    "int8": "int_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "uint8": "uint_contents",
    "uint16": "uint_contents",
    "uint32": "uint_contents",
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    "object": "bytes_contents",
}
"""Where typed values are; FP16 has no such field and is always raw."""

log = logging.getLogger("forwardpass.serve")

Context: TypeAlias = Any
"""A `grpc.aio.ServicerContext`."""


class GrpcFront:
    """Answers the protocol's gRPC service and the standard health service."""

    def __init__(
        self,
        repository: Repository,
        gate: Gate,
        settings: ServeSettings,
        *,
        is_ready: Callable[[], bool],
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._repository = repository
        self._gate = gate
        self._settings = settings
        self._is_ready = is_ready
        limit = settings.max_body_bytes
        options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", settings.max_header_bytes),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.max_connections)
        self._server.add_generic_rpc_handlers(tuple(self._handlers()))
        self._is_started = False
        self.port = 0

    def bind(self) -> None:
        """Take the port, without answering anybody yet.

        Raises:
            AddressInUse: the port is taken.
        """
        host, port = self._settings.host, self._settings.grpc_port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = _credentials(self._settings)
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise AddressInUse(
                address=address, reason="gRPC cannot bind it", options="--host or --grpc-port"
            ) from error

    async def start(self) -> None:
        """Answer calls at the port that was taken."""
        self._is_started = True
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Accept no more calls, and answer those that are open within the grace time."""
        if not self._is_started:  # gRPC would keep its port
            await self.start()
        await self._server.stop(grace_s)

    def _handlers(self) -> list[grpc.GenericRpcHandler[Any, Any]]:
        methods = {name: self._unary(name, scope, answer) for name, scope, answer in self._methods()}
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=message_class("inference.ModelInferRequest").FromString,
            response_serializer=_serialise,
        )
        check = grpc.unary_unary_rpc_method_handler(
            self._check_health,
            request_deserializer=message_class("grpc.health.v1.HealthCheckRequest").FromString,
            response_serializer=_serialise,
        )
        return [
            grpc.method_handlers_generic_handler(SERVICE, methods),
            grpc.method_handlers_generic_handler(HEALTH, {"Check": check}),
        ]

    def _methods(self) -> list[tuple[str, Scope | None, Callable[[Any, Context], Awaitable[Any]]]]:
        return [
            ("ServerLive", None, self._live),
            ("ServerReady", None, self._ready),
            ("ModelReady", None, self._model_ready),
            ("ServerMetadata", None, self._server_metadata),
            ("ModelMetadata", Scope.READ, self._model_metadata),
            ("ModelInfer", Scope.INFER, self._infer),
            ("ModelConfig", Scope.READ, self._config),
            ("ModelStatistics", Scope.READ, self._statistics),
            ("RepositoryIndex", Scope.READ, self._index),
            ("RepositoryModelLoad", Scope.ADMIN, self._load),
            ("RepositoryModelUnload", Scope.ADMIN, self._unload),
        ]

    def _unary(
        self, name: str, scope: Scope | None, answer: Callable[[Any, Context], Awaitable[Any]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def handle(request: Any, context: Context) -> Any:
            try:
                if scope is not None:
                    self._gate.check(_headers(context), scope)
                return await answer(request, context)
            except ForwardpassError as error:
                code, reason = grpc_code(error), str(error)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception:
                log.exception("a call could not be handled")
                code, reason = "INTERNAL", "internal error"
            # gRPC keeps what `abort` raises in a circle until the collector runs, with all that can be reached from it:
            # not the request and, outside of the blocks above, not the error and the frames that it came through.
            del request
            return await _abort(context, code, reason)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=message_class(f"inference.{name}Request").FromString,
            response_serializer=_serialise,
        )

    # --- what the server says of itself

    async def _live(self, request: Any, context: Context) -> Any:
        return message_class("inference.ServerLiveResponse")(live=True)

    async def _ready(self, request: Any, context: Context) -> Any:
        return message_class("inference.ServerReadyResponse")(ready=self._is_ready())

    async def _check_health(self, request: Any, context: Context) -> Any:
        return message_class("grpc.health.v1.HealthCheckResponse")(status=SERVING if self._is_ready() else NOT_SERVING)

    async def _model_ready(self, request: Any, context: Context) -> Any:
        model = self._model(request.name)
        version = model.described(request.version or None)
        return message_class("inference.ModelReadyResponse")(ready=version.is_ready)

    async def _server_metadata(self, request: Any, context: Context) -> Any:
        answer = message_class("inference.ServerMetadataResponse")
        return answer(name="forwardpass", version=VERSION, extensions=EXTENSIONS)

    async def _model_metadata(self, request: Any, context: Context) -> Any:
        described = describe_model(self._model(request.name), request.version or None)
        del described["properties"]
        return message_class("inference.ModelMetadataResponse")(**described)

    async def _config(self, request: Any, context: Context) -> Any:
        described: dict[str, Any] = describe_config(self._model(request.name), request.version or None)
        for tensor in (*described["input"], *described["output"]):
            tensor["data_type"] = DATA_TYPES[tensor["data_type"].removeprefix("TYPE_")]
        for group in described["instance_group"]:
            group["kind"] = KIND_CPU
        return message_class("inference.ModelConfigResponse")(config=described)

    async def _statistics(self, request: Any, context: Context) -> Any:
        models = [self._model(request.name)] if request.name else list(self._repository.served.values())
        lines = [line for model in models for line in describe_statistics(model, request.version or None)]
        return message_class("inference.ModelStatisticsResponse")(model_stats=lines)

    # --- control

    async def _index(self, request: Any, context: Context) -> Any:
        entries = [entry for entry in self._repository.index() if entry.state == "READY" or not request.ready]
        lines = [
            {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
            for entry in entries
        ]
        return message_class("inference.RepositoryIndexResponse")(models=lines)

    async def _load(self, request: Any, context: Context) -> Any:
        if request.parameters:
            raise MalformedRequest(reason="a model is loaded as it is on disk; 'config' and files cannot be sent")
        await self._repository.load(request.model_name)
        return message_class("inference.RepositoryModelLoadResponse")()

    async def _unload(self, request: Any, context: Context) -> Any:
        await self._repository.unload(request.model_name)
        return message_class("inference.RepositoryModelUnloadResponse")()

    # --- inference

    async def _infer(self, request: Any, context: Context) -> Any:
        if self._tracer is None:
            return await self._run(request, context, None)
        trace = self._tracer.begin("infer", _headers(context), begun_s=time.monotonic())
        try:
            answer = await self._run(request, context, trace)
        except BaseException as error:
            if trace is not None and isinstance(error, ForwardpassError):
                trace.failed(error)
                trace.end(is_error=grpc_code(error) == "INTERNAL")
            elif trace is not None:
                trace.abandoned()
            raise
        if trace is not None:
            trace.end(is_error=False)
        return answer

    async def _run(self, request: Any, context: Context, trace: Trace | None) -> Any:
        model = self._model(request.model_name)
        version = model.version(request.model_version or None)
        try:
            call, is_raw = _decode(request, version.signature)
        except RequestError as error:
            version.failed(error)
            raise
        timeout_s = shorter(context.time_remaining(), call.timeout_s)
        # No name for what is awaited: an error in it knows this frame, and the two would be in a circle.
        return await _submit(model, version, call, timeout_s=timeout_s, trace=trace, is_raw=is_raw)

    async def _stream(self, requests: Any, context: Context) -> None:
        """Answer the requests of a stream as they are done; an error is an answer, too, and the stream goes on."""
        try:
            self._gate.check(_headers(context), Scope.INFER)
        except RequestError as error:
            await _abort(context, grpc_code(error), str(error))
        response = message_class("inference.ModelStreamInferResponse")
        places, writing = asyncio.Semaphore(MAX_STREAMED), asyncio.Lock()

        async def one(request: Any) -> None:
            try:
                answer = response(infer_response=await self._infer(request, context))
            except ForwardpassError as error:
                answer = response(error_message=str(error))
                answer.infer_response.id = request.id
            finally:
                places.release()
            async with writing:
                await context.write(answer)

        async with asyncio.TaskGroup() as group:
            async for request in requests:
                await places.acquire()
                group.create_task(one(request))

    def _model(self, name: str) -> Served:
        model = self._repository.find(name)
        if model is None:
            shown = name[:64] if name.isprintable() else ""
            raise NotFound(what=f"model '{shown}'", available=tuple(self._repository.served))
        return model


def _submit(
    model: Served,
    version: ServedVersion,
    call: InferCall,
    *,
    timeout_s: float | None,
    trace: Trace | None,
    is_raw: bool,
) -> asyncio.Future[Any]:
    """Queue a call and return its answer to come; whoever cancels that gives the call up.

    Raises:
        RequestError: it is refused.
    """
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answer(result: Mapping[str, Array] | RequestError) -> None:
        if done.done():
            return
        if isinstance(result, RequestError):
            done.set_exception(result)
        else:
            done.set_result(_encode(result, call, version, is_raw=is_raw))

    give_up = model.submit(
        version, call.tensors, call.num_rows, answer, timeout_s=timeout_s, priority=call.priority, trace=trace
    )
    done.add_done_callback(lambda ended: give_up() if ended.cancelled() else None)
    return done


def _decode(request: Any, signature: Signature) -> tuple[InferCall, bool]:
    """Decode and check a request; return also whether its tensors are raw."""
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise MalformedRequest(reason=f"there are {len(request.inputs)} inputs and {len(raw)} raw contents")
    tensors: dict[str, Array] = {}
    for number, given in enumerate(request.inputs):
        if given.name in tensors:
            raise TensorMismatch(tensor=given.name, reason="is given twice", expected="each input once")
        if raw and given.HasField("contents"):
            raise TensorMismatch(tensor=given.name, reason="has contents twice", expected="raw or typed ones")
        check_tensor_parameters("input", given.name, given.parameters)
        spec = spec_for(given.name, given.datatype, signature)
        if spec is None:
            tensors[given.name] = np.zeros(0)  # Signature.validate says so, with the names there are
        elif raw:
            tensors[given.name] = decode_raw(raw[number], given.shape, spec)
        else:
            tensors[given.name] = _typed(given, spec.dtype, check_shape(given.shape, spec), spec)
    for output in request.outputs:
        check_tensor_parameters("output", output.name, output.parameters)
    parameters = {name: _value(value) for name, value in request.parameters.items()}
    call = InferCall(
        tensors=tensors,
        num_rows=signature.validate(tensors),
        id=request.id or None,
        timeout_s=call_timeout_s(parameters),
        priority=call_priority(parameters),
        outputs=wanted_outputs([output.name for output in request.outputs], signature),
    )
    return call, bool(raw)


def _typed(given: Any, dtype: str, num_elements: int, spec: Any) -> Array:
    field = _CONTENTS.get(dtype)
    if field is None:
        raise TensorMismatch(tensor=given.name, reason="is FP16 without raw contents", expected="raw contents")
    values = getattr(given.contents, field)
    if len(values) != num_elements:
        reason = f"has {len(values)} elements in {field}"
        raise TensorMismatch(tensor=given.name, reason=reason, expected=f"{num_elements} for its shape")
    try:
        array = np.array(values, dtype=dtype)
    except OverflowError as error:
        reason = f"has a value beyond {NAMES[dtype]}"
        raise TensorMismatch(tensor=given.name, reason=reason, expected=str(spec)) from error
    return array.reshape(tuple(given.shape))


def _value(parameter: Any) -> object:
    chosen = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, chosen) if chosen else None


def _encode(outputs: Mapping[str, Array], call: InferCall, version: ServedVersion, *, is_raw: bool) -> Any:
    """Answer as the client asked: raw where its inputs were raw."""
    answer = message_class("inference.ModelInferResponse")(
        model_name=version.model, model_version=version.number, id=call.id or ""
    )
    wanted = call.outputs or tuple(outputs)
    must_be_raw = is_raw or any(outputs[name].dtype.name not in _CONTENTS for name in wanted)
    for name in wanted:
        array = outputs[name]
        dtype = array.dtype.name
        tensor = answer.outputs.add(name=name, datatype=NAMES[dtype], shape=array.shape)
        if must_be_raw:
            answer.raw_output_contents.append(encode_raw(array))
        else:
            getattr(tensor.contents, _CONTENTS[dtype]).extend(array.ravel().tolist())
    return answer


def _serialise(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _headers(context: Context) -> dict[bytes, bytes]:
    metadata = context.invocation_metadata() or ()
    return {name.lower().encode(): value if isinstance(value, bytes) else value.encode() for name, value in metadata}


async def _abort(context: Context, code: str, reason: str) -> NoReturn:
    await context.abort(getattr(grpc.StatusCode, code), reason)
    raise AssertionError("abort raises")


def _credentials(settings: ServeSettings) -> grpc.ServerCredentials | None:
    if settings.certificate is None:
        return None
    try:
        certificate = settings.certificate.read_bytes()
        key = (settings.private_key or settings.certificate).read_bytes()
        authority = _read(settings.client_ca)
        return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=authority is not None)
    except (OSError, ValueError) as error:
        expected = "PEM files of a certificate and its key"
        raise InvalidOption(option="--tls-cert", value=str(settings.certificate), expected=expected) from error


def _read(path: Path | None) -> bytes | None:
    return path.read_bytes() if path is not None else None
