"""PyTriton, which is Triton's own front end, as an oracle: the same requests to both servers, answer by answer.

Where they differ it is on purpose, and the documentation says so.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import InferResult as CallResult
from tritonclient.grpc import service_pb2_grpc
from tritonclient.http import InferResult

from forwardpass import AsyncClient, Client
from forwardpass.core.tensors import Array
from forwardpass.errors import MalformedRequest, NotFound, RequestError, ServerFailed
from forwardpass.protocol import JSON_LENGTH_HEADER
from tests.conformance.environments import free_ports, python_with, running
from tests.conformance.oracle_calls import CHOSEN_CALLS, calls
from tests.conformance.oracle_cases import CHOSEN, FATAL, Case, Difference, cases, chosen_table, edges
from tests.e2e.serving import Answer, RunningServer, ask, serve_settings, serving_models
from tests.models import write_bundle, write_typed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "http-api.md"
NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
DTYPES = ("bool", "float16", *NUMBERS)
Ports: TypeAlias = tuple[int, int]
"""Ours, and theirs."""


@pytest.fixture(scope="module")
def their_ports() -> Iterator[tuple[int, int]]:
    """HTTP and gRPC."""
    port, grpc_port = free_ports(2)
    url = f"http://127.0.0.1:{port}/v2/models/add/ready"
    with running(python_with("pytriton"), "pytriton_server.py", str(port), str(grpc_port), ready_url=url):
        yield port, grpc_port


@pytest.fixture(scope="module")
def theirs(their_ports: tuple[int, int]) -> int:
    return their_ports[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("oracle")
    for dtype in DTYPES:
        call = {"x": np.ones((1, 2), dtype)}
        model = write_typed(folder / f"{dtype}.onnx", dtype)
        write_bundle(folder / "models" / f"echo-{dtype}", model, [call], name=f"echo-{dtype}")
    one = np.ones((1, 3), np.float32)
    write_bundle(folder / "models" / "add", write_add(folder / "add.onnx"), [{"a": one, "b": one}], name="add")
    with serving_models([], root=folder / "models", settings=serve_settings(grpc_port=0)) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def ports(served: RunningServer, theirs: int) -> Ports:
    return served.port, theirs


def write_add(path: Path) -> Path:
    """Write `a, b [batch, n] -> sum [batch, n]`."""

    def vector(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "n"])

    node = helper.make_node("Add", ["a", "b"], ["sum"])
    graph = helper.make_graph([node], "add", [vector("a"), vector("b")], [vector("sum")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def send(port: int, case: Case) -> Answer:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        return ask(client, case.method, case.path, case.body or None, case.headers)


def difference_of(case: Case) -> Difference | None:
    return next((difference for difference in CHOSEN if case.name in difference.cases), None)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_both_answer_the_same_but_where_we_chose_otherwise(ports: Ports, case: Case) -> None:
    ours = send(ports[0], case)
    difference = difference_of(case)
    if case.name in FATAL:
        assert difference is not None
        assert ours.status == difference.ours
        return
    theirs = send(ports[1], case)
    if difference is not None:
        assert (ours.status, theirs.status) == (difference.ours, difference.theirs)
        return
    assert ours.status == theirs.status, (ours.body, theirs.body)
    if ours.status >= 400:
        assert all(isinstance(answer.json["error"], str) for answer in (ours, theirs) if answer.body)
    elif case.method == "POST":
        compare(decoded(ours), decoded(theirs))
        assert json_part(ours).get("id") == json_part(theirs).get("id")
    elif "/models/" in case.path and not case.path.endswith("ready"):
        assert described(ours) == described(theirs)


def decoded(answer: Answer) -> dict[str, Array]:
    """Read an answer with Triton's own client."""
    length = answer.headers.get(JSON_LENGTH_HEADER)
    result = InferResult.from_response_body(answer.body, header_length=int(length) if length else None)
    return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


def json_part(answer: Answer) -> Any:
    length = answer.headers.get(JSON_LENGTH_HEADER)
    return json.loads(answer.body[: int(length)] if length else answer.body)


def described(answer: Answer) -> object:
    """Return what metadata say of the tensors."""
    document = answer.json
    tensors = [(one["name"], one["datatype"], one["shape"]) for one in document["inputs"] + document["outputs"]]
    return document["name"], document["versions"], tensors


def compare(ours: dict[str, Array], theirs: dict[str, Array]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
        np.testing.assert_array_equal(array, theirs[name])


def test_every_chosen_difference_is_a_case_and_in_the_documentation() -> None:
    for chosen, names in ((CHOSEN, {case.name for case in cases()}), (CHOSEN_CALLS, set(calls()))):
        named = [name for difference in chosen for name in difference.cases]
        assert len(named) == len(set(named))
        assert set(named) <= names
    assert chosen_table([*CHOSEN, *CHOSEN_CALLS]) in PAGE.read_text()


# --- gRPC


@pytest.mark.parametrize("name", list(calls()))
def test_both_answer_a_call_the_same_but_where_we_chose_otherwise(
    served: RunningServer, their_ports: tuple[int, int], name: str
) -> None:
    assert served.server.grpc_port is not None
    request = calls()[name]
    (our_code, ours), (their_code, theirs) = (
        send_call(port, request) for port in (served.server.grpc_port, their_ports[1])
    )
    difference = next((difference for difference in CHOSEN_CALLS if name in difference.cases), None)
    if difference is not None:
        assert (our_code, their_code) == (difference.ours, difference.theirs)
        return
    assert our_code == their_code, (ours, theirs)
    if our_code == "OK":
        assert (ours.id, ours.model_version) == (theirs.id, theirs.model_version) == ("mine", "1")
        compare(outputs_of(ours), outputs_of(theirs))


def outputs_of(answer: Any) -> dict[str, Array]:
    """Read raw outputs with Triton's own client, which does not know typed ones."""
    if answer.raw_output_contents:
        return {one.name: CallResult(answer).as_numpy(one.name) for one in answer.outputs}
    return {one.name: np.array(one.contents.fp32_contents, np.float32).reshape(one.shape) for one in answer.outputs}


def send_call(port: int, request: Any) -> tuple[str, Any]:
    """Return the code and the answer, or the code and the details."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            return "OK", service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
        except grpc.RpcError as error:
            return error.code().name, error.details()


# --- our clients on their server


@pytest.mark.parametrize("dtype", [*DTYPES, "bytes"])
def test_our_clients_understand_their_server(theirs: int, dtype: str) -> None:
    if dtype == "bytes":
        sent = np.array([["grüße".encode(), b"x" * 70_000], [b"\x01\xff\n", b"y"]], object)
    else:
        sent = edges(dtype)
    with Client(f"127.0.0.1:{theirs}") as client:
        came = client.infer(f"echo-{dtype}", {"x": sent}, outputs=["y"], timeout_s=60, priority=1)["y"]
    assert came.dtype == sent.dtype
    np.testing.assert_array_equal(came, sent)

    async def run() -> Array:
        async with AsyncClient(f"127.0.0.1:{theirs}") as client:
            return (await client.infer(f"echo-{dtype}", {"x": sent}))["y"]

    np.testing.assert_array_equal(asyncio.run(run()), sent)


@pytest.mark.parametrize("dtype", ["bool", *NUMBERS, "bytes"])
def test_our_client_speaks_json_with_their_server(theirs: int, dtype: str) -> None:
    sent = np.array([["grüße".encode(), b"y"]], object) if dtype == "bytes" else edges(dtype)
    with Client(f"127.0.0.1:{theirs}", binary=False) as client:
        np.testing.assert_array_equal(client.infer(f"echo-{dtype}", {"x": sent})["y"], sent)


def test_our_client_reads_what_their_server_says_of_itself(theirs: int) -> None:
    with Client(f"http://127.0.0.1:{theirs}") as client:
        assert client.metadata().name == "triton"
        assert client.is_ready()
        assert client.is_ready("add", version="1")
        assert not client.is_ready("other")
        described = client.model_metadata("add")
        assert [(one.name, one.datatype, one.shape) for one in described.inputs] == [
            ("a", "FP32", (-1, -1)),
            ("b", "FP32", (-1, -1)),
        ]


@pytest.mark.parametrize(
    ("model", "tensor", "kind", "words"),
    [
        ("other", np.ones((1, 2), np.float32), NotFound, "unknown model"),
        ("echo-float32", np.ones((1, 3), np.float32), MalformedRequest, "unexpected shape"),
        ("echo-float32", np.ones((1, 2), np.int32), MalformedRequest, "data-type"),
        ("echo-float32", np.ones((65, 2), np.float32), MalformedRequest, "batch-size must be <= 64"),
    ],
)
def test_their_errors_keep_their_words(
    theirs: int, model: str, tensor: Array, kind: type[RequestError], words: str
) -> None:
    with Client(f"127.0.0.1:{theirs}") as client, pytest.raises(kind) as caught:
        client.infer(model, {"x": tensor})
    assert words in str(caught.value)
    assert not isinstance(caught.value, ServerFailed)
