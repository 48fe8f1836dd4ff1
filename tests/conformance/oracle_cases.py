"""Requests of the Open Inference Protocol, right and wrong ones, to be sent to two servers alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from forwardpass.core.tensors import Array
from forwardpass.protocol import JSON_LENGTH_HEADER, NAMES, encode_list, raw_buffer

__all__ = ["CHOSEN", "FATAL", "Case", "Difference", "cases", "chosen_table", "edges"]

NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request; `name` tells what is special about it."""

    name: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


def edges(dtype: str) -> Array:
    """Return two rows with the ends of a dtype's range."""
    if dtype == "bool":
        return np.array([[True, False], [False, True]])
    limits: Any = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    return np.array([[limits.min, limits.max], [0, 1]], dtype)


def tensor(name: str, array: Array, /, **changes: object) -> dict[str, object]:
    """Describe an input without its data."""
    described = {"name": name, "shape": list(array.shape), "datatype": NAMES[array.dtype.name]} | changes
    return {key: value for key, value in described.items() if value is not None}


def in_json(case: str, model: str, /, *inputs: dict[str, object], **fields: object) -> Case:
    """Write a request in JSON."""
    return Case(name=case, path=f"/v2/models/{model}/infer", body=json.dumps({"inputs": inputs, **fields}).encode())


def in_bytes(
    case: str, model: str, inputs: list[tuple[dict[str, object], bytes]], *, length: str | None = None, **fields: object
) -> Case:
    """Write a request with its tensors behind the JSON; `length` is what its header says where that is wrong."""
    described = [
        tensor if "parameters" in tensor else tensor | {"parameters": {"binary_data_size": len(piece)}}
        for tensor, piece in inputs
    ]
    parameters = {"binary_data_output": True}
    head = json.dumps({"inputs": described, "parameters": parameters, **fields}).encode()
    headers = {JSON_LENGTH_HEADER: str(len(head)) if length is None else length}
    body = head + b"".join(piece for _, piece in inputs)
    return Case(name=case, path=f"/v2/models/{model}/infer", body=body, headers=headers)


def cases() -> list[Case]:
    """Return all of them."""
    return [*valid(), *wrong_tensors(), *wrong_bodies(), *wrong_sizes(), *wrong_places()]


ROWS = edges("float32")
LISTED = ROWS.ravel().tolist()
RAW = bytes(raw_buffer(ROWS))
A, B = np.array([[1, 2, 3]], np.float32), np.array([[10, 20, 30]], np.float32)


def valid() -> Iterator[Case]:
    """What every server has to answer."""
    for dtype in ("bool", "float16", *NUMBERS):
        array = edges(dtype)
        yield in_bytes(f"{dtype} as bytes", f"echo-{dtype}", [(tensor("x", array), bytes(raw_buffer(array)))])
        yield in_json(f"{dtype} in JSON", f"echo-{dtype}", tensor("x", array, data=encode_list(array)))
        yield in_json(f"{dtype} in JSON, nested", f"echo-{dtype}", tensor("x", array, data=array.tolist()))
    yield in_bytes(
        "two inputs", "add", [(tensor(name, one), bytes(raw_buffer(one))) for name, one in (("a", A), ("b", B))]
    )
    swapped = [(tensor(name, one), bytes(raw_buffer(one))) for name, one in (("b", B), ("a", A))]
    yield in_bytes("inputs in another order", "add", swapped)
    mixed = [(tensor("a", A), bytes(raw_buffer(A))), (tensor("b", B, data=B.ravel().tolist(), parameters={}), b"")]
    yield in_bytes("one input as bytes, one in JSON", "add", mixed)
    yield in_json("an id", "echo-float32", tensor("x", ROWS, data=LISTED), id="mine")
    yield in_json("outputs by name", "echo-float32", tensor("x", ROWS, data=LISTED), outputs=[{"name": "y"}])
    wanted = [{"name": "y", "parameters": {"binary_data": True}}]
    yield in_json("JSON in, bytes out", "echo-float32", tensor("x", ROWS, data=LISTED), outputs=wanted)
    versioned = in_json("a version", "echo-float32", tensor("x", ROWS, data=LISTED))
    yield Case(name="a version", path="/v2/models/echo-float32/versions/1/infer", body=versioned.body)
    yield in_json("unknown fields", "echo-float32", tensor("x", ROWS, data=LISTED, colour="red"), colour="red")
    yield in_bytes("NaN and infinities as bytes", "echo-float32", [_not_finite()])
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/add", "/v2/models/add/ready"):
        yield Case(name=f"GET {path}", path=path, method="GET")


def _not_finite() -> tuple[dict[str, object], bytes]:
    array = np.array([[np.nan, np.inf], [-np.inf, -0.0]], np.float32)
    return tensor("x", array), bytes(raw_buffer(array))


def wrong_tensors() -> Iterator[Case]:
    """Tensors that do not fit the model or themselves."""
    model = "echo-float32"
    changed: dict[str, dict[str, object]] = {
        "wrong dtype": {"datatype": "INT32"},
        "unknown dtype": {"datatype": "FP12"},
        "dtype in small letters": {"datatype": "fp32"},
        "wrong number of columns": {"shape": [1, 4]},
        "wrong rank": {"shape": [4]},
        "a rank too many": {"shape": [2, 2, 1]},
        "too few elements": {"data": LISTED[:3]},
        "too many elements": {"data": [*LISTED, 1.0]},
        "a negative size": {"shape": [-2, -2]},
        "a size too large for memory": {"shape": [2**40, 2]},
        "a size beyond 64 bits": {"shape": [2**70, 2]},
        "a fractional size": {"shape": [2.0, 2]},
        "no rows": {"shape": [0, 2], "data": []},
        "no data": {"data": None},
        "data that are text": {"data": ["a", "b", "c", "d"]},
        "data that are null": {"data": [None] * 4},
        "data that are true": {"data": [True] * 4},
        "data that are no list": {"data": 1.0},
        "rows of different lengths": {"data": [[1.0, 2.0, 3.0], [4.0]]},
        "nested otherwise than the shape": {"data": [[1.0], [2.0], [3.0], [4.0]]},
        "no shape": {"shape": None},
        "no dtype": {"datatype": None},
        "no name": {"name": None},
        "unknown input": {"name": "z"},
        "more rows than a batch may have": {"shape": [65, 2], "data": [1.0] * 130},
    }
    for name, changes in changed.items():
        yield in_json(name, model, tensor("x", ROWS, **{"data": LISTED, **changes}))
    yield in_json("an integer beyond its dtype", "echo-int8", tensor("x", edges("int8"), data=[128, 0, 0, 0]))
    yield in_json("a fraction for an integer", "echo-int32", tensor("x", edges("int32"), data=[1.5, 0, 0, 0]))
    yield in_json("a float beyond its dtype", model, tensor("x", ROWS, data=[1e39, 0, 0, 0]))
    yield in_json("a negative unsigned integer", "echo-uint8", tensor("x", edges("uint8"), data=[-1, 0, 0, 0]))
    yield in_json("numbers for booleans", "echo-bool", tensor("x", edges("bool"), data=[1, 0, 1, 0]))
    bools = (tensor("x", edges("bool")), b"\x02\x00\x01\xff")
    yield in_bytes("booleans that are neither 0 nor 1", "echo-bool", [bools])
    yield in_json("a missing input", "add", tensor("a", A, data=A.ravel().tolist()))
    yield in_json("an input too many", model, tensor("x", ROWS, data=LISTED), tensor("z", ROWS, data=LISTED))
    yield in_json("an input twice", model, tensor("x", ROWS, data=LISTED), tensor("x", ROWS, data=LISTED))
    yield in_json("inputs of different batch sizes", "add", *(_term(name, rows) for name, rows in (("a", 1), ("b", 2))))
    yield in_json("unknown output", model, tensor("x", ROWS, data=LISTED), outputs=[{"name": "z"}])
    yield in_json("an output twice", model, tensor("x", ROWS, data=LISTED), outputs=[{"name": "y"}, {"name": "y"}])
    classes = {"name": "y", "parameters": {"classification": 1}}
    yield in_json("an output as classes", model, tensor("x", ROWS, data=LISTED), outputs=[classes])
    shared = {"shared_memory_region": "unknown", "shared_memory_byte_size": 16}
    yield in_json(
        "an output in shared memory",
        model,
        tensor("x", ROWS, data=LISTED),
        outputs=[{"name": "y", "parameters": shared}],
    )
    yield in_json("an input in shared memory", model, tensor("x", ROWS, parameters=shared))


def _term(name: str, num_rows: int) -> dict[str, object]:
    array = np.ones((num_rows, 3), np.float32)
    return tensor(name, array, data=array.ravel().tolist())


def wrong_bodies() -> Iterator[Case]:
    """Bodies that are not the protocol's JSON."""
    path = "/v2/models/echo-float32/infer"
    good = json.dumps({"inputs": [tensor("x", ROWS, data=LISTED)]}).encode()
    for name, body in {
        "an empty body": b"",
        "no JSON": b"{nonsense",
        "cut-off JSON": good[:-2],
        "something after the JSON": good + b"x",
        "a list": b"[]",
        "a number": b"7",
        "null": b"null",
        "no inputs": b"{}",
        "inputs that are no list": b'{"inputs": 7}',
        "an empty list of inputs": b'{"inputs": []}',
        "an input that is no object": b'{"inputs": [7]}',
        "parameters that are no object": good[:-1] + b', "parameters": 7}',
        "an id that is a number": good[:-1] + b', "id": 7}',
        "outputs that are no list": good[:-1] + b', "outputs": 7}',
        "an output without a name": good[:-1] + b', "outputs": [{}]}',
        "bytes that are no UTF-8": b'{"inputs": [{"name": "\xff"}]}',
        "nested without end": b'{"inputs": ' + b"[" * 100_000,
        "a timeout that is text": good[:-1] + b', "parameters": {"timeout": "soon"}}',
        "a negative priority": good[:-1] + b', "parameters": {"priority": -1}}',
    }.items():
        yield Case(name=name, path=path, body=body)


def wrong_sizes() -> Iterator[Case]:
    """Lengths of the JSON and of the tensors behind it that do not fit."""
    model, described = "echo-float32", tensor("x", ROWS)
    right = in_bytes("", model, [(described, RAW)])
    for name, length in {
        "a negative length of the JSON": "-1",
        "a length of the JSON beyond the body": str(len(right.body) + 1),
        "a huge length of the JSON": "9" * 30,
        "a length of the JSON that is text": "many",
        "an empty length of the JSON": "",
        "a length of the JSON with a sign": f"+{right.headers[JSON_LENGTH_HEADER]}",
        "a length of the JSON one too short": str(int(right.headers[JSON_LENGTH_HEADER]) - 1),
        "a length of the JSON one too long": str(int(right.headers[JSON_LENGTH_HEADER]) + 1),
        "a length of the JSON of the whole body": str(len(right.body)),
    }.items():
        yield in_bytes(name, model, [(described, RAW)], length=length)
    for name, size in {
        "binary data announced one byte short": len(RAW) - 1,
        "binary data announced one byte long": len(RAW) + 1,
        "binary data of a negative size": -1,
        "binary data of a size that is text": "16",
        "binary data of a size that is true": True,
        "binary data of no size": None,
        "binary data of a huge size": 2**62,
    }.items():
        yield in_bytes(name, model, [(described | {"parameters": {"binary_data_size": size}}, RAW)])
    yield in_bytes("binary data one byte short", model, [(described, RAW[:-1])])
    yield in_bytes("binary data one byte long", model, [(described, RAW + b"x")])
    yield in_bytes("binary data of nothing", model, [(described, b"")])
    spare = {"parameters": {"binary_data_size": len(RAW)}}
    yield in_bytes("bytes that belong to no input", model, [(described | spare, RAW + b"x")])
    yield in_bytes("binary data and data in JSON", model, [(described | {"data": LISTED}, RAW)])
    one = in_bytes("", model, [(tensor("x", ROWS[:1]), RAW[:8])]).body[-8:]
    for name, body in {
        "nothing but the bytes of a row": one,
        "nothing but bytes, one short": one[:-1],
        "nothing but the bytes of two rows": one * 2,
    }.items():
        yield Case(name=name, path=f"/v2/models/{model}/infer", body=body, headers={JSON_LENGTH_HEADER: "0"})


def wrong_places() -> Iterator[Case]:
    """Models, versions and routes that are not there."""
    body = json.dumps({"inputs": [tensor("x", ROWS, data=LISTED)]}).encode()
    for path in (
        "/v2/models/other/infer",
        "/v2/models/echo-float32/versions/9/infer",
        "/v2/models/echo-float32/versions/one/infer",
        "/v2/models/echo-float32/versions/-1/infer",
        "/v2/models/echo-float32/other",
        "/v3",
    ):
        yield Case(name=f"POST {path}", path=path, body=body)
    for path in (
        "/v2/models/other",
        "/v2/models/other/ready",
        "/v2/models/echo-float32/versions/9",
        "/v2/models/echo-float32/versions/9/ready",
        "/v2/models/other/config",
        "/v2/models/echo-float32/infer",
    ):
        yield Case(name=f"GET {path}", path=path, method="GET")


# --- what we choose to do otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Cases in which we answer otherwise than Triton on purpose; `theirs` is None where the server ends."""

    what: str
    ours: int | str
    theirs: int | str | None
    why: str
    cases: tuple[str, ...]

    def row(self) -> str:
        """Return its line of the table in the documentation."""
        return f"| {self.what} | {self.ours} | {self.theirs or 'the server ends'} | {self.why} |"


CHOSEN = (
    Difference(
        what="malformed JSON; a field that is missing or of another type; values or sizes that do not fit",
        ours=400,
        theirs=500,
        why="the request is at fault, and sending it again is no use",
        cases=(
            "wrong dtype",
            "too few elements",
            "too many elements",
            "a negative size",
            "a size beyond 64 bits",
            "a fractional size",
            "data that are text",
            "data that are null",
            "data that are true",
            "data that are no list",
            "no shape",
            "no dtype",
            "no name",
            "a fraction for an integer",
            "a negative unsigned integer",
            "numbers for booleans",
            "no JSON",
            "cut-off JSON",
            "something after the JSON",
            "a list",
            "a number",
            "null",
            "no inputs",
            "inputs that are no list",
            "parameters that are no object",
            "an id that is a number",
            "outputs that are no list",
            "an output without a name",
            "nested without end",
            "a timeout that is text",
            "a negative priority",
            "a length of the JSON one too short",
            "a length of the JSON one too long",
            "a length of the JSON of the whole body",
            "binary data of a negative size",
            "binary data of a size that is text",
            "binary data of a size that is true",
            "binary data of no size",
        ),
    ),
    Difference(
        what="a shape too large for memory",
        ours=400,
        theirs=None,
        why="the number of elements is checked before anything is reserved",
        cases=("a size too large for memory",),
    ),
    Difference(
        what="an integer beyond its datatype, such as 128 for INT8",
        ours=400,
        theirs=200,
        why="Triton computes with -128",
        cases=("an integer beyond its dtype",),
    ),
    Difference(
        what="a float beyond its datatype, such as 1e39 for FP32",
        ours=400,
        theirs=200,
        why="Triton computes with infinity, and answers `Infinity`, which is no JSON",
        cases=("a float beyond its dtype",),
    ),
    Difference(
        what="lists nested otherwise than the shape, or of different lengths",
        ours=400,
        theirs=200,
        why="Triton takes the elements in their order; the shape says something else than the data",
        cases=("rows of different lengths", "nested otherwise than the shape"),
    ),
    Difference(
        what="an output named twice", ours=400, theirs=200, why="a slip of the client", cases=("an output twice",)
    ),
    Difference(
        what="an output as classes (`classification`)",
        ours=400,
        theirs=200,
        why="that extension is not announced, and a client would misread a plain tensor",
        cases=("an output as classes",),
    ),
    Difference(
        what="a tensor in a shared memory region that is not registered",
        ours=400,
        theirs=404,
        why="no region can be registered here",
        cases=("an output in shared memory", "an input in shared memory"),
    ),
    Difference(
        what="`Inference-Header-Content-Length: +148`",
        ours=400,
        theirs=200,
        why="the header is digits, as Content-Length is",
        cases=("a length of the JSON with a sign",),
    ),
    Difference(
        what="more rows than a batch may have",
        ours=200,
        theirs=400,
        why="the request is run in parts",
        cases=("more rows than a batch may have",),
    ),
    Difference(
        what="`/ready` of a model or version that is not there",
        ours=404,
        theirs=400,
        why="as for every other route of it",
        cases=("GET /v2/models/other/ready", "GET /v2/models/echo-float32/versions/9/ready"),
    ),
)
FATAL = {case for difference in CHOSEN if difference.theirs is None for case in difference.cases}
"""What the other server does not survive."""


def chosen_table(differences: Sequence[Difference]) -> str:
    """Return the table in the documentation."""
    head = ["| request | here | Triton 2.51 | why |", "|---|---|---|---|"]
    return "\n".join([*head, *(difference.row() for difference in differences)])
