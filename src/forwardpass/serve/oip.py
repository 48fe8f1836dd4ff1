"""The Open Inference Protocol v2 over HTTP: requests into tensors, tensors into responses.

Strict where a mistake would change an answer: names, dtypes, shapes, the number of elements and their range. JSON has
no NaN: values that are not finite are written as null. With the binary extension the tensors' bytes follow the JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from forwardpass.core.batching import LOWEST_PRIORITY, NORMAL_PRIORITY
from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.errors import MalformedRequest, TensorMismatch
from forwardpass.protocol import DATATYPES, NAMES, NAMES_BY_DTYPE, decode_raw, decode_tensor, encode_list, raw_buffer

__all__ = [
    "InferCall",
    "ResponseWriter",
    "call_priority",
    "call_timeout_s",
    "check_tensor_parameters",
    "decode_infer",
    "decode_raw_infer",
    "describe_tensors",
    "spec_for",
    "wanted_outputs",
]

UNSUPPORTED = ("classification", "shared_memory_region")
"""Parameters of tensors, of extensions of Triton's that are not announced: with them an answer is no plain tensor."""
MICROSECOND_S = 1e-6
MAX_TIMEOUT_S = 3600.0
"""Longer wishes are cut to this."""


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


class InferCall(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded request. `timeout_s` is the client's own deadline."""

    tensors: dict[str, Array]
    num_rows: int
    id: str | None = None
    timeout_s: float | None = None
    priority: int = NORMAL_PRIORITY
    outputs: tuple[str, ...] = ()
    """Those that the client wants; empty for all."""
    binary: bool | frozenset[str] = False
    """Whether the outputs go out as bytes, or which of them."""


_decode_body = msgspec.json.Decoder(_Body).decode


def decode_infer(body: bytes, signature: Signature, *, num_json_bytes: int | None = None) -> InferCall:
    """Decode and check a request; `num_json_bytes` says where the JSON ends and the bytes of tensors begin.

    Raises:
        MalformedRequest: it is not JSON of this protocol.
        TensorMismatch: a tensor does not fit the signature or its own shape.
    """
    rest = memoryview(b"")
    if num_json_bytes is not None:
        rest, body = memoryview(body)[num_json_bytes:], body[:num_json_bytes]
    if not body:
        raise MalformedRequest(reason=f"the body is empty; send {_example(signature)}")
    try:
        request = _decode_body(body)
    except msgspec.ValidationError as error:
        raise MalformedRequest(reason=f"{error}; send {_example(signature)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRequest(reason=str(error)) from error
    except RecursionError as error:
        raise MalformedRequest(reason="it is nested too deeply") from error
    specs = {spec.name: spec for spec in signature.inputs}
    tensors: dict[str, Array] = {}
    for given in request.inputs:
        if given.name in tensors:
            raise TensorMismatch(tensor=given.name, reason="is given twice", expected="each input once")
        check_tensor_parameters("input", given.name, given.parameters)
        piece = None
        if given.parameters and "binary_data_size" in given.parameters:
            piece, rest = _take(rest, given.name, given.parameters["binary_data_size"])
        tensors[given.name] = _decode_input(given, specs.get(given.name), piece)
    for output in request.outputs or ():
        check_tensor_parameters("output", output.name, output.parameters)
    if len(rest):
        raise MalformedRequest(reason=f"{len(rest)} bytes follow that belong to no input")
    return InferCall(
        tensors=tensors,
        num_rows=signature.validate(tensors),
        id=request.id,
        timeout_s=call_timeout_s(request.parameters),
        priority=call_priority(request.parameters),
        outputs=wanted_outputs([output.name for output in request.outputs or ()], signature),
        binary=_binary_outputs(request),
    )


def _example(signature: Signature) -> str:
    """Return what a body looks like."""
    tensors = (
        f'{{"name": "{spec.name}", "shape": [{", ".join(map(str, spec.shape))}], "datatype": "{NAMES[spec.dtype]}", '
        '"data": […]}'
        for spec in signature.inputs
    )
    return f'{{"inputs": [{", ".join(tensors)}]}}'


def decode_raw_infer(body: bytes, signature: Signature) -> InferCall:
    """Decode a body that is nothing but the bytes of the only input, one row of it.

    Raises:
        MalformedRequest: the model does not have one input whose shape the number of bytes tells.
        TensorMismatch: the number of bytes does not fit.
    """
    spec, *more = signature.inputs
    sizes = [1 if axis == 0 and signature.is_batchable else size for axis, size in enumerate(spec.shape)]
    unknown = [axis for axis, size in enumerate(sizes) if isinstance(size, str)]
    if more or len(unknown) > 1 or spec.dtype == "object":
        raise MalformedRequest(reason="only one input of numbers with at most one dynamic axis can be sent raw")
    known = [size for size in sizes if isinstance(size, int)]
    if unknown:
        row_bytes = int(np.prod(known, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
        sizes[unknown[0]] = len(body) // max(row_bytes, 1)
    tensors = {spec.name: decode_raw(body, [int(size) for size in sizes], spec)}
    return InferCall(tensors=tensors, num_rows=signature.validate(tensors), binary=True)


def _take(rest: memoryview, name: str, size: object) -> tuple[memoryview, memoryview]:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
        raise TensorMismatch(
            tensor=name, reason=f"announces {str(size)[:20]} bytes", expected=f"at most the {len(rest)} that follow"
        )
    return rest[:size], rest[size:]


def spec_for(name: str, datatype: str, signature: Signature) -> TensorSpec | None:
    """Return the specification of an input, or None if the model has none of this name.

    Raises:
        TensorMismatch: the datatype is not that of the input.
    """
    spec = next((spec for spec in signature.inputs if spec.name == name), None)
    if spec is not None:
        _check_datatype(datatype, spec)
    return spec


def _check_datatype(datatype: str, spec: TensorSpec) -> None:
    if DATATYPES.get(datatype) != spec.dtype:
        expected = f"{NAMES[spec.dtype]} ({spec})"
        raise TensorMismatch(tensor=spec.name, reason=f"has the datatype '{datatype[:20]}'", expected=expected)


def _decode_input(given: _Input, spec: TensorSpec | None, piece: memoryview | None) -> Array:
    if spec is None:
        return np.zeros(0)  # its name is not the model's: Signature.validate says so, with the names there are
    _check_datatype(given.datatype, spec)
    if piece is not None:
        if bytes(given.data):
            raise TensorMismatch(tensor=spec.name, reason="has 'data' and binary data", expected="one of the two")
        return decode_raw(piece, given.shape, spec)
    if spec.dtype == "float16":
        raise TensorMismatch(
            tensor=given.name, reason="is FP16, which JSON cannot carry exactly", expected="binary data"
        )
    if not bytes(given.data):
        raise TensorMismatch(tensor=given.name, reason="has no 'data'", expected=str(spec))
    return decode_tensor(given.data, tuple(given.shape), spec)


def call_timeout_s(parameters: Mapping[str, Any] | None) -> float | None:
    """Return the parameter `timeout`, in microseconds as in Triton.

    Raises:
        MalformedRequest: it is not a positive whole number.
    """
    value = (parameters or {}).get("timeout")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise MalformedRequest(reason="the parameter 'timeout' must be a positive number of microseconds")
    return min(value, int(MAX_TIMEOUT_S / MICROSECOND_S)) * MICROSECOND_S


def call_priority(parameters: Mapping[str, Any] | None) -> int:
    """Return the parameter `priority`: 1 is the highest, 0 and none are the normal one.

    Raises:
        MalformedRequest: it is not a whole number, or negative.
    """
    value = (parameters or {}).get("priority", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        reason = f"the parameter 'priority' must be a whole number from 1 (highest) to {LOWEST_PRIORITY}"
        raise MalformedRequest(reason=reason)
    return min(value, LOWEST_PRIORITY) or NORMAL_PRIORITY


def wanted_outputs(names: Sequence[str], signature: Signature) -> tuple[str, ...]:
    """Return the names of the outputs that a client wants.

    Raises:
        MalformedRequest: there is no such output, or one is named twice.
    """
    known = [spec.name for spec in signature.outputs]
    for name in names:
        if name not in known:
            raise MalformedRequest(reason=f"there is no output '{name[:64]}'; the model has {', '.join(known)}")
    if len(set(names)) != len(names):
        raise MalformedRequest(reason="an output is named twice")
    return tuple(names)


def check_tensor_parameters(word: str, name: str, parameters: Mapping[str, Any] | None) -> None:
    """Refuse what would make an answer something else than the client then reads.

    Raises:
        MalformedRequest: a tensor has a parameter of an extension that is not announced.
    """
    for refused in UNSUPPORTED:
        if parameters and refused in parameters:
            raise MalformedRequest(reason=f"the parameter '{refused}' of the {word} '{name[:64]}' is not supported")


def _binary_outputs(request: _Body) -> bool | frozenset[str]:
    for_all = bool((request.parameters or {}).get("binary_data_output", False))
    if not request.outputs:
        return for_all
    chosen = {output.name: (output.parameters or {}).get("binary_data", for_all) for output in request.outputs}
    return frozenset(name for name, is_binary in chosen.items() if is_binary)


def describe_tensors(specs: Sequence[TensorSpec]) -> list[dict[str, object]]:
    """Describe inputs or outputs as model metadata does: -1 for a dynamic axis."""
    return [
        {
            "name": spec.name,
            "datatype": NAMES[spec.dtype],
            "shape": [dim if isinstance(dim, int) else -1 for dim in spec.shape],
        }
        for spec in specs
    ]


class _OutputTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, int] | None = None


class _ResponseBody(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_OutputTensor]
    id: str | None = None


class ResponseWriter:
    """Encodes the outputs of one version of a model."""

    def __init__(self, model: str, version: str) -> None:
        self._model = model
        self._version = version
        self._encode = msgspec.json.Encoder().encode

    def write(self, outputs: Mapping[str, Array], call: InferCall) -> bytes:
        """Encode the outputs that the call wants, in the model's order, with its id."""
        wanted = call.outputs or outputs
        tensors = [
            _OutputTensor(name, NAMES_BY_DTYPE[array.dtype], array.shape, encode_list(array))
            for name, array in ((name, outputs[name]) for name in wanted)
        ]
        return self._encode(_ResponseBody(self._model, self._version, tensors, call.id))

    def write_binary(self, outputs: Mapping[str, Array], call: InferCall) -> tuple[bytes, int]:
        """Encode like `write`, with the bytes of tensors after the JSON; return also how long the JSON is."""
        tensors, pieces = [], []
        for name in call.outputs or outputs:
            array = outputs[name]
            tensor = _OutputTensor(name, NAMES_BY_DTYPE[array.dtype], array.shape)
            if call.binary is True or (call.binary and name in call.binary):
                pieces.append(raw_buffer(array))
                tensor.parameters = {"binary_data_size": len(pieces[-1])}
            else:
                tensor.data = encode_list(array)
            tensors.append(tensor)
        head = self._encode(_ResponseBody(self._model, self._version, tensors, call.id))
        return b"".join((head, *pieces)), len(head)
