"""Messages of the gRPC service: whatever is in them, they are understood or refused in the words of the protocol."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from forwardpass.core.tensors import Dimension, Signature, TensorSpec
from forwardpass.errors import MalformedRequest, TensorMismatch
from forwardpass.protocol import DATATYPES, encode_raw
from forwardpass.serve.grpc_front import _decode
from forwardpass.serve.grpc_schema import message_class

FIELDS = ("bool_contents", "int_contents", "int64_contents", "uint_contents", "uint64_contents", "fp32_contents")
SIZES = st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 4) | st.sampled_from([2**62, 0])


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    dtypes = draw(st.lists(st.sampled_from(sorted(DATATYPES.values())), min_size=1, max_size=2))
    shapes: list[tuple[Dimension, ...]] = [("batch", 2), ("batch", "n"), ("batch", 0), ("n", "m")]
    shape = draw(st.sampled_from(shapes))
    specs = tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, dtype in zip("ab", dtypes, strict=False))
    return Signature(inputs=specs, outputs=(TensorSpec(name="y", dtype="float32", shape=shape),))


@st.composite
def messages(draw: st.DrawFn, signature: Signature) -> Any:
    """A request that is right in most places."""
    request = message_class("inference.ModelInferRequest")(model_name="m", id=draw(st.text(max_size=3)))
    is_raw = draw(st.booleans())
    for spec in signature.inputs:
        if draw(st.integers(0, 9)) == 0:
            continue
        datatype = next(name for name, dtype in DATATYPES.items() if dtype == spec.dtype)
        given_type = draw(st.sampled_from([datatype] * 6 + ["FP32", "BYTES", "", "nonsense"]))
        tensor = request.inputs.add(name=draw(st.sampled_from([spec.name] * 6 + ["z", ""])), datatype=given_type)
        rows = np.array([[b"x", b"y"]], object) if spec.dtype == "object" else np.ones((1, 2), spec.dtype)
        tensor.shape.extend(draw(st.sampled_from([[1, 2]] * 3) | st.lists(SIZES, max_size=18)))
        if is_raw:
            request.raw_input_contents.append(draw(st.sampled_from([encode_raw(rows)] * 3) | st.binary(max_size=20)))
        if not is_raw or draw(st.integers(0, 9)) == 0:
            field = draw(st.sampled_from(FIELDS))
            values = draw(st.lists(st.integers(0, 300), max_size=4))
            getattr(tensor.contents, field).extend(
                bool(value) if field == "bool_contents" else value for value in values
            )
    for name in draw(st.lists(st.sampled_from(["y", "z"]), max_size=2)):
        request.outputs.add(name=name)
    if draw(st.booleans()):
        key = draw(st.sampled_from(["timeout", "priority"]))
        kind = draw(st.sampled_from(["bool_param", "int64_param", "string_param"]))
        value: Any = {"bool_param": True, "int64_param": draw(st.integers(-5, 5)), "string_param": "x"}[kind]
        setattr(request.parameters[key], kind, value)
    return request


@settings(max_examples=500)
@given(data=st.data(), signature=signatures())
def test_a_message_is_understood_or_refused_with_words(data: st.DataObject, signature: Signature) -> None:
    request = data.draw(messages(signature))
    with suppress(MalformedRequest, TensorMismatch):
        call, _ = _decode(request, signature)
        assert signature.validate(call.tensors) == call.num_rows
