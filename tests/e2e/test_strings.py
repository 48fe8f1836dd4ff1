"""A model of strings from its file to its clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2, service_pb2_grpc

from forwardpass.client import Client
from forwardpass.core.calls import random_calls
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.predict import Predictor
from forwardpass.profile import ProfileSettings, profile_variants
from forwardpass.runtimes import RuntimeOptions, open_runtime
from tests.e2e.serving import RunningServer, serve_settings, serving_models
from tests.models import write_bundle, write_greeter

TEXTS = ["hello", "", "café", "a\0b", "x" * 5000]
REPLIES = ["good day", "say something", "thé", "what?", "what?"]
BYTES = np.array([text.encode() for text in TEXTS], object)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strings")
    write_bundle(
        folder / "repository" / "greeter", write_greeter(folder / "greeter.onnx"), [{"text": BYTES}], name="greeter"
    )
    return folder


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[RunningServer]:
    with serving_models([], root=root / "repository", settings=serve_settings(grpc_port=0)) as running:
        yield running


def test_the_file_is_profiled_in_processes_of_its_own(root: Path) -> None:
    path = str(root / "greeter.onnx")
    signature = open_runtime(Format.ONNX, path, options=RuntimeOptions()).signature
    variant = Variant(name="greeter", format=Format.ONNX, precision=Precision.FP32, location=path)
    settings = ProfileSettings(
        batch_sizes=(1, 4), thread_counts=(1,), num_rounds=2, round_s=0.002, num_cold_starts=2, audit_budget_s=0.5
    )
    (profile,) = profile_variants(
        [variant], random_calls(signature, (1, 4, 8), {}), settings=settings, progress=lambda text, *, done: None
    )
    assert profile.invariance.verdict is BatchInvariance.BITWISE


def test_the_bundle_answers_in_this_process(root: Path) -> None:
    answer = Predictor.open(root / "repository" / "greeter").predict(np.array(TEXTS))
    assert [reply.decode() for reply in answer["reply"]] == REPLIES
    assert answer["echo"].tolist() == BYTES.tolist()
    assert answer["known"].tolist() == [1, 1, 1, 0, 0]


def test_plain_json_takes_and_gives_text(served: RunningServer) -> None:
    answer = served.ask("POST", "/v1/models/greeter/predict", json.dumps({"inputs": {"text": TEXTS}}).encode())
    assert answer.status == 200
    assert answer.json == {"outputs": {"reply": REPLIES, "echo": TEXTS, "known": [1, 1, 1, 0, 0]}}


@pytest.mark.parametrize("is_binary", [False, True])
def test_triton_http_asks_as_json_and_as_bytes(served: RunningServer, is_binary: bool) -> None:
    given = triton_http.InferInput("text", [len(TEXTS)], "BYTES")
    given.set_data_from_numpy(np.array(TEXTS, object) if not is_binary else BYTES, binary_data=is_binary)
    wanted = [triton_http.InferRequestedOutput("echo", binary_data=is_binary)]
    with triton_http.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
        echo = client.infer("greeter", [given], outputs=wanted).as_numpy("echo")
    assert [text if isinstance(text, str) else text.decode() for text in echo] == TEXTS


def test_triton_grpc_asks_raw(served: RunningServer) -> None:
    given = triton_grpc.InferInput("text", [len(TEXTS)], "BYTES")
    given.set_data_from_numpy(BYTES)
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.server.grpc_port}") as client:
        result = client.infer("greeter", [given])
    assert result.as_numpy("echo").tolist() == BYTES.tolist()
    assert [reply.decode() for reply in result.as_numpy("reply")] == REPLIES


def test_grpc_asks_with_typed_contents(served: RunningServer) -> None:
    request = service_pb2.ModelInferRequest(model_name="greeter")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(TEXTS)])
    tensor.contents.bytes_contents.extend(BYTES.tolist())
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.server.grpc_port}") as client:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(client._channel).ModelInfer(request)
    outputs = {output.name: list(output.contents.bytes_contents) for output in answer.outputs}
    assert outputs["echo"] == BYTES.tolist()


def test_the_client_takes_text_and_gives_bytes(served: RunningServer) -> None:
    with Client(f"http://127.0.0.1:{served.port}") as client:
        answer = client.infer("greeter", {"text": np.array(TEXTS)})
    assert answer["echo"].tolist() == BYTES.tolist()


def test_what_is_no_utf8_is_refused_in_a_sentence_and_the_next_request_is_answered(served: RunningServer) -> None:
    given = triton_grpc.InferInput("text", [1], "BYTES")
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{served.server.grpc_port}") as client:
        given.set_data_from_numpy(np.array([b"\xff\xfe"], object))
        with pytest.raises(triton_grpc.InferenceServerException, match="has a string that is not UTF-8") as caught:
            client.infer("greeter", [given])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        given.set_data_from_numpy(np.array([b"hello"], object))
        assert client.infer("greeter", [given]).as_numpy("reply").tolist() == [b"good day"]


def test_requests_of_different_lengths_share_batches_and_everybody_gets_their_own(served: RunningServer) -> None:
    def echo(number: int) -> bool:
        texts = [f"{number}:{row}" + "z" * (number * 37 % 900) for row in range(1 + number % 5)]
        body = json.dumps({"inputs": {"text": texts}}).encode()
        return bool(served.ask("POST", "/v1/models/greeter/predict", body).json["outputs"]["echo"] == texts)

    with ThreadPoolExecutor(8) as threads, served.frozen_worker():
        answers = [threads.submit(echo, number) for number in range(64)]
        served.wait_until_waiting(7)
    assert all(answer.result() for answer in answers)
