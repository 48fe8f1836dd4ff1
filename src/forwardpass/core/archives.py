"""Calls in an `.npz` archive: each array is named `<call>:<tensor>`, and nothing is pickled.

Strings take two arrays: `<call>.strings:<tensor>`, the bytes of their content, and `<call>.shape:<tensor>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import numpy as np

from forwardpass.core.strings import decode_strings, encode_strings
from forwardpass.core.tensors import Array, Tensors

__all__ = ["read_calls", "write_calls"]

STRINGS = "strings"
SHAPE = "shape"


def write_calls(target: IO[bytes] | str, calls: Sequence[Tensors], *, is_compressed: bool) -> None:
    """Write the tensors of several calls."""
    arrays: dict[str, Array] = {}
    for call, tensors in enumerate(calls):
        for name, array in tensors.items():
            if array.dtype.kind == "O":
                arrays[f"{call}.{STRINGS}:{name}"] = np.frombuffer(encode_strings(array), np.uint8)
                arrays[f"{call}.{SHAPE}:{name}"] = np.array(array.shape, np.int64)
            else:
                arrays[f"{call}:{name}"] = array
    save = np.savez_compressed if is_compressed else np.savez
    save(target, allow_pickle=False, **arrays)


def read_calls(source: IO[bytes] | str, *, only: int | None = None) -> list[dict[str, Array]]:
    """Read the calls, or only one of them.

    Raises:
        ValueError: an array has no such name, or strings and their shape do not belong together.
        BadZipFile: it is no archive.
    """
    calls: dict[int, dict[str, Array]] = {}
    with np.load(source, allow_pickle=False) as archive:
        for key in archive.files:
            place, _, name = key.partition(":")
            number, _, kind = place.partition(".")
            if only not in (None, int(number)) or kind == SHAPE:
                continue
            array = archive[key]
            if kind == STRINGS:
                array = _strings(array, archive.get(f"{number}.{SHAPE}:{name}"))
            elif kind:
                raise ValueError(f"the array '{key}' is of an unknown kind")
            calls.setdefault(int(number), {})[name] = array
    return [calls[number] for number in sorted(calls)]


def _strings(content: Array, shape: Array | None) -> Array:
    if shape is None or shape.ndim != 1 or content.ndim != 1 or content.dtype != np.uint8 or (shape < 0).any():
        raise ValueError("strings have no shape, or one that cannot be")
    return decode_strings(content.tobytes(), [int(size) for size in shape])
