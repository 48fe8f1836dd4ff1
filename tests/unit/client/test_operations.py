"""What a client writes the server reads, and the other way round; a bad answer is never anything else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forwardpass.client import operations
from forwardpass.client.addresses import parse_url
from forwardpass.client.operations import Operation
from forwardpass.client.receiving import Answer, BadAnswer
from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.errors import InvalidOption
from forwardpass.protocol import DATATYPES, JSON_LENGTH_HEADER
from forwardpass.serve.oip import InferCall, ResponseWriter, decode_infer

WRITER = ResponseWriter("m", "1")


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(sorted(DATATYPES.values())))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    if dtype == "object":
        texts = draw(st.lists(st.binary(max_size=9), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        return np.array([*texts, None], object)[:-1].reshape(shape)
    return draw(hnp.arrays(dtype, shape))


def infer(array: Array, *, is_binary: bool = True, **changes: Any) -> Operation[dict[str, Array]]:
    named: dict[str, Any] = {"version": None, "outputs": None, "timeout_s": None, "priority": None} | changes
    return operations.infer("m", {"x": array}, is_binary=is_binary, **named)


def signature_for(array: Array) -> Signature:
    dtype = "object" if array.dtype == object else array.dtype.name
    spec = TensorSpec(name="x", dtype=dtype, shape=("batch", *array.shape[1:]))
    return Signature(inputs=(spec,), outputs=(TensorSpec(name="y", dtype=spec.dtype, shape=spec.shape),))


def serve(operation: Operation[Any], signature: Signature) -> tuple[InferCall, Answer]:
    """Do what the server does, with the input as the output."""
    call = decode_infer(b"".join(operation.body), signature, num_json_bytes=operation.num_json_bytes)
    outputs = {"y": call.tensors["x"]}
    if not call.binary:
        return call, Answer(status=200, headers={}, body=WRITER.write(outputs, call), keeps_alive=True)
    body, length = WRITER.write_binary(outputs, call)
    return call, Answer(status=200, headers={JSON_LENGTH_HEADER: str(length)}, body=body, keeps_alive=True)


@given(array=arrays(), names=st.sampled_from([None, ["y"]]))
def test_tensors_survive_client_and_server_in_bytes(array: Array, names: list[str] | None) -> None:
    operation = infer(array, outputs=names)
    came = operation.read(serve(operation, signature_for(array))[1])["y"]
    assert (came.dtype, came.shape, came.flags.aligned) == (array.dtype, array.shape, True)
    np.testing.assert_array_equal(came, array)


@given(array=arrays().filter(lambda array: array.dtype not in (object, np.float16)))
def test_tensors_survive_client_and_server_in_json(array: Array) -> None:
    array = np.nan_to_num(array, posinf=1, neginf=-1)
    operation = infer(array, is_binary=False)
    came = operation.read(serve(operation, signature_for(array))[1])["y"]
    np.testing.assert_array_equal(came, array)


def test_what_is_not_finite_comes_back_as_null_in_json() -> None:
    body = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[null,1]}]}'
    came = infer(np.zeros(1)).read(Answer(status=200, headers={}, body=body, keeps_alive=True))["y"]
    np.testing.assert_array_equal(came, np.array([np.nan, 1], np.float32))


def test_the_callers_wishes_are_in_the_request() -> None:
    array = np.ones((2, 3), np.float32)
    operation = infer(array, timeout_s=0.25, priority=2, outputs=["y"], version="a b")
    call, _ = serve(operation, signature_for(array))
    assert (call.timeout_s, call.priority, call.outputs, call.binary) == (0.25, 2, ("y",), frozenset({"y"}))
    assert operation.path == "/v2/models/m/versions/a%20b/infer"


@example(noise=b"{}", text="²")
@example(noise=b"{}", text="9" * 5000)
@given(noise=st.binary(max_size=200), text=st.one_of(st.none(), st.text(max_size=5), st.integers(-3, 300).map(str)))
def test_noise_is_a_bad_answer(noise: bytes, text: str | None) -> None:
    headers = {} if text is None else {JSON_LENGTH_HEADER: text}
    with suppress(BadAnswer):
        infer(np.zeros(1)).read(Answer(status=200, headers=headers, body=noise, keeps_alive=True))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.text(max_size=4), st.sampled_from(["BYTES"])),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
OUTPUT = st.fixed_dictionaries(
    {"name": JSON | st.just("y"), "datatype": JSON | st.sampled_from(sorted(DATATYPES)), "shape": JSON},
    optional={"data": JSON, "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "x"]), JSON)},
)


@given(outputs=st.lists(OUTPUT, max_size=3), rest=st.binary(max_size=40), is_binary=st.booleans())
def test_any_json_is_a_bad_answer_or_arrays(outputs: list[Any], rest: bytes, is_binary: bool) -> None:
    head = msgspec.json.encode({"outputs": outputs}) if _fits(outputs) else b"{}"
    headers = {JSON_LENGTH_HEADER: str(len(head))} if is_binary else {}
    answer = Answer(status=200, headers=headers, body=head + rest if is_binary else head, keeps_alive=True)
    with suppress(BadAnswer):
        assert all(isinstance(array, np.ndarray) for array in infer(np.zeros(1)).read(answer).values())


def _fits(value: object) -> bool:
    try:
        msgspec.json.encode(value)
    except OverflowError:
        return False
    return True


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("localhost", "http://localhost:80"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://models.example.org/shop/", "https://models.example.org:443/shop"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_addresses_are_understood(url: str, shown: str) -> None:
    assert parse_url(url).url == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://a",
        "http://",
        "http://a:b",
        "http://a:99999",
        "http://u:secret@a",
        "http://a/?q",
        "http://a/\r\nx:",
        "a b",
    ],
)
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(InvalidOption, match="expected 'http://host:port' or 'https://host:port'") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
