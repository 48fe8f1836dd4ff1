"""Tensors as JSON lists, flat or nested: checked element by element, since a mistake would change an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from forwardpass.core.tensors import Array, TensorSpec
from forwardpass.errors import TensorMismatch
from forwardpass.protocol.datatypes import DATATYPES, NAMES
from forwardpass.protocol.raw import MAX_RANK, check_shape, listed

__all__ = ["decode_tensor", "encode_list"]

_KINDS = {dtype: np.dtype(dtype).kind for dtype in DATATYPES.values()}


def _decoders(kind: type) -> list[msgspec.json.Decoder[Any]]:
    """Return decoders of lists nested 1, 2, … deep."""
    nested: Any = list[kind]  # type: ignore[valid-type]
    decoders = []
    for _ in range(MAX_RANK):
        decoders.append(msgspec.json.Decoder(nested))
        nested = list[nested]
    return decoders


_DECODERS = {
    "f": _decoders(float),
    "i": _decoders(int),
    "u": _decoders(int),
    "b": _decoders(bool),
    "O": _decoders(str),
}


def decode_tensor(data: msgspec.Raw | bytes, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """Decode a flat or nested JSON list into an array of `shape`.

    Raises:
        TensorMismatch: the number, kind or range of the elements does not fit.
    """
    num_elements = check_shape(shape, spec)
    decoders = _DECODERS[_KINDS[spec.dtype]]
    values = _decode_list(data, decoders, len(shape), spec)
    flat = not values or not isinstance(values[0], list)
    if flat and len(values) != num_elements:
        raise TensorMismatch(
            tensor=spec.name,
            reason=f"has {len(values)} elements for the shape {listed(shape)}",
            expected=f"{num_elements} elements",
        )
    try:
        with np.errstate(over="ignore"):  # what overflows is refused below
            array = _strings(values, shape) if spec.dtype == "object" else np.array(values, dtype=spec.dtype)
    except (OverflowError, ValueError) as error:
        reason = f"has a value beyond {NAMES[spec.dtype]}, or rows of different lengths"
        raise TensorMismatch(tensor=spec.name, reason=reason, expected=str(spec)) from error
    if not flat and array.shape != shape:
        found, wanted = list(array.shape), listed(shape)
        raise TensorMismatch(
            tensor=spec.name, reason=f"is nested as {found} but has the shape {wanted}", expected=wanted
        )
    if decoders is _DECODERS["f"] and not np.logical_and.reduce(np.isfinite(array), axis=None):
        raise TensorMismatch(tensor=spec.name, reason=f"has a value beyond {NAMES[spec.dtype]}", expected=str(spec))
    return array.reshape(shape)


def _strings(values: list[Any], shape: tuple[int, ...]) -> Array:
    """Return texts as the bytes that BYTES are."""
    nested = np.array(values, dtype=object)
    return np.array([str(text).encode() for text in nested.ravel()], dtype=object).reshape(nested.shape or shape)


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


def encode_list(array: Array) -> list[Any]:
    """Return the elements in row-major order; bytes become text, what is no UTF-8 in them the replacement character."""
    if array.dtype == object:
        return [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in array.ravel()]
    values: list[Any] = array.ravel().tolist()
    return values
