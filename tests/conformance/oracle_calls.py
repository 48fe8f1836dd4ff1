"""Calls of the protocol's gRPC service, right and wrong ones, to be sent to two servers alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from tests.conformance.oracle_cases import Difference

__all__ = ["CHOSEN_CALLS", "calls"]

ROWS = np.array([[1, 2], [3, 4]], np.float32)
RAW = (ROWS.tobytes(),)
FP32 = {"fp32_contents": [1, 2, 3, 4]}


def tensor(name: str = "x", datatype: str = "FP32", shape: Sequence[int] = (2, 2)) -> dict[str, Any]:
    """Describe an input."""
    return {"name": name, "datatype": datatype, "shape": shape}


def call(
    *inputs: dict[str, Any],
    model: str = "echo-float32",
    version: str = "",
    raw: Sequence[bytes] = RAW,
    contents: Mapping[str, Sequence[float]] | None = None,
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Mapping[str, object]] | None = None,
) -> Any:
    """Make a request with Triton's own messages."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id="mine")
    for described in inputs:
        request.inputs.add(**described)
        for field, values in (contents or {}).items():
            getattr(request.inputs[-1].contents, field).extend(values)
    request.raw_input_contents.extend(raw)
    for name in outputs:
        request.outputs.add(name=name)
    for key, parameter in (parameters or {}).items():
        for field, value in parameter.items():
            setattr(request.parameters[key], field, value)
    return request


def calls() -> dict[str, Any]:
    """Return all of them by name."""
    x = tensor()
    half, byte = tensor(datatype="FP16", shape=[1, 2]), tensor(datatype="INT8", shape=[1, 2])
    return {
        "raw": call(x),
        "typed": call(x, raw=(), contents=FP32),
        "an output by name": call(x, outputs=["y"]),
        "a version": call(x, version="1"),
        "FP16, raw": call(half, model="echo-float16", raw=[b"\x00\x3c\x00\xc0"]),
        "wrong dtype": call(tensor(datatype="INT32")),
        "unknown dtype": call(tensor(datatype="FP12")),
        "wrong number of columns": call(tensor(shape=[1, 4])),
        "wrong rank": call(tensor(shape=[4])),
        "negative sizes": call(tensor(shape=[-2, -2])),
        "no rows": call(tensor(shape=[0, 2]), raw=[b""]),
        "raw, one byte short": call(x, raw=[RAW[0][:-1]]),
        "raw, one byte long": call(x, raw=[RAW[0] + b"x"]),
        "no data": call(x, raw=()),
        "raw twice": call(x, raw=RAW * 2),
        "raw and typed": call(x, contents=FP32),
        "typed in the wrong field": call(x, raw=(), contents={"int_contents": [1, 2, 3, 4]}),
        "typed, too few": call(x, raw=(), contents={"fp32_contents": [1, 2, 3]}),
        "typed, beyond its dtype": call(byte, model="echo-int8", raw=(), contents={"int_contents": [300, 1]}),
        "FP16, typed": call(half, model="echo-float16", raw=(), contents={"fp32_contents": [1, 2]}),
        "unknown input": call(tensor("z")),
        "an input twice": call(x, x, raw=RAW * 2),
        "an input too many": call(x, tensor("z"), raw=RAW * 2),
        "a missing input": call(tensor("a", shape=[1, 3]), model="add", raw=[bytes(12)]),
        "no inputs": call(raw=()),
        "unknown output": call(x, outputs=["z"]),
        "an output twice": call(x, outputs=["y", "y"]),
        "more rows than a batch may have": call(tensor(shape=[65, 2]), raw=[bytes(65 * 8)]),
        "unknown model": call(x, model="other"),
        "no model": call(x, model=""),
        "unknown version": call(x, version="9"),
        "a version that is text": call(x, version="one"),
        "a timeout that is text": call(x, parameters={"timeout": {"string_param": "soon"}}),
        "a negative priority": call(x, parameters={"priority": {"int64_param": -1}}),
    }


CHOSEN_CALLS = (
    Difference(
        what="gRPC: more `raw_input_contents` than inputs",
        ours="INVALID_ARGUMENT",
        theirs="OK",
        why="Triton ignores the rest",
        cases=("raw twice",),
    ),
    Difference(
        what="gRPC: an integer beyond its datatype, such as 300 for INT8",
        ours="INVALID_ARGUMENT",
        theirs="OK",
        why="Triton computes with 44",
        cases=("typed, beyond its dtype",),
    ),
    Difference(
        what="gRPC: an output named twice",
        ours="INVALID_ARGUMENT",
        theirs="OK",
        why="a slip of the client",
        cases=("an output twice",),
    ),
    Difference(
        what="gRPC: more rows than a batch may have",
        ours="OK",
        theirs="INVALID_ARGUMENT",
        why="the request is run in parts",
        cases=("more rows than a batch may have",),
    ),
    Difference(
        what="gRPC: a version that is text",
        ours="NOT_FOUND",
        theirs="INVALID_ARGUMENT",
        why="it could be a label",
        cases=("a version that is text",),
    ),
)
