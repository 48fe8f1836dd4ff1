"""What can be asked of a server: each operation is a request, and what becomes of its answer. Nothing is sent here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from forwardpass.client.documents import Index, ModelMetadata, ModelState, ModelStatistics, ServerMetadata, Statistics
from forwardpass.client.receiving import Answer, BadAnswer, read_count
from forwardpass.core.tensors import Array, TensorSpec
from forwardpass.errors import InvalidOption, MalformedRequest, TensorMismatch
from forwardpass.protocol import (
    BINARY_TYPE,
    DATATYPES,
    JSON_LENGTH_HEADER,
    JSON_TYPE,
    NAMES_BY_DTYPE,
    check_shape,
    decode_raw,
    encode_list,
    raw_buffer,
)

__all__ = [
    "BINARY_EXTENSION",
    "Operation",
    "change_model",
    "describe_model",
    "describe_server",
    "infer",
    "is_ready",
    "list_models",
    "list_names",
    "predict",
    "statistics",
]

Buffer: TypeAlias = bytes | memoryview
T = TypeVar("T")
MICROSECONDS = 1e6
BINARY_EXTENSION = "binary_tensor_data"
"""What a server announces that takes tensors as bytes."""

_encode = msgspec.json.Encoder(enc_hook=lambda value: _plain(value)).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Generic[T]):
    """A request and how its answer is read.

    `read` raises BadAnswer where the answer is not what the protocol says. `accepts` are the statuses that it reads;
    any other one is an error.
    """

    method: str
    path: str
    read: Callable[[Answer], T]
    body: Sequence[Buffer] = ()
    content_type: str = JSON_TYPE
    num_json_bytes: int | None = None
    accepts: tuple[int, ...] = (200,)


# --- inference


def infer(
    model: str,
    inputs: Mapping[str, ArrayLike],
    *,
    version: str | int | None,
    outputs: Sequence[str] | None,
    timeout_s: float | None,
    priority: int | None,
    is_binary: bool,
) -> Operation[dict[str, Array]]:
    """Run a model on tensors, sent as bytes or as JSON lists.

    Raises:
        TensorMismatch: an input is nothing that the protocol can carry.
        InvalidOption: the inputs are not by name, or the outputs no list of names.
    """
    _check_names(inputs, outputs)
    parameters: dict[str, object] = {}
    if timeout_s is not None:
        parameters["timeout"] = max(int(timeout_s * MICROSECONDS), 1)
    if priority is not None:
        parameters["priority"] = priority
    if is_binary and not outputs:
        parameters["binary_data_output"] = True
    tensors, pieces = [], []
    for name, value in inputs.items():
        array, datatype = _to_send(name, value)
        tensor: dict[str, object] = {"name": name, "shape": array.shape, "datatype": datatype}
        if is_binary:
            piece = raw_buffer(array)
            tensor["parameters"] = {"binary_data_size": len(piece)}
            pieces.append(piece)
        else:
            tensor["data"] = _to_list(name, array)
        tensors.append(tensor)
    body: dict[str, object] = {"inputs": tensors}
    if parameters:
        body["parameters"] = parameters
    if outputs:
        body["outputs"] = [_wanted(name, is_binary=is_binary) for name in outputs]
    head = _encode(body)
    return Operation(
        method="POST",
        path=f"{_model_path(model, version)}/infer",
        read=_read_outputs,
        body=(head, *pieces),
        content_type=BINARY_TYPE if is_binary else JSON_TYPE,
        num_json_bytes=len(head) if is_binary else None,
    )


def _check_names(inputs: object, outputs: object) -> None:
    """Tell the two slips that no type checker saw."""
    if not isinstance(inputs, Mapping):
        expected = "arrays by name, such as {'pixels': array}"
        raise InvalidOption(option="inputs", value=type(inputs).__name__, expected=expected)
    if isinstance(outputs, str):
        raise InvalidOption(option="outputs", value=outputs, expected=f"a list of names, such as ['{outputs}']")


def _wanted(name: str, *, is_binary: bool) -> dict[str, object]:
    return {"name": name, "parameters": {"binary_data": True}} if is_binary else {"name": name}


def _to_send(name: str, value: ArrayLike) -> tuple[Array, str]:
    array = value if isinstance(value, np.ndarray) else _as_array(name, value)
    datatype = NAMES_BY_DTYPE.get(array.dtype)
    if datatype is not None and datatype != "BYTES":
        return array, datatype
    if array.dtype.kind in "US" or _is_all_text(array):
        return array.astype(object), "BYTES"
    if array.dtype.newbyteorder("=") in NAMES_BY_DTYPE and array.dtype.kind != "O":
        return array, NAMES_BY_DTYPE[array.dtype.newbyteorder("=")]
    known = f"numbers, booleans, text or bytes ({', '.join(DATATYPES)})"
    raise TensorMismatch(tensor=name, reason=f"has the dtype {array.dtype}", expected=known)


def _as_array(name: str, value: ArrayLike) -> Array:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise TensorMismatch(tensor=name, reason="has rows of different lengths", expected="an array") from error


def _is_all_text(array: Array) -> bool:
    return array.dtype.kind == "O" and all(isinstance(value, str | bytes) for value in array.ravel())


def _to_list(name: str, array: Array) -> list[Any]:
    """Return what JSON carries without a change."""
    reason = ""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        reason = "has values that are not finite, which JSON cannot carry"
    elif array.dtype == np.float16:
        reason = "is FP16, which JSON cannot carry"
    elif array.dtype.kind == "O" and not all(_is_utf8(value) for value in array.ravel()):
        reason = "has bytes that are no text, which JSON cannot carry"
    if reason:
        raise TensorMismatch(tensor=name, reason=reason, expected="a server with binary_tensor_data")
    return encode_list(array)


def _is_utf8(value: str | bytes) -> bool:
    try:
        return not isinstance(value, bytes) or value.decode() is not None
    except UnicodeDecodeError:
        return False


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] | None = None


class _Outputs(msgspec.Struct):
    outputs: tuple[_Output, ...]


_decode_outputs = msgspec.json.Decoder(_Outputs).decode


def _read_outputs(answer: Answer) -> dict[str, Array]:
    body = memoryview(answer.body)
    text = answer.headers.get(JSON_LENGTH_HEADER)
    num_json_bytes = len(body) if text is None else read_count(text)
    if num_json_bytes is None or num_json_bytes > len(body):
        raise BadAnswer(f"its header {JSON_LENGTH_HEADER} does not fit the body")
    outputs = _document(body[:num_json_bytes], _decode_outputs).outputs
    rest = body[num_json_bytes:]
    arrays: dict[str, Array] = {}
    for output in outputs:
        size = (output.parameters or {}).get("binary_data_size")
        if size is not None and not (isinstance(size, int) and 0 <= size <= len(rest)):
            raise BadAnswer(f"the output '{output.name}' announces {size} bytes of {len(rest)}")
        piece, rest = (None, rest) if size is None else (rest[:size], rest[size:])
        arrays[output.name] = _read_output(output, piece)
    return arrays


def _read_output(output: _Output, piece: memoryview | None) -> Array:
    dtype = DATATYPES.get(output.datatype)
    if dtype is None:
        raise BadAnswer(f"the output '{output.name}' has the unknown datatype '{output.datatype[:20]}'")
    spec = TensorSpec(name=output.name, dtype=dtype, shape=output.shape)
    try:
        array = decode_raw(piece, output.shape, spec) if piece is not None else _from_list(output, spec)
    except TensorMismatch as error:
        raise BadAnswer(f"the output '{output.name}' {error.reason}; expected {error.expected}") from error
    return array if array.flags.aligned else array.copy()


def _from_list(output: _Output, spec: TensorSpec) -> Array:
    """Read a JSON list, flat or nested; null is what was not finite."""
    check_shape(output.shape, spec)
    values = _document(output.data, msgspec.json.decode)
    try:
        if spec.dtype != "object":
            return np.array(values, spec.dtype).reshape(output.shape)
        texts = np.array(values, object).ravel()
        return np.array([*map(str.encode, texts), None], object)[:-1].reshape(output.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadAnswer(f"the data of '{output.name}' do not fit {spec}") from error


def predict(model: str, fields: Mapping[str, object], *, version: str | int | None) -> Operation[dict[str, Any]]:
    """Ask a model's processor, or a model without one with nested lists.

    Raises:
        MalformedRequest: a field is nothing that JSON can carry.
    """
    try:
        body = _encode(fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedRequest(reason=f"the fields are not JSON ({error})") from error
    path = f"/v1{_model_path(model, version).removeprefix('/v2')}/predict"
    return Operation(method="POST", path=path, read=lambda answer: _json(answer, dict[str, Any]), body=(body,))


def _plain(value: object) -> object:
    """Make JSON of what `numpy` made."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


# --- what a server says of itself


def describe_server() -> Operation[ServerMetadata]:
    """Ask for name, version and extensions."""
    return Operation(method="GET", path="/v2", read=lambda answer: _json(answer, ServerMetadata))


def describe_model(model: str, version: str | int | None) -> Operation[ModelMetadata]:
    """Ask for the inputs and outputs."""
    return Operation(method="GET", path=_model_path(model, version), read=lambda answer: _json(answer, ModelMetadata))


def is_ready(model: str | None, version: str | int | None) -> Operation[bool]:
    """Ask whether the server or a model answers; a model that is not there does not."""
    path = "/v2/health/ready" if model is None else f"{_model_path(model, version)}/ready"
    return Operation(method="GET", path=path, read=_is_ready, accepts=(200, 400, 404, 503))


def _is_ready(answer: Answer) -> bool:
    if answer.status != 200:
        return False
    try:  # Triton answers with nothing, others with {"ready": …} or {"live": …}
        document = msgspec.json.decode(answer.body) if len(answer.body) else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return True
    return bool(document.get("ready", True)) if isinstance(document, dict) else True


def list_models() -> Operation[tuple[ModelState, ...] | None]:
    """Ask for the index of the repository; None where the server has none."""
    return Operation(
        method="POST",
        path="/v2/repository/index",
        read=lambda answer: _json(answer, tuple[ModelState, ...]) if answer.status == 200 else None,
        body=(b"{}",),
        accepts=(200, 404, 405),
    )


def list_names() -> Operation[tuple[ModelState, ...]]:
    """Ask a server without a repository for the names of its models."""
    return Operation(
        method="GET",
        path="/v2/models",
        read=lambda answer: tuple(ModelState(name=name) for name in _json(answer, Index).models),
    )


def change_model(model: str, action: str) -> Operation[None]:
    """Load or unload a model."""
    path = f"/v2/repository/models/{quote(model, safe='')}/{action}"
    return Operation(method="POST", path=path, read=lambda answer: None, body=(b"{}",))


def statistics(model: str | None, version: str | int | None) -> Operation[tuple[ModelStatistics, ...]]:
    """Ask what was done so far."""
    path = "/v2/models/stats" if model is None else f"{_model_path(model, version)}/stats"
    return Operation(method="GET", path=path, read=lambda answer: _json(answer, Statistics).model_stats)


@lru_cache(maxsize=256)
def _model_path(model: str, version: str | int | None) -> str:
    base = f"/v2/models/{quote(model, safe='')}"
    return base if version is None else f"{base}/versions/{quote(str(version), safe='')}"


def _json(answer: Answer, kind: type[T]) -> T:
    return _document(answer.body, lambda body: msgspec.json.decode(body, type=kind))


def _document(data: Buffer | msgspec.Raw, decode: Callable[[Any], T]) -> T:
    try:
        return decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(str(error)[:200]) from error
