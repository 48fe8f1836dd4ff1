"""Tensors survive the wire in every dtype and shape; whatever comes instead is refused in the words of the protocol."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.errors import MalformedRequest, TensorMismatch
from forwardpass.protocol import (
    DATATYPES,
    NAMES,
    decode_raw,
    decode_tensor,
    encode_list,
    encode_raw,
    raw_buffer,
)
from forwardpass.serve.oip import decode_infer, decode_raw_infer

DTYPES = sorted(DATATYPES.values())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["a", "b", "FP32", "BYTES", *NAMES.values()]),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn, dtypes: list[str] = DTYPES) -> tuple[Array, TensorSpec]:
    dtype, shape = draw(st.sampled_from(dtypes)), draw(SHAPES)
    spec = TensorSpec(name="x", dtype=dtype, shape=shape)
    if dtype != "object":
        return draw(hnp.arrays(np.dtype(dtype), shape)), spec
    texts = draw(st.lists(st.binary(max_size=6), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    return np.array([*texts, None], object)[:-1].reshape(shape), spec


@given(made=arrays())
def test_bytes_come_back_as_they_went(made: tuple[Array, TensorSpec]) -> None:
    array, spec = made
    data = encode_raw(array)
    assert bytes(raw_buffer(array)) == data
    came = decode_raw(data, array.shape, spec)
    assert (came.dtype, came.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(came, array)
    assert encode_raw(came) == data


@given(made=arrays([dtype for dtype in DTYPES if dtype not in ("object", "bool")]))
def test_layout_and_byte_order_do_not_show(made: tuple[Array, TensorSpec]) -> None:
    array, _ = made
    right = encode_raw(array)
    assert encode_raw(array.astype(array.dtype.newbyteorder(">"))) == right
    assert encode_raw(np.asfortranarray(array)) == right
    assert encode_raw(np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array) == right


@given(made=arrays([dtype for dtype in DTYPES if dtype != "object"]), is_flat=st.booleans())
def test_lists_come_back_as_they_went(made: tuple[Array, TensorSpec], is_flat: bool) -> None:
    array, spec = made
    array = np.nan_to_num(array, nan=1, posinf=2, neginf=3)
    is_listed = is_flat or not array.ndim or not array.size  # nested lists lose the sizes behind a size of 0
    values = encode_list(array) if is_listed else array.tolist()
    came = decode_tensor(msgspec.json.encode(values), array.shape, spec)
    assert (came.dtype, came.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(came, array)


@given(
    data=st.binary(max_size=60),
    shape=st.lists(st.one_of(st.integers(-2, 5), st.integers(-(2**70), 2**70)), max_size=18),
    dtype=st.sampled_from(DTYPES),
)
@example(data=b"", shape=[0, 2**62, 2**62], dtype="float32")
@example(data=b"", shape=[0, 2**63 - 1], dtype="object")
@example(data=b"\xff\xff\xff\xff", shape=[1], dtype="object")
def test_any_bytes_are_a_tensor_or_do_not_fit(data: bytes, shape: list[int], dtype: str) -> None:
    with suppress(TensorMismatch):
        array = decode_raw(data, shape, TensorSpec(name="x", dtype=dtype, shape=("n",)))
        assert array.shape == tuple(shape)


@given(
    data=st.binary(max_size=40)
    | st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4)).map(msgspec.json.encode),
    shape=st.lists(st.integers(-1, 4) | st.integers(2**40, 2**70), max_size=4).map(tuple),
    dtype=st.sampled_from(DTYPES),
)
@example(data=b"[]", shape=(0, 2**62, 2**62), dtype="float32")
def test_any_text_is_a_tensor_or_does_not_fit(data: bytes, shape: tuple[int, ...], dtype: str) -> None:
    with suppress(TensorMismatch):
        assert decode_tensor(data, shape, TensorSpec(name="x", dtype=dtype, shape=("n",))).shape == shape


# --- whole requests, changed in one place or several

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="a", dtype="float32", shape=("batch", 2)),
        TensorSpec(name="b", dtype="object", shape=("batch", "n")),
    ),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2)),),
)
ONE = Signature(inputs=SIGNATURE.inputs[:1], outputs=SIGNATURE.outputs)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "datatype", "data", "parameters", "timeout"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)


def request(*, is_binary: bool) -> tuple[dict[str, Any], bytes]:
    """Return a request that fits, and the bytes behind it."""
    a, b = np.ones((2, 2), np.float32), np.array([[b"x"], [b"yz"]], object)
    inputs: list[dict[str, Any]] = []
    for name, array, datatype in (("a", a, "FP32"), ("b", b, "BYTES")):
        described: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
        if is_binary:
            inputs.append(described | {"parameters": {"binary_data_size": len(encode_raw(array))}})
        else:
            inputs.append(described | {"data": encode_list(array)})
    document = {"id": "i", "inputs": inputs, "outputs": [{"name": "y"}], "parameters": {"timeout": 5, "priority": 1}}
    return document, encode_raw(a) + encode_raw(b) if is_binary else b""


def places(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every node of a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, child in inner for place in places(child, (*at, key)))]


@st.composite
def changed(draw: st.DrawFn) -> tuple[bytes, bytes, int | None]:
    """Replace or remove nodes of a good request, cut or lengthen its bytes, and shift where the JSON ends."""
    document, rest = request(is_binary=draw(st.booleans()))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([place for place in places(document) if place]))
        node: Any = document
        for key in way:
            node = node[key]
        if isinstance(node, dict) and draw(st.booleans()):
            del node[last]
        else:
            node[last] = draw(JSON)
    head = msgspec.json.encode(document)
    rest = draw(st.sampled_from([rest, rest[:-1], rest + b"\x00", b"", rest[4:]]))
    shift = draw(st.sampled_from([None, 0, -1, 1]))
    return head, rest, None if shift is None else min(max(len(head) + shift, 0), len(head) + len(rest))


@settings(max_examples=600)
@given(made=changed())
def test_a_changed_request_is_right_or_refused_with_words(made: tuple[bytes, bytes, int | None]) -> None:
    head, rest, num_json_bytes = made
    with suppress(MalformedRequest, TensorMismatch):
        call = decode_infer(head + rest, SIGNATURE, num_json_bytes=num_json_bytes)
        assert SIGNATURE.validate(call.tensors) == call.num_rows


@given(noise=st.binary(max_size=120), length=st.none() | st.integers(0, 120))
def test_noise_is_refused_with_words(noise: bytes, length: int | None) -> None:
    num_json_bytes = None if length is None else min(length, len(noise))
    with pytest.raises((MalformedRequest, TensorMismatch)):
        decode_infer(noise, SIGNATURE, num_json_bytes=num_json_bytes)
    with suppress(MalformedRequest, TensorMismatch):
        assert decode_raw_infer(noise, ONE).tensors["a"].shape == (1, 2)
