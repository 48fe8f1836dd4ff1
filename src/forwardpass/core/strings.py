"""Tensors of strings: object arrays of `bytes`, and what takes the place of a buffer, a zero or a comparison for them.

An object array holds pointers, so its memory says nothing about what it means. Its content is written as the Open
Inference Protocol does: a four-byte little-endian length and the bytes of every string, in row-major order.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from forwardpass.core.tensors import Array

__all__ = [
    "are_strings",
    "array_bytes",
    "as_strings",
    "blank",
    "decode_strings",
    "encode_strings",
    "readable_lists",
    "strings_array",
]

_LENGTH = struct.Struct("<I")


def are_strings(array: Array) -> bool:
    """Tell whether an array holds strings, of whichever of numpy's kinds."""
    if array.dtype.kind == "O":
        return all(isinstance(value, str | bytes) for value in array.ravel())
    return array.dtype.kind in "US"


def as_strings(array: Array) -> Array:
    """Return strings of any kind as an object array of `bytes`, text in UTF-8.

    >>> as_strings(np.array(["é"]))
    array([b'\\xc3\\xa9'], dtype=object)
    """
    return strings_array([_as_bytes(value) for value in array.ravel().tolist()], array.shape)


def strings_array(values: Sequence[str | bytes], shape: Sequence[int]) -> Array:
    """Return `values` as an object array; numpy on its own would guess at what they are."""
    array: Array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


def encode_strings(array: Array) -> bytes:
    """Return the content of an object array.

    >>> encode_strings(np.array([b"ab", b""], object))
    b'\\x02\\x00\\x00\\x00ab\\x00\\x00\\x00\\x00'
    """
    return b"".join(_LENGTH.pack(len(text)) + text for text in map(_as_bytes, array.ravel()))


def decode_strings(data: bytes | memoryview, shape: Sequence[int]) -> Array:
    """Return what `encode_strings` wrote, copied.

    Raises:
        ValueError: the bytes are not as many strings as the shape needs.
    """
    num_elements = math.prod(shape)
    texts: list[bytes] = []
    at, end = 0, len(data)
    while at + _LENGTH.size <= end and len(texts) < num_elements:
        (size,) = _LENGTH.unpack_from(data, at)
        texts.append(bytes(data[at + _LENGTH.size : at + _LENGTH.size + size]))
        at += _LENGTH.size + size
    if at != end or len(texts) != num_elements:
        raise ValueError(f"{end} bytes are not {num_elements} strings")
    return strings_array(texts, shape)


def array_bytes(array: Array) -> bytes:
    """Return the content of any array: equal arrays of one shape have equal bytes, and no other ones."""
    return encode_strings(array) if array.dtype.kind == "O" else array.tobytes()


def blank(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Return zeros, or empty strings."""
    return np.full(shape, b"", object) if dtype.kind == "O" else np.zeros(shape, dtype)


def readable_lists(array: Array) -> Any:
    """Return nested lists that JSON has words for: strings as text, what is no UTF-8 as the replacement character."""
    if array.dtype.kind != "O":
        return array.tolist()
    texts = [_as_bytes(value).decode("utf-8", "replace") for value in array.ravel()]
    return strings_array(texts, array.shape).tolist()


def _as_bytes(text: object) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()
