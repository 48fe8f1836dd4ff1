"""Bodies for an Open Inference Protocol server: samples or made-up inputs, as bytes where it takes them, else JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from forwardpass.core.tensors import Array
from forwardpass.errors import InvalidAnswer, InvalidSamples
from forwardpass.loadtest.template import MAX_BODIES, Body
from forwardpass.protocol import BINARY_TYPE, DATATYPES, JSON_LENGTH_HEADER, NAMES_BY_DTYPE, encode_list, encode_raw

__all__ = ["ModelInput", "ModelMetadata", "infer_bodies", "made_up_inputs", "sample_inputs"]

NUM_MADE_UP = 16
"""Different made-up requests: enough that a cache of answers would show, few enough to encode at once."""
DEFAULT_AXIS_SIZE = 16
"""Of a dynamic axis behind the first one."""


class ModelInput(msgspec.Struct, frozen=True):
    """An input as the server describes it; -1 is a dynamic axis."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True):
    """What is needed of a model's metadata."""

    name: str
    inputs: list[ModelInput]


def made_up_inputs(inputs: Sequence[ModelInput], *, num_rows: int, seed: int) -> list[dict[str, Array]]:
    """Return requests of normal numbers for floats, ones for integers and booleans (valid as ids and as masks)."""
    generator = np.random.default_rng(seed)
    return [{it.name: _made_up(it, num_rows, generator) for it in inputs} for _ in range(NUM_MADE_UP)]


def sample_inputs(
    inputs: Sequence[ModelInput], rows: Sequence[Mapping[str, Array]], *, num_rows: int, origin: str
) -> list[dict[str, Array]]:
    """Return requests of samples; `rows` holds single samples, and neighbours are of one shape.

    Raises:
        InvalidSamples: an input is missing, or its values do not fit its datatype.
    """
    missing = [it.name for it in inputs if it.name not in rows[0]]
    if missing:
        reason = f"they have no array '{missing[0]}', which the model takes"
        raise InvalidSamples(origin=origin, reason=reason, hint=f"They have {', '.join(rows[0])}.")
    requests = []
    for first in range(min(len(rows), MAX_BODIES)):
        same = [
            row for row in (rows[(first + more) % len(rows)] for more in range(num_rows)) if _fits(row, rows[first])
        ]
        same += [rows[first]] * (num_rows - len(same))
        requests.append({it.name: _cast(np.stack([row[it.name] for row in same]), it, origin) for it in inputs})
    return requests


def infer_bodies(requests: Sequence[Mapping[str, Array]], *, is_binary: bool) -> list[Body]:
    """Encode requests for `/infer`."""
    return [_binary_body(tensors) if is_binary else _json_body(tensors) for tensors in requests]


def _json_body(tensors: Mapping[str, Array]) -> Body:
    inputs = [{**_described(name, array), "data": encode_list(array)} for name, array in tensors.items()]
    return Body(content=msgspec.json.encode({"inputs": inputs}))


def _binary_body(tensors: Mapping[str, Array]) -> Body:
    pieces = [encode_raw(array) for array in tensors.values()]
    inputs = [
        {**_described(name, array), "parameters": {"binary_data_size": len(piece)}}
        for (name, array), piece in zip(tensors.items(), pieces, strict=True)
    ]
    head = msgspec.json.encode({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return Body(
        content=b"".join((head, *pieces)),
        content_type=BINARY_TYPE,
        headers=((JSON_LENGTH_HEADER, str(len(head))),),
    )


def _described(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": NAMES_BY_DTYPE[array.dtype]}


def _made_up(it: ModelInput, num_rows: int, generator: np.random.Generator) -> Array:
    dtype = _dtype(it)
    shape = [_size(axis, size, num_rows) for axis, size in enumerate(it.shape)]
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind == "O":
        return np.full(shape, b"hello", dtype=object)
    return np.ones(shape, dtype)


def _size(axis: int, size: int, num_rows: int) -> int:
    return size if size >= 0 else num_rows if axis == 0 else DEFAULT_AXIS_SIZE


def _dtype(it: ModelInput) -> np.dtype[Any]:
    if it.datatype not in DATATYPES:
        raise InvalidAnswer(url=f"the input '{it.name}'", reason=f"its datatype '{it.datatype[:20]}' is unknown")
    return np.dtype(DATATYPES[it.datatype])


def _cast(array: Array, it: ModelInput, origin: str) -> Array:
    dtype = _dtype(it)
    if array.dtype == dtype:
        return array
    if dtype.kind == "O" or not np.can_cast(array.dtype, dtype, "same_kind"):
        reason = f"the array '{it.name}' has dtype {array.dtype}, but the model takes {it.datatype}"
        raise InvalidSamples(origin=origin, reason=reason)
    return array.astype(dtype)


def _fits(row: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(row[name].shape == array.shape for name, array in other.items())
