"""The codec of the Open Inference Protocol: every value survives it, and every mistake has its sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.errors import MalformedRequest, RequestError, TensorMismatch
from forwardpass.protocol import DATATYPES, decode_raw, decode_tensor, encode_raw
from forwardpass.serve.oip import (
    InferCall,
    ResponseWriter,
    decode_infer,
    decode_raw_infer,
    describe_tensors,
)

NAMES = {dtype: name for name, dtype in DATATYPES.items() if name != "BYTES"}
PIXELS = TensorSpec(name="pixels", dtype="float32", shape=("batch", 3))
IDS = TensorSpec(name="ids", dtype="int8", shape=("batch", "length"))
SIGNATURE = Signature(inputs=(PIXELS,), outputs=(TensorSpec(name="scores", dtype="float32", shape=("batch", 2)),))


@st.composite
def arrays(draw: st.DrawFn, *, min_dims: int = 1) -> Array:
    dtype = np.dtype(draw(st.sampled_from(sorted(NAMES))))
    shape = draw(hnp.array_shapes(min_dims=min_dims, max_dims=4, max_side=4))
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None
    return draw(hnp.arrays(dtype, shape, elements=elements))


def spec_of(array: Array) -> TensorSpec:
    return TensorSpec(name="x", dtype=array.dtype.name, shape=("batch", *array.shape[1:]))


def encode(array: Array, data: list[Any]) -> bytes:
    tensor = {"name": "x", "shape": array.shape, "datatype": NAMES[array.dtype.name], "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


@given(array=arrays(min_dims=0), is_flat=st.booleans())
def test_arrays_survive_the_list_form_flat_and_nested(array: Array, is_flat: bool) -> None:
    data = array.ravel().tolist() if is_flat or array.ndim == 0 else array.tolist()
    decoded = decode_tensor(json.dumps(data).encode(), array.shape, spec_of(array))
    assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(decoded, array)


@given(array=arrays().filter(lambda array: array.dtype != np.float16), is_flat=st.booleans())
def test_requests_survive_flat_and_nested(array: Array, is_flat: bool) -> None:
    spec = spec_of(array)
    signature = Signature(inputs=(spec,), outputs=(spec,))
    call = decode_infer(encode(array, array.ravel().tolist() if is_flat else array.tolist()), signature)
    assert call.tensors["x"].dtype == array.dtype
    np.testing.assert_array_equal(call.tensors["x"], array)


@given(array=arrays())
def test_responses_read_back_the_same(array: Array) -> None:
    written = ResponseWriter("m", "1").write(
        {"x": array}, InferCall(tensors={}, num_rows=1, id="7", timeout_s=None, outputs=())
    )
    document = json.loads(written)
    tensor = document["outputs"][0]
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "1", "7")
    assert (tensor["name"], tensor["datatype"]) == ("x", NAMES[array.dtype.name])
    np.testing.assert_array_equal(np.array(tensor["data"], array.dtype).reshape(tensor["shape"]), array)


def test_values_that_are_not_finite_are_written_as_null_and_float32_in_its_own_shortest_digits() -> None:
    values = np.array([np.nan, np.inf, 0.1], np.float32)
    call = InferCall(tensors={}, num_rows=1, id=None, timeout_s=None, outputs=("x",))
    document = json.loads(ResponseWriter("m", "1").write({"x": values, "y": values}, call))
    assert [tensor["name"] for tensor in document["outputs"]] == ["x"]
    assert document["outputs"][0]["data"][:2] == [None, None]
    assert np.float32(document["outputs"][0]["data"][2]) == values[2]
    assert "id" not in document


def test_a_dynamic_axis_is_described_as_minus_one() -> None:
    assert describe_tensors([IDS]) == [{"name": "ids", "datatype": "INT8", "shape": [-1, -1]}]


def test_wishes_are_read() -> None:
    body = json.dumps(
        {
            "id": "a",
            "parameters": {"timeout": 2_000_000},
            "inputs": [{"name": "pixels", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}],
            "outputs": [{"name": "scores"}],
        }
    ).encode()
    call = decode_infer(body, SIGNATURE)
    assert (call.id, call.num_rows, call.timeout_s, call.outputs) == ("a", 1, 2.0, ("scores",))


def tensor(**changes: object) -> dict[str, object]:
    given = {"name": "pixels", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]} | changes
    return {"inputs": [{key: value for key, value in given.items() if value is not None}]}


SEND = '{"inputs": [{"name": "pixels", "shape": [batch, 3], "datatype": "FP32", "data": […]}]}'
MISTAKES: list[tuple[object, str]] = [
    (tensor(name="pixel"), "Input 'pixel' is not an input of this model; expected the inputs pixels."),
    ({"inputs": []}, "Input 'pixels' is missing; expected float32[batch, 3]."),
    ({"inputs": [*tensor()["inputs"], *tensor()["inputs"]]},  # type: ignore[misc]
     "Input 'pixels' is given twice; expected each input once."),
    (tensor(datatype="FP99"), "Input 'pixels' has the datatype 'FP99'; expected FP32 (float32[batch, 3])."),
    (tensor(datatype="INT64"), "Input 'pixels' has the datatype 'INT64'; expected FP32 (float32[batch, 3])."),
    (tensor(datatype="FP16"), "Input 'pixels' has the datatype 'FP16'; expected FP32 (float32[batch, 3])."),
    (tensor(data=None), "Input 'pixels' has no 'data'; expected float32[batch, 3]."),
    (tensor(data=None, parameters={"binary_data_size": 12}),
     "Input 'pixels' announces 12 bytes; expected at most the 0 that follow."),
    (tensor(parameters={"binary_data_size": 0}), "Input 'pixels' has 'data' and binary data; expected one of the two."),
    (tensor() | {"parameters": {"priority": -1}},
     "Malformed request: the parameter 'priority' must be a whole number from 1 (highest) to 9."),
    (tensor() | {"outputs": [{"name": "scores"}, {"name": "scores"}]}, "Malformed request: an output is named twice."),
    (tensor(data=[1.0]), "Input 'pixels' has 1 elements for the shape [1, 3]; expected 3 elements."),
    (tensor(data=[[1.0, 2.0]]), "Input 'pixels' is nested as [1, 2] but has the shape [1, 3]; expected [1, 3]."),
    (tensor(shape=[2, 3], data=[[1, 2, 3], [4]]),
     "Input 'pixels' has a value beyond FP32, or rows of different lengths; expected float32[batch, 3]."),
    (tensor(shape=[-1, -3]), "Input 'pixels' has the impossible shape [-1, -3]; expected float32[batch, 3]."),
    (tensor(shape=[1] * 1000),
     "Input 'pixels' has the impossible shape [1, 1, 1, 1, 1, 1, 1, 1, …]; expected float32[batch, 3]."),
    (tensor(shape=[10**18, 10**18]),
     f"Input 'pixels' has 3 elements for the shape [{10**18}, {10**18}]; expected {10**36} elements."),
    (tensor(shape=[2**63, 3]), f"Input 'pixels' has the impossible shape [{2**63}, 3]; expected float32[batch, 3]."),
    (tensor(shape=[0, 3], data=[]), "Input 'pixels' is empty along axis 0 (batch); expected at least one element."),
    (tensor(shape=[3]), "Input 'pixels' has shape [3]; expected float32[batch, 3]."),
    (tensor(shape=[3, 1]), "Input 'pixels' has shape [3, 1]; expected float32[batch, 3]."),
    (tensor(data=[1e300, 0, 0]), "Input 'pixels' has a value beyond FP32; expected float32[batch, 3]."),
    (tensor(data=["1", 0, 0]),
     ("Input 'pixels' has data that does not fit (Expected `array`, got `str` - at `$[0]`); "
      "expected a flat or nested list for float32[batch, 3].")),
    ([], f"Malformed request: Expected `object`, got `array`; send {SEND}."),
    ({"instances": [[1, 2, 3]]}, f"Malformed request: Object missing required field `inputs`; send {SEND}."),
    (tensor() | {"parameters": {"timeout": 0}},
     "Malformed request: the parameter 'timeout' must be a positive number of microseconds."),
    (tensor() | {"parameters": {"timeout": True}},
     "Malformed request: the parameter 'timeout' must be a positive number of microseconds."),
    (tensor() | {"outputs": [{"name": "scores", "parameters": {"classification": 3}}]},
     "Malformed request: the parameter 'classification' of the output 'scores' is not supported."),
    (tensor(data=None, parameters={"shared_memory_region": "a", "shared_memory_byte_size": 12}),
     "Malformed request: the parameter 'shared_memory_region' of the input 'pixels' is not supported."),
    (tensor() | {"outputs": [{"name": "logits"}]},
     "Malformed request: there is no output 'logits'; the model has scores."),
]  # fmt: skip


@pytest.mark.parametrize(("body", "sentence"), MISTAKES, ids=[sentence[:60] for _, sentence in MISTAKES])
def test_every_mistake_has_its_sentence(body: object, sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode_infer(json.dumps(body).encode(), SIGNATURE)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("value", "dtype"), [(128, "int8"), (-1, "uint8"), (2**64, "uint64"), (10**400, "int64"), (-(2**63) - 1, "int64")]
)
def test_an_integer_beyond_its_dtype_is_refused_and_never_wraps(value: int, dtype: str) -> None:
    spec = TensorSpec(name="ids", dtype=dtype, shape=("batch",))
    with pytest.raises(TensorMismatch) as caught:
        decode_tensor(str([value]).encode(), (1,), spec)
    sentence = f"Input 'ids' has a value beyond {NAMES[dtype]}, or rows of different lengths; expected {dtype}[batch]."
    assert str(caught.value) == sentence


def test_half_precision_does_not_go_through_json() -> None:
    half = TensorSpec(name="x", dtype="float16", shape=("batch",))
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP16", "data": [0.5]}]}
    with pytest.raises(TensorMismatch, match="is FP16, which JSON cannot carry exactly; expected binary data"):
        decode_infer(json.dumps(body).encode(), Signature(inputs=(half,), outputs=()))


# --- binary


def announce(array: Array, size: int, name: str = "x") -> dict[str, object]:
    return {
        "name": name,
        "shape": array.shape,
        "datatype": NAMES.get(array.dtype.name, "BYTES"),
        "parameters": {"binary_data_size": size},
    }


@given(given_arrays=st.lists(arrays(), min_size=1, max_size=3), is_flat=st.booleans())
def test_tensors_survive_as_bytes_in_any_number_and_next_to_json(given_arrays: list[Array], is_flat: bool) -> None:
    inputs, specs, raw = [], [], []
    for number, array in enumerate(given_arrays):
        name = f"x{number}"
        specs.append(
            TensorSpec(name=name, dtype=array.dtype.name, shape=tuple(f"{name}_{i}" for i in range(array.ndim)))
        )
        if number == 1 and array.dtype != np.float16:
            data = array.ravel().tolist() if is_flat else array.tolist()
            inputs.append({"name": name, "shape": array.shape, "datatype": NAMES[array.dtype.name], "data": data})
        else:
            raw.append(array.tobytes())
            inputs.append(announce(array, len(raw[-1]), name))
    head = json.dumps({"inputs": inputs}).encode()
    signature = Signature(inputs=tuple(specs), outputs=())
    call = decode_infer(head + b"".join(raw), signature, num_json_bytes=len(head))
    for number, array in enumerate(given_arrays):
        decoded = call.tensors[f"x{number}"]
        assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(decoded, array)


@given(texts=st.lists(st.binary(max_size=9), max_size=6))
def test_strings_survive_as_bytes(texts: list[bytes]) -> None:
    spec = TensorSpec(name="x", dtype="object", shape=("batch",))
    array = np.empty(len(texts), object)
    array[:] = texts
    assert decode_raw(encode_raw(array), (len(texts),), spec).tolist() == texts


@given(noise=st.binary(max_size=40), shape=st.lists(st.integers(-2, 2**70), max_size=4), is_text=st.booleans())
def test_any_bytes_for_any_shape_are_a_tensor_or_a_sentence(noise: bytes, shape: list[int], is_text: bool) -> None:
    spec = TensorSpec(name="x", dtype="object" if is_text else "int16", shape=("batch",))
    with suppress(TensorMismatch):
        assert decode_raw(noise, shape, spec).shape == tuple(shape)


@given(
    noise=st.binary(max_size=60),
    size=st.one_of(st.integers(-5, 2**65), st.text(max_size=3), st.none(), st.booleans()),
    cut=st.integers(0, 200),
)
def test_any_announcement_over_any_bytes_is_a_tensor_or_a_sentence(noise: bytes, size: object, cut: int) -> None:
    head = json.dumps({"inputs": [announce(np.zeros((1, 3), np.float32), 0, "pixels")]})
    body = head.replace('_size": 0', f'_size": {json.dumps(size)}').encode() + noise
    with suppress(RequestError):
        call = decode_infer(body, SIGNATURE, num_json_bytes=min(cut, len(body)))
        assert call.tensors["pixels"].shape == (1, 3)


@given(array=arrays())
def test_binary_answers_hold_the_bytes_that_they_announce(array: Array) -> None:
    call = InferCall(tensors={}, num_rows=1, binary=frozenset({"y"}))
    body, num_json_bytes = ResponseWriter("m", "1").write_binary({"x": array, "y": array}, call)
    in_json, in_bytes = json.loads(body[:num_json_bytes])["outputs"]
    assert in_json["data"] == array.ravel().tolist()
    assert in_bytes["parameters"] == {"binary_data_size": array.nbytes}
    assert body[num_json_bytes:] == array.tobytes()


@pytest.mark.parametrize("length", [1, 5])
def test_a_raw_body_is_one_row_whose_length_the_bytes_tell(length: int) -> None:
    signature = Signature(inputs=(IDS,), outputs=())
    call = decode_raw_infer(bytes(range(length)), signature)
    assert (call.num_rows, call.tensors["ids"].tolist()) == (1, [list(range(length))])


DEEP = b"[" * 250_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"{",
        DEEP,
        b'{"inputs":' + DEEP,
        b'{"inputs":[],"parameters":{"a":' + DEEP,
        b'{"inputs":[{"name":"pixels","shape":[1,3],"datatype":"FP32","data":' + DEEP + b"]" * 250_000 + b"}]}",
        b'{"inputs":[{"name":"pixels","shape":[1,3],"datatype":"FP32","data":[NaN,1,2]}]}',
        b'{"inputs":[{"name":"pixels","shape":[1,3],"datatype":"FP32","data":[Infinity,1,2]}]}',
        b'{"inputs":[{"name":"\\ud800","shape":[1,3],"datatype":"FP32","data":[0,1,2]}]}',
        b'{"inputs":[{"name":"pixels","shape":[%s,3],"datatype":"FP32","data":[0,1,2]}]}' % (b"9" * 5000),
        b'{"inputs":[{"name":"pixels","shape":[1,3],"datatype":"FP32","data":[%s,1,2]}]}' % (b"9" * 5000),
        b'{"inputs":[{"name":"pixels","shape":[1,3],"datatype":"FP32","data":[1e999,1,2]}]}',
        b'{"inputs":[],"parameters":{"timeout":%s}}' % (b"9" * 5000),
    ],
)
def test_bytes_that_no_client_should_send_are_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        decode_infer(body, SIGNATURE)


@pytest.mark.parametrize("timeout", ["1" + "0" * 300, "1" + "0" * 3000])
def test_a_timeout_beyond_all_reason_is_cut_to_an_hour(timeout: str) -> None:
    body = json.dumps(tensor() | {"parameters": {"timeout": 1}}).replace(": 1}}", f": {timeout}}}}}")
    assert decode_infer(body.encode(), SIGNATURE).timeout_s == 3600.0


@given(junk=st.binary(max_size=200))
def test_no_bytes_at_all_raise_anything_but_a_request_error(junk: bytes) -> None:
    with pytest.raises(MalformedRequest):
        decode_infer(junk, SIGNATURE)
