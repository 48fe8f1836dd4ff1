"""The JSON of the Open Inference Protocol v2: requests into tensors, tensors into responses.

Strict where a mistake would change an answer: names, dtypes, shapes, the number of elements and their range. JSON has
no NaN: values that are not finite are written as null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.errors import MalformedRequest, TensorMismatch

__all__ = ["DATATYPES", "InferCall", "ResponseWriter", "decode_infer", "decode_tensor", "describe_tensors"]

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_NAMES_BY_DTYPE = {np.dtype(dtype): name for name, dtype in DATATYPES.items()}
_KINDS = {dtype: np.dtype(dtype).kind for dtype in DATATYPES.values()}
MAX_RANK = 16
MAX_SIZE = 2**63 - 1
MAX_SHOWN_RANK = 8
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
    """A decoded request. `timeout_s` is the client's own deadline; `outputs` names those it wants, empty for all."""

    tensors: dict[str, Array]
    num_rows: int
    id: str | None
    timeout_s: float | None
    outputs: tuple[str, ...]


_decode_body = msgspec.json.Decoder(_Body).decode


def _decoders(kind: type) -> list[msgspec.json.Decoder[Any]]:
    """Return decoders of lists nested 1, 2, … deep."""
    nested: Any = list[kind]  # type: ignore[valid-type]
    decoders = []
    for _ in range(MAX_RANK):
        decoders.append(msgspec.json.Decoder(nested))
        nested = list[nested]
    return decoders


_DECODERS = {"f": _decoders(float), "i": _decoders(int), "u": _decoders(int), "b": _decoders(bool)}


def decode_infer(body: bytes, signature: Signature) -> InferCall:
    """Decode and check a request.

    Raises:
        MalformedRequest: it is not JSON of this protocol.
        TensorMismatch: a tensor does not fit the signature or its own shape.
    """
    try:
        request = _decode_body(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRequest(reason=str(error)) from error
    except RecursionError as error:
        raise MalformedRequest(reason="it is nested too deeply") from error
    specs = {spec.name: spec for spec in signature.inputs}
    tensors: dict[str, Array] = {}
    for given in request.inputs:
        if given.name in tensors:
            raise TensorMismatch(tensor=given.name, reason="is given twice", expected="each input once")
        tensors[given.name] = _decode_input(given, specs.get(given.name))
    return InferCall(
        tensors=tensors,
        num_rows=signature.validate(tensors),
        id=request.id,
        timeout_s=_timeout(request.parameters),
        outputs=_wanted(request.outputs, signature),
    )


def _decode_input(given: _Input, spec: TensorSpec | None) -> Array:
    if spec is None:
        return np.zeros(0)  # its name is not the model's: Signature.validate says so, with the names there are
    if given.parameters and "binary_data_size" in given.parameters:
        raise TensorMismatch(tensor=given.name, reason="is announced as binary data", expected="'data' in JSON")
    dtype = DATATYPES.get(given.datatype)
    if dtype is None:
        known = ", ".join(DATATYPES)
        raise TensorMismatch(
            tensor=given.name, reason=f"has the datatype '{given.datatype}'", expected=f"one of {known}"
        )
    if dtype == "float16":
        raise TensorMismatch(
            tensor=given.name, reason="is FP16, which JSON cannot carry exactly", expected="binary data"
        )
    if dtype != spec.dtype:
        raise TensorMismatch(
            tensor=given.name, reason=f"has the datatype {given.datatype}", expected=f"{_NAMES[spec.dtype]} ({spec})"
        )
    if not bytes(given.data):
        raise TensorMismatch(tensor=given.name, reason="has no 'data'", expected=str(spec))
    return decode_tensor(given.data, tuple(given.shape), spec)


def decode_tensor(data: msgspec.Raw | bytes, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """Decode a flat or nested JSON list into an array of `shape`.

    Raises:
        TensorMismatch: the number, kind or range of the elements does not fit.
    """
    if len(shape) > MAX_RANK or min(shape, default=0) < 0 or max(shape, default=0) > MAX_SIZE:
        raise TensorMismatch(tensor=spec.name, reason=f"has the impossible shape {_listed(shape)}", expected=str(spec))
    decoders = _DECODERS[_KINDS[spec.dtype]]
    values = _decode_list(data, decoders, len(shape), spec)
    flat = not values or not isinstance(values[0], list)
    if flat and len(values) != math.prod(shape):
        raise TensorMismatch(
            tensor=spec.name,
            reason=f"has {len(values)} elements for the shape {_listed(shape)}",
            expected=f"{math.prod(shape)} elements",
        )
    try:
        with np.errstate(over="ignore"):  # what overflows is refused below
            array = np.array(values, dtype=spec.dtype)
    except (OverflowError, ValueError) as error:
        reason = f"has a value beyond {_NAMES[spec.dtype]}, or rows of different lengths"
        raise TensorMismatch(tensor=spec.name, reason=reason, expected=str(spec)) from error
    if not flat and array.shape != shape:
        found, listed = list(array.shape), _listed(shape)
        raise TensorMismatch(
            tensor=spec.name, reason=f"is nested as {found} but has the shape {listed}", expected=listed
        )
    if decoders is _DECODERS["f"] and not np.logical_and.reduce(np.isfinite(array), axis=None):
        raise TensorMismatch(tensor=spec.name, reason=f"has a value beyond {_NAMES[spec.dtype]}", expected=str(spec))
    return array.reshape(shape)


def _listed(shape: tuple[int, ...]) -> str:
    more = ["…"] if len(shape) > MAX_SHOWN_RANK else []
    return f"[{', '.join([*map(str, shape[:MAX_SHOWN_RANK]), *more])}]"


def _decode_list(
    data: msgspec.Raw | bytes, decoders: Sequence[msgspec.json.Decoder[Any]], rank: int, spec: TensorSpec
) -> list[Any]:
    """Try a flat list first, which is what clients in a hurry send, then one nested as deep as the shape."""
    try:
        values: list[Any] = decoders[0].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if rank < 2:
            raise _wrong_data(error, spec) from error
    else:
        return values
    try:
        nested: list[Any] = decoders[rank - 1].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _wrong_data(error, spec) from error
    return nested


def _wrong_data(error: Exception, spec: TensorSpec) -> TensorMismatch:
    return TensorMismatch(
        tensor=spec.name, reason=f"has data that does not fit ({error})", expected=f"a flat or nested list for {spec}"
    )


def _timeout(parameters: Mapping[str, Any] | None) -> float | None:
    """Return the parameter `timeout`, in microseconds as in Triton."""
    value = (parameters or {}).get("timeout")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise MalformedRequest(reason="the parameter 'timeout' must be a positive number of microseconds")
    return min(value, int(MAX_TIMEOUT_S / MICROSECOND_S)) * MICROSECOND_S


def _wanted(outputs: Sequence[_Output] | None, signature: Signature) -> tuple[str, ...]:
    if not outputs:
        return ()
    known = {spec.name for spec in signature.outputs}
    for output in outputs:
        if output.name not in known:
            raise MalformedRequest(
                reason=f"there is no output '{output.name}'; the model has {', '.join(sorted(known))}"
            )
    return tuple(output.name for output in outputs)


def describe_tensors(specs: Sequence[TensorSpec]) -> list[dict[str, object]]:
    """Describe inputs or outputs as model metadata does: -1 for a dynamic axis."""
    return [
        {
            "name": spec.name,
            "datatype": _NAMES[spec.dtype],
            "shape": [dim if isinstance(dim, int) else -1 for dim in spec.shape],
        }
        for spec in specs
    ]


class _OutputTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]


class _ResponseBody(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_OutputTensor]
    id: str | None = None


class ResponseWriter:
    """Encodes the outputs of one model."""

    def __init__(self, model: str, version: str) -> None:
        self._model = model
        self._version = version
        self._encode = msgspec.json.Encoder().encode

    def write(self, outputs: Mapping[str, Array], call: InferCall) -> bytes:
        """Encode the outputs that the call wants, in the model's order, with its id."""
        wanted = call.outputs or outputs
        tensors = [
            _OutputTensor(name, _NAMES_BY_DTYPE[array.dtype], array.shape, array.ravel().tolist())
            for name, array in ((name, outputs[name]) for name in wanted)
        ]
        return self._encode(_ResponseBody(self._model, self._version, tensors, call.id))
