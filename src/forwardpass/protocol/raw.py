"""Tensors as raw bytes, as in the binary extension of the protocol and in gRPC: row-major, little-endian.

Strings (BYTES) are a four-byte length and the bytes, one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from forwardpass.core.strings import decode_strings, encode_strings
from forwardpass.core.tensors import Array, TensorSpec
from forwardpass.errors import TensorMismatch

__all__ = ["MAX_RANK", "check_shape", "decode_raw", "encode_raw", "listed", "raw_buffer"]

MAX_RANK = 16
MAX_SIZE = 2**63 - 1
MAX_ITEM_BYTES = 8
MAX_SHOWN_RANK = 8


def check_shape(shape: Sequence[int], spec: TensorSpec) -> int:
    """Return the number of elements.

    Raises:
        TensorMismatch: no tensor has this shape.
    """
    num_elements = math.prod(shape)
    if len(shape) > MAX_RANK or min(shape, default=0) < 0 or max(shape, default=0) > MAX_SIZE:
        raise _impossible(shape, spec)
    if num_elements == 0 and math.prod(filter(None, shape)) > MAX_SIZE // MAX_ITEM_BYTES:
        raise _impossible(shape, spec)  # numpy has no such array, empty though it would be
    return num_elements


def _impossible(shape: Sequence[int], spec: TensorSpec) -> TensorMismatch:
    return TensorMismatch(tensor=spec.name, reason=f"has the impossible shape {listed(shape)}", expected=str(spec))


def decode_raw(data: bytes | memoryview, shape: Sequence[int], spec: TensorSpec) -> Array:
    """Return the bytes as an array of `shape` without copying them, but for strings and booleans.

    Raises:
        TensorMismatch: the number of bytes does not belong to the shape.
    """
    num_elements = check_shape(shape, spec)
    if spec.dtype == "object":
        return _decode_strings(data, shape, num_elements, spec)
    dtype = np.dtype(spec.dtype)
    if len(data) != num_elements * dtype.itemsize:
        raise TensorMismatch(
            tensor=spec.name,
            reason=f"has {len(data)} bytes for the shape {listed(shape)}",
            expected=f"{num_elements * dtype.itemsize} bytes",
        )
    array = np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)
    return array.view(np.uint8) != 0 if spec.dtype == "bool" else array


def encode_raw(array: Array) -> bytes:
    """Return the array's bytes.

    >>> encode_raw(np.array([b"ab", b""], object))
    b'\\x02\\x00\\x00\\x00ab\\x00\\x00\\x00\\x00'
    """
    return bytes(raw_buffer(array))


def raw_buffer(array: Array) -> bytes | memoryview:
    """Return what `encode_raw` does; of an array that lies in memory as it is sent, a view and no copy."""
    if array.dtype == object:
        return encode_strings(array)
    ordered = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8).data


def listed(shape: Sequence[int]) -> str:
    """Write a shape, shortened where somebody sent a very long one."""
    more = ["…"] if len(shape) > MAX_SHOWN_RANK else []
    return f"[{', '.join([*map(str, shape[:MAX_SHOWN_RANK]), *more])}]"


def _decode_strings(data: bytes | memoryview, shape: Sequence[int], num_elements: int, spec: TensorSpec) -> Array:
    try:
        return decode_strings(data, shape)
    except ValueError as error:
        raise TensorMismatch(
            tensor=spec.name,
            reason=f"has bytes that are not {num_elements} strings",
            expected="a four-byte length and the bytes of each",
        ) from error
