"""A real server, its worker and real sockets: right answers in time, a sentence for every mistake, nothing lost."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from forwardpass.core.tensors import Array
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.errors import AddressInUse, BundleError, ModelNotServed
from forwardpass.predict import PackingList, VariantToPack, pack_bundle
from forwardpass.profile import describe_machine
from forwardpass.serve import Front
from forwardpass.serve.http import MAX_PIPELINED
from tests.e2e.serving import (
    FRONTS,
    Answer,
    Background,
    RunningServer,
    ask,
    eventually,
    infer_body,
    output,
    post,
    read_answers,
    read_to_the_end,
    serve_settings,
    serving,
)
from tests.models import MACHINE, mlp_calls, write_bundle, write_counter, write_embedding, write_mlp, write_text_bundle

INFER = "/v2/models/mlp/infer"
READY = "/v2/health/ready"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    return write_bundle(folder / "mlp", write_mlp(folder / "mlp.onnx"), mlp_calls())


@pytest.fixture(scope="module")
def embedding_bundle(folder: Path) -> Path:
    return write_bundle(folder / "ids", write_embedding(folder / "ids.onnx"), [ids(1, 2, 3)], name="ids")


@pytest.fixture(scope="module", params=FRONTS)
def front(request: pytest.FixtureRequest) -> Front:
    """Both fronts keep the same promises."""
    return Front(request.param)


@pytest.fixture(scope="module")
def served(bundle: Path, front: Front) -> Iterator[RunningServer]:
    with serving(bundle, serve_settings(front=front)) as running:
        yield running


@pytest.fixture(scope="module")
def direct(bundle: Path) -> ort.InferenceSession:
    """The same model in ONNX Runtime alone, which is the oracle."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = bundle / "variants" / "onnx-fp32" / "model.onnx"
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def pixels(seed: int, num_rows: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((num_rows, 64)).astype(np.float32)


def steps(number: int) -> dict[str, Array]:
    return {"steps": np.array([[number]], np.int64)}


def ids(*numbers: int) -> dict[str, Array]:
    given = np.array([numbers], np.int64)
    return {"input_ids": given, "attention_mask": np.ones_like(given)}


def request_for(seed: int, **fields: object) -> bytes:
    return infer_body({"pixels": pixels(seed)}, **fields)


def expected(direct: ort.InferenceSession, seed: int) -> Array:
    return direct.run(["scores"], {"pixels": pixels(seed)})[0]


def error(answer: Answer) -> str:
    sentence: str = answer.json["error"]
    assert "Traceback" not in sentence
    return sentence


# --- routes


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v2/health/live", {"live": True}),
        (READY, {"ready": True}),
        ("/v2/models/mlp/ready", {"name": "mlp", "ready": True}),
        ("/v2/models/mlp/versions/1/ready", {"name": "mlp", "ready": True}),
    ],
)
def test_health_routes_say_how_it_is(served: RunningServer, path: str, document: object) -> None:
    answer = served.ask("GET", path)
    assert (answer.status, answer.json) == (200, document)


@pytest.mark.parametrize("base", ["/v2/models/mlp", "/v2/models/mlp/versions/1", "/v2/models/mlp/"])
def test_metadata_describes_the_model(served: RunningServer, base: str) -> None:
    document = served.ask("GET", base).json
    assert document["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}]
    assert document["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}]
    assert document["properties"] == {"variant": "onnx-fp32", "precision": "fp32"}


def test_the_index_names_routes_that_answer(served: RunningServer) -> None:
    routes = served.ask("GET", "/").json["routes"]
    assert INFER in routes
    for route in routes:
        assert served.ask("GET", route).status in (200, 405)
    assert served.ask("GET", "/v2").json["name"] == "forwardpass"


def test_inference_answers_like_onnx_runtime_alone(served: RunningServer, direct: ort.InferenceSession) -> None:
    for path in (INFER, "/v2/models/mlp/versions/1/infer", INFER + "?trace=1"):
        answer = served.ask("POST", path, request_for(1, id="mine", outputs=[{"name": "scores"}]))
        np.testing.assert_array_equal(output(answer), expected(direct, 1))
        assert (answer.json["id"], answer.json["model_name"]) == ("mine", "mlp")


def test_predict_takes_plain_lists(served: RunningServer, direct: ort.InferenceSession) -> None:
    body = json.dumps({"inputs": {"pixels": pixels(2).tolist()}}).encode()
    answer = served.ask("POST", "/v1/models/mlp/predict", body)
    np.testing.assert_array_equal(np.array(answer.json["outputs"]["scores"], np.float32), expected(direct, 2))


def test_a_bundle_with_a_processor_takes_words(folder: Path) -> None:
    with serving(write_text_bundle(folder / "text")) as running:
        answer = running.ask("POST", "/v1/models/text/predict", b'{"text": "the cat sleeps"}')
        assert answer.status == 200, answer.body
        refused = running.ask("POST", "/v1/models/text/predict", b'{"words": "the cat sleeps"}')
        assert refused.status == 400
        assert "text" in error(refused)


# --- mistakes


DEEP = b"[" * 250_000


def given(**changes: object) -> bytes:
    tensor = {"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64} | changes
    return json.dumps({"inputs": [tensor]}).encode()


ROUTES = "Available: /v2/models/mlp/infer, /v1/models/mlp/predict."
MISTAKES: list[tuple[str, str, bytes, int, str]] = [
    ("POST", INFER, b"", 400, 'Malformed request: the body is empty; send {"inputs": [{"name": "pixels", "shape": [b'),
    ("POST", INFER, b"{", 400, "Malformed request: Input data was truncated."),
    ("POST", INFER, b"[]", 400, "Malformed request: Expected `object`, got `array`; send {"),
    ("POST", INFER, DEEP, 400, "Malformed request: "),
    ("POST", INFER, b'{"inputs":' + DEEP, 400, "Malformed request: "),
    ("POST", INFER, b'{"inputs":[],"parameters":{"a":' + DEEP, 400, "Malformed request: it is nested too deeply."),
    ("POST", INFER, given(name="pixel"), 400, "Input 'pixel' is not an input of this model; expected the inputs pixel"),
    ("POST", INFER, given(datatype="INT64"), 400, "Input 'pixels' has the datatype 'INT64'; expected FP32 (float32[ba"),
    ("POST", INFER, given(shape=[64]), 400, "Input 'pixels' has shape [64]; expected float32[batch, 64]."),
    ("POST", INFER, given(shape=[-1, 64]), 400, "Input 'pixels' has the impossible shape [-1, 64]; expected float32["),
    ("POST", INFER, given(shape=[10**18, 64]), 400, f"Input 'pixels' has 64 elements for the shape [{10**18}, 64]; e"),
    ("POST", INFER, given(shape=[10**40, 64]), 400, f"Input 'pixels' has the impossible shape [{10**40}, 64]"),
    ("POST", INFER, given(shape=[0, 64], data=[]), 400, "Input 'pixels' is empty along axis 0 (batch); expected at le"),
    ("POST", INFER, given(data=[0.5]), 400, "Input 'pixels' has 1 elements for the shape [1, 64]; expected 64 elemen"),
    ("POST", INFER, given(data=[1e300] * 64), 400, "Input 'pixels' has a value beyond FP32; expected float32[batch, "),
    ("POST", INFER, given(data=[float("nan")] * 64), 400, "Malformed request: JSON is malformed: "),
    ("POST", INFER, given(data="abc"), 400, "Input 'pixels' has data that does not fit (Expected `array`, got `str`)"),
    ("POST", INFER, b'{"inputs":[%s,%s]}' % (given()[12:-2], given()[12:-2]), 400, "Input 'pixels' is given twice; e"),
    ("POST", INFER, given()[:-1] + b',"outputs":[{"name":"x"}]}', 400, "Malformed request: there is no output 'x'; t"),
    ("POST", INFER, given()[:-1] + b',"parameters":{"timeout":-1}}', 400, "Malformed request: the parameter 'timeout"),
    ("POST", "/v2/models/other/infer", given(), 404, "There is no model 'other' here. Available: mlp."),
    ("POST", "/v2/models/mlp/versions/9/infer", given(), 404, "There is no version '9' of 'mlp' here. Available: 1."),
    ("GET", "/nothing", b"", 404, "There is no route '/nothing' here. Available: /, /docs."),
    ("POST", "/v1/models/mlp:predict", b"{}", 404, f"There is no route '/v1/models/mlp:predict' here. {ROUTES}"),
    ("POST", "/v2/models/mlp/predict", b"{}", 404, f"There is no route '/v2/models/mlp/predict' here. {ROUTES}"),
    ("POST", "/v1/models/no:predict", b"{}", 404, "There is no model 'no' here. Available: mlp."),
    ("POST", "/v1/models/mlp/versions/9:predict", b"", 404, "There is no version '9' of 'mlp' here. Available: 1."),
    ("GET", "/v2/models/", b"", 404, "There is no model '' here. Available: mlp."),
    ("GET", INFER, b"", 405, "This route takes POST."),
    ("PUT", READY, b"", 405, "This route takes GET, HEAD."),
    ("POST", "/v1/models/mlp/predict", b'{"text": "hello"}', 400, "Malformed request: Object contains unknown field"),
    ("POST", "/v1/models/mlp/predict", b"7", 400, "Malformed request: Expected `object`, got `int`; this model has "),
    ("POST", "/v1/models/mlp/predict", b'{"inputs":{"pixels":' + DEEP, 400, "Malformed request: "),
    ("POST", "/v1/models/mlp/predict", b'{"inputs":{"pixels":%s1%s}}' % (b"[" * 500, b"]" * 500), 400, "Input 'pixels"),
    ("POST", "/v1/models/mlp/predict", b'{"inputs":{"x":[1]}}', 400, "Input 'x' is not an input of this model; expect"),
    ("POST", "/v1/models/mlp/predict", b'{"inputs":{"pixels":[[1],[1,2]]}}', 400, "Input 'pixels' has a value beyond "),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "sentence"), MISTAKES)
def test_every_mistake_is_answered_with_a_sentence(
    served: RunningServer, method: str, path: str, body: bytes, status: int, sentence: str
) -> None:
    answer = served.ask(method, path, body)
    assert answer.status == status, answer.body
    assert error(answer).startswith(sentence)
    assert error(answer).endswith(".")


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5", "9" * 5000])
def test_a_bad_timeout_header_is_refused(served: RunningServer, value: str) -> None:
    answer = served.ask("POST", INFER, given(), {"X-Request-Timeout-Ms": value})
    assert answer.status == 400
    assert error(answer) == (
        "Malformed request: the header X-Request-Timeout-Ms must be a positive whole number of milliseconds."
    )


def test_an_integer_beyond_its_dtype_is_refused(embedding_bundle: Path) -> None:
    body = json.dumps(
        {
            "inputs": [
                {"name": "input_ids", "shape": [1, 1], "datatype": "INT64", "data": [2**63]},
                {"name": "attention_mask", "shape": [1, 1], "datatype": "INT64", "data": [1]},
            ]
        }
    )
    with serving(embedding_bundle) as running:
        answer = running.ask("POST", "/v2/models/ids/infer", body.encode())
    assert answer.status == 400
    assert error(answer).startswith("Input 'input_ids' has a value beyond INT64")


BROKEN_HTTP = [
    (b"what is this\r\n\r\n", 400, "This is not HTTP/1.1."),
    (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400, "This is not HTTP/1.1."),
    (b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: %s\r\n\r\n" % (b"9" * 5000), 400, "This is not HTTP/1.1."),
    (b"GET / HTTP/1.1\r\n" + b"x-long: %s\r\n" % (b"a" * 20_000), 431, "The headers are larger than the limit of 163"),
    (b"GET /%s HTTP/1.1\r\n\r\n" % (b"a" * 20_000), 431, "The headers are larger than the limit of 16384 bytes."),
    (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000, 431, "The headers are larger than the limit of 16384 bytes."),
]


@pytest.mark.parametrize(("sent", "status", "sentence"), BROKEN_HTTP)
def test_what_is_not_http_is_answered_and_hung_up_on(
    served: RunningServer, sent: bytes, status: int, sentence: str
) -> None:
    with served.connect() as client:
        client.sendall(sent)
        (answer,) = read_answers(client, 1)
        assert answer.status == status
        assert error(answer).startswith(sentence)
        assert read_to_the_end(client) == b""


def test_a_header_without_an_end_is_cut(served: RunningServer) -> None:
    """The parser would collect an unfinished header for ever."""
    with served.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(40):
            client.sendall(b"a" * 1024)
        assert read_answers(client, 1)[0].status == 431


def test_a_body_over_the_limit_is_refused_announced_or_not(bundle: Path, front: Front) -> None:
    sentence = "The request body is larger than the limit of 1000 bytes."
    with serving(bundle, serve_settings(front=front, max_body_bytes=1000)) as running:
        announced = running.ask("POST", INFER, b"x" * 3_000_000)
        assert (announced.status, error(announced)) == (413, sentence)
        with running.connect() as client:
            client.sendall(b"POST %s HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" % INFER.encode())
            client.sendall(b"400\r\n" + b"x" * 0x400 + b"\r\n")
            (chunked,) = read_answers(client, 1)
        assert (chunked.status, error(chunked)) == (413, sentence)
        with running.connect() as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1001\r\nexpect: 100-continue\r\n\r\n")
            assert read_answers(client, 1)[0].status == 413
        assert running.ask("GET", READY).status == 200


def test_a_chunked_body_within_the_limit_is_read(served: RunningServer, direct: ort.InferenceSession) -> None:
    body = request_for(3)
    pieces = (body[at : at + 100] for at in range(0, len(body), 100))
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)) as client:
        client.request("POST", INFER, pieces, encode_chunked=True)
        response = client.getresponse()
        document = json.loads(response.read())
    np.testing.assert_array_equal(np.array([document["outputs"][0]["data"]], np.float32), expected(direct, 3))


# --- the protocol


def test_a_connection_is_used_again_and_pipelined_requests_are_answered_in_order(served: RunningServer) -> None:
    with served.connect() as client:
        for turn in range(3):
            client.sendall(post(INFER, request_for(turn, id=f"a{turn}")) + b"GET /v2/health/live HTTP/1.1\r\n\r\n")
            client.sendall(post(INFER, request_for(turn, id=f"b{turn}")))
            first, live, second = read_answers(client, 3)
            assert [first.json["id"], live.json, second.json["id"]] == [f"a{turn}", {"live": True}, f"b{turn}"]


def test_of_thousands_of_pipelined_requests_a_few_are_worked_on_at_once_and_all_are_answered_in_order(
    served: RunningServer,
) -> None:
    """Whoever pipelines them can neither fill the queue nor have the server hold their answers."""
    before = served.server.statistics()
    with served.connect() as client:
        with served.frozen_worker():
            requests = b"".join(post(INFER, request_for(number % 5, id=str(number))) for number in range(1_500))
            sender = threading.Thread(target=client.sendall, args=(requests,))
            sender.start()
            eventually(lambda: served.server.statistics().num_accepted > before.num_accepted)
            assert served.ask("GET", "/v2/health/live").status == 200, "by now as many are begun as may be"
            assert served.server.statistics().num_accepted - before.num_accepted <= MAX_PIPELINED
        answers = read_answers(client, 1_500)
        sender.join()
        assert [answer.status for answer in answers] == [200] * 1_500
        assert [answer.json["id"] for answer in answers] == [str(number) for number in range(1_500)]
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\nGET /nothing HTTP/1.1\r\n\r\n" * 3_000)
        assert [answer.status for answer in read_answers(client, 6_000)] == [200, 404] * 3_000


def test_deadlines_that_follow_each_other_closely_are_all_told(served: RunningServer) -> None:
    with served.frozen_worker(), ExitStack() as stack:
        clients = [stack.enter_context(served.connect()) for _ in range(4)]
        for _ in range(10):
            for client in clients:
                bodies = [request_for(1, parameters={"timeout": 1_000 + 300 * number}) for number in range(8)]
                client.sendall(b"".join(post(INFER, body) for body in bodies))
            statuses = {answer.status for client in clients for answer in read_answers(client, 8)}
            assert statuses <= {429, 504}


def test_nonsense_behind_a_request_does_not_take_the_requests_answer(served: RunningServer) -> None:
    with served.connect() as client, served.frozen_worker():
        client.sendall(post(INFER, request_for(1, id="a")) + b"nonsense\r\n\r\n")
        eventually(lambda: served.server.statistics().num_accepted > 0)
        os.kill(served.server.worker_pids[0], signal.SIGCONT)
        good, bad = read_answers(client, 2)
    assert (good.status, good.json["id"]) == (200, "a")
    assert (bad.status, error(bad)) == (400, "This is not HTTP/1.1.")


def test_a_long_body_before_the_start_of_a_header_is_not_counted_as_header(served: RunningServer) -> None:
    with served.connect() as client:
        client.sendall(post(INFER, b" " * 30_000 + request_for(1)) + b"GET / HT")
        assert read_answers(client, 1)[0].status == 200
        client.sendall(b"TP/1.1\r\n\r\n")
        assert read_answers(client, 1)[0].status == 200


def test_a_client_that_reads_late_gets_everything(served: RunningServer) -> None:
    """What it has not read fills the buffers; the server must stop reading, and then go on."""
    num_requests, mark = 200, "x" * 100_000
    request = post(INFER, request_for(1, id=mark))
    with served.connect() as client:
        sender = threading.Thread(target=lambda: client.sendall(request * num_requests))
        sender.start()
        eventually(lambda: served.ask("GET", READY).status == 200)
        answers = read_answers(client, num_requests)
        sender.join()
    assert all(answer.json["id"] == mark for answer in answers)


def test_head_is_get_without_the_body(served: RunningServer) -> None:
    with served.connect() as client:
        client.sendall(b"HEAD /v2/health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        head, _, body = read_to_the_end(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"content-length: 13" in head
    assert body == b""


def test_a_client_that_waits_to_be_asked_is_asked(served: RunningServer) -> None:
    body = request_for(1)
    with served.connect() as client:
        client.sendall(post(INFER, body, "expect: 100-continue")[: -len(body)])
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert read_answers(client, 1)[0].status == 200


def test_a_client_of_http_1_0_is_answered_and_hung_up_on(served: RunningServer) -> None:
    with served.connect() as client:
        client.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert read_to_the_end(client).endswith(b'\r\n\r\n{"live":true}')


def test_connections_beyond_the_limit_are_refused_until_one_is_free(bundle: Path, front: Front) -> None:
    with serving(bundle, serve_settings(front=front, max_connections=2)) as running:
        with running.connect() as one, running.connect() as two:
            for client in (one, two):
                client.sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
                assert read_answers(client, 1)[0].status == 200
            refused = running.ask("GET", READY)
            assert (refused.status, error(refused)) == (503, "There are too many connections. Try again later.")
        eventually(lambda: running.ask("GET", READY).status == 200)


@pytest.mark.parametrize("start", [b"POST ", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n"])
def test_a_client_that_drips_is_cut_while_others_are_answered(bundle: Path, start: bytes, front: Front) -> None:
    with (
        serving(bundle, serve_settings(front=front, header_timeout_s=0.3, body_timeout_s=0.3)) as running,
        running.connect() as slow,
    ):
        slow.sendall(start)
        slow.settimeout(0.02)
        received = b""
        while not received:
            try:
                slow.sendall(b"x")
                received = slow.recv(65536)
            except TimeoutError:
                assert running.ask("POST", INFER, request_for(1)).status == 200
        assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert received.endswith(b'{"error":"The request was not received in time."}')


def test_a_connection_without_requests_is_closed_after_a_while(bundle: Path, front: Front) -> None:
    with serving(bundle, serve_settings(front=front, keep_alive_s=0.1)) as running, running.connect() as client:
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
        assert read_to_the_end(client).endswith(b'{"live":true}')


# --- many at once


def test_five_hundred_at_once_each_get_their_own_answer(served: RunningServer, direct: ort.InferenceSession) -> None:
    """Bitwise what ONNX Runtime answers to each alone, whoever shared its batch."""

    async def one(seed: int) -> Array:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        try:
            writer.write(post(INFER, request_for(seed), "connection: close"))
            _, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
            await writer.wait_closed()
        return np.array(json.loads(body)["outputs"][0]["data"], np.float32)[None]

    async def everybody() -> list[Array]:
        return await asyncio.gather(*(one(seed) for seed in range(500)))

    before = served.server.statistics()
    answers = asyncio.run(everybody())
    after = served.server.statistics()
    for seed, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, expected(direct, seed))
    assert after.num_batched - before.num_batched == 500
    assert after.num_batches - before.num_batches < 500, "some ran together"


def test_who_shares_a_batch_with_a_bad_request_gets_the_right_answer(embedding_bundle: Path) -> None:
    """ONNX Runtime fails the whole batch for one id beyond the table."""
    path = "/v2/models/ids/infer"
    with serving(embedding_bundle) as running:
        alone = [output(running.ask("POST", path, infer_body(ids(n, n + 1)))) for n in range(6)]
        before = running.server.statistics()
        with running.frozen_worker():
            first = Background(lambda: running.ask("POST", path, infer_body(ids(1, 1))))
            eventually(lambda: running.server.statistics().num_batches == before.num_batches + 1)
            bodies = [infer_body(ids(n, n + 1)) for n in range(6)]
            mates = [Background(partial(running.ask, "POST", path, body)) for body in bodies]
            running.wait_until_waiting(6)
            culprit = Background(lambda: running.ask("POST", path, infer_body(ids(1, 999))))
            running.wait_until_waiting(7)
        refused = culprit.result()
        assert first.result().status == 200
        for mate, right in zip(mates, alone, strict=True):
            np.testing.assert_array_equal(output(mate.result()), right)
        assert running.server.statistics().num_batches == before.num_batches + 2, "they ran together"
    assert refused.status == 400
    assert error(refused) == (
        "The model 'ids' cannot run these values (InvalidArgument). Shapes and dtypes fit; look for ids or indices "
        "beyond what the model knows."
    )


# --- deadlines and overload


@pytest.mark.parametrize(
    ("fields", "headers"), [({}, {"X-Request-Timeout-Ms": "50"}), ({"parameters": {"timeout": 50_000}}, {})]
)
def test_a_deadline_that_passes_is_told_at_once(
    served: RunningServer, fields: dict[str, object], headers: dict[str, str]
) -> None:
    with served.frozen_worker():
        running, queued = (
            Background(lambda: served.ask("POST", INFER, request_for(1, **fields), headers)) for _ in range(2)
        )
        for answer in (running.result(), queued.result()):
            assert (answer.status, error(answer)) in (
                (504, "The request could not be answered within its deadline of 0.05 s."),
                (429, error(answer)),
            )
        assert running.result().status == 504
    assert served.ask("POST", INFER, request_for(1)).status == 200


def test_a_full_queue_refuses_and_says_when_to_come_back(bundle: Path, front: Front) -> None:
    with serving(bundle, serve_settings(front=front, max_queue_rows=1)) as running:
        with running.frozen_worker():
            held = [Background(lambda: running.ask("POST", INFER, request_for(1)))]
            eventually(lambda: running.server.statistics().num_batches == 1)
            held.append(Background(lambda: running.ask("POST", INFER, request_for(2))))
            running.wait_until_waiting(1)
            refused = running.ask("POST", INFER, request_for(3))
        assert [one.result().status for one in held] == [200, 200]
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= max(1.0, refused.json["facts"]["retry_after_s"]), "and not before"
    assert error(refused).startswith("The server is overloaded: 1 row is waiting, the limit is 1. Try again in ")


def test_a_client_that_leaves_while_it_waits_is_not_run(bundle: Path) -> None:
    with serving(bundle) as running:
        with running.frozen_worker():
            held = Background(lambda: running.ask("POST", INFER, request_for(1)))
            eventually(lambda: running.server.statistics().num_batches == 1)
            with running.connect() as leaver:
                leaver.sendall(post(INFER, request_for(2)))
                running.wait_until_waiting(1)
            eventually(lambda: len(running.server._connections._open) == 1)
        assert held.result().status == 200
        assert running.ask("POST", INFER, request_for(3)).status == 200
        held_now = running.server.statistics()
        assert (held_now.num_accepted, held_now.num_batched, held_now.num_waiting) == (3, 2, 0)


# --- life and death


def test_a_killed_worker_is_replaced_and_what_it_held_is_run_again(bundle: Path, direct: ort.InferenceSession) -> None:
    with serving(bundle) as running:
        pid = running.server.worker_pids[0]
        with running.frozen_worker():
            held = [Background(partial(running.ask, "POST", INFER, request_for(1)))]
            eventually(lambda: running.server.statistics().num_batches == 1)
            held += [Background(partial(running.ask, "POST", INFER, request_for(seed))) for seed in (2, 3)]
            running.wait_until_waiting(2)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: running.ask("GET", READY).status == 503)
            assert running.ask("GET", "/v2/models/mlp/ready").status == 503
            assert running.ask("GET", "/v2/health/live").status == 200
        for seed, answer in enumerate(held, start=1):
            np.testing.assert_array_equal(output(answer.result()), expected(direct, seed))
        assert running.ask("GET", READY).status == 200
        assert running.server.worker_pids[0] != pid


def test_a_worker_that_hangs_is_replaced(bundle: Path, front: Front, caplog: pytest.LogCaptureFixture) -> None:
    with serving(bundle, serve_settings(front=front, hang_s=0.2)) as running:
        pid = running.server.worker_pids[0]
        with running.frozen_worker():
            assert running.ask("POST", INFER, request_for(1)).status == 200
        assert running.server.worker_pids[0] != pid
    assert f"the worker {pid} of mlp ended (it hung over a batch); starting another in 0.1 s" in caplog.messages


def test_a_request_that_ends_workers_is_not_run_a_third_time_and_its_mates_are_answered(
    folder: Path, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    """The model counts as far as its input says: one request makes it count for weeks."""
    counting = write_bundle(folder / "count", write_counter(folder / "count.onnx"), [steps(3)], name="count")
    path, poison = "/v2/models/count/infer", infer_body(steps(2**40))
    with serving(counting, serve_settings(front=front, hang_s=0.3)) as running:
        with running.frozen_worker():
            first = Background(lambda: running.ask("POST", path, infer_body(steps(1))))
            eventually(lambda: running.server.statistics().num_batches == 1)
            culprit = Background(lambda: running.ask("POST", path, poison))
            running.wait_until_waiting(1)
            mates = [Background(partial(running.ask, "POST", path, infer_body(steps(n)))) for n in (5, 6)]
            running.wait_until_waiting(3)
        assert [output(answer.result())[0, 0] for answer in (first, *mates)] == [1, 5, 6]
        refused = culprit.result()
        assert refused.status == 422
        assert error(refused) == (
            "This request has ended the model's worker process twice. It is not run again for 600 s."
        )
        pids = running.server.worker_pids
        assert running.ask("POST", path, poison).status == 422
        assert running.ask("POST", path, infer_body(steps(7))).status == 200
        assert running.server.worker_pids == pids, "it was not run again"
        assert caplog.messages.count("a request has ended two workers of count; the like is refused for 600 s") == 1
        metrics = running.ask("GET", "/metrics").body.decode().splitlines()
    assert 'forwardpass_requests_total{model="count",outcome="request-quarantined",version="1"} 2.0' in metrics
    (alone,) = (line for line in metrics if line.startswith('forwardpass_batches_total{model="count",reason="alone"'))
    assert float(alone.split()[-1]) >= 3, "the culprit and its mates"


def test_stopping_while_the_worker_is_dead_is_clean(bundle: Path) -> None:
    with serving(bundle) as running:
        os.kill(running.server.worker_pids[0], signal.SIGKILL)
        eventually(lambda: running.ask("GET", READY).status == 503)


def test_what_was_accepted_is_answered_with_an_error_when_the_grace_time_is_over(bundle: Path, front: Front) -> None:
    with serving(bundle, serve_settings(front=front, grace_s=0.2)) as running, running.frozen_worker():
        held = Background(lambda: running.ask("POST", INFER, request_for(1)))
        eventually(lambda: running.server.statistics().num_batches == 1)
        stopping = threading.Thread(target=running.stop)
        pid = running.server.worker_pids[0]
        stopping.start()
        answer = held.result()
        os.kill(pid, signal.SIGCONT)
        stopping.join()
    assert answer.status == 503
    assert error(answer) == "The server is not ready: it was stopped before the request could be answered."


def test_a_golden_mismatch_prevents_the_start(folder: Path) -> None:
    variant = Variant(
        name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=str(write_mlp(folder / "other.onnx"))
    )
    never = VariantToPack(variant=variant, invariance=BatchInvariance.BITWISE, golden_tolerance=-1.0)
    packing = PackingList(name="other", variants=[never], golden_inputs=mlp_calls(), machine=MACHINE)
    pack_bundle(folder / "mismatch", packing)
    with pytest.raises(ModelNotServed) as caught, serving(folder / "mismatch"):
        pass
    machine = describe_machine()
    assert str(caught.value) == (
        "Cannot serve 'other': The variant 'onnx-fp32' answers differently on this machine, "
        f"{machine.cpu} ({', '.join(machine.instruction_sets)}), onnxruntime {ort.__version__}: output 'scores' is off "
        "by 0 (tolerance -1, both relative) from the golden answer. Build the bundle on this kind of machine, or "
        "choose a float variant with --variant."
    )


def test_a_port_in_use_is_told(served: RunningServer, bundle: Path, front: Front) -> None:
    with pytest.raises(AddressInUse) as caught, serving(bundle, serve_settings(front=front, port=served.port)):
        pass
    assert str(caught.value) == (
        f"Cannot listen on 127.0.0.1:{served.port}: address already in use. Choose another with --host or --port."
    )


def test_a_port_for_grpc_in_use_is_told_before_a_model_is_loaded(bundle: Path, tmp_path: Path) -> None:
    """Even by a server like this one, which could share it; the model would be refused."""
    shutil.copytree(bundle, tmp_path / "damaged")
    (tmp_path / "damaged" / "golden" / "inputs.npz").write_bytes(b"")
    with serving(bundle, serve_settings(grpc_port=0)) as running:
        port = running.server.grpc_port
        with pytest.raises(AddressInUse) as caught, serving(tmp_path / "damaged", serve_settings(grpc_port=port)):
            pass
    assert str(caught.value) == (
        f"Cannot listen on 127.0.0.1:{port}: gRPC cannot bind it. Choose another with --host or --grpc-port."
    )
    with pytest.raises(BundleError), serving(tmp_path / "damaged", serve_settings(grpc_port=port)):
        pass
    with serving(bundle, serve_settings(grpc_port=port)) as again:
        assert again.server.grpc_port == port, "what has failed has let go of it"


BLOCKING = """
import sys
from pathlib import Path
from forwardpass.serve import ModelConfig, ModelSettings, ServeConfig, ServeSettings, serve
config = ModelConfig(name="mlp", path=Path(sys.argv[1]), settings=ModelSettings(num_threads=1))
whole = ServeConfig(settings=ServeSettings(port=0), models=(config,))
serve(whole, on_ready=lambda server: print(server.address[1], flush=True))
heavy = {"torch", "onnx", "click", "rich", "jinja2", "prometheus_client", "grpc"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture
def blocking(bundle: Path) -> Iterator[subprocess.Popen[str]]:
    """The blocking `serve` in a process of its own."""
    command = [sys.executable, "-c", BLOCKING, str(bundle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


class Customer:
    """A client in a closed loop that goes on until it is told that an answer is the last."""

    def __init__(self, port: int, enough: threading.Semaphore) -> None:
        self._port = port
        self._enough = enough
        self.statuses: list[int] = []
        self.problems: list[Exception] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as client:
            try:
                while True:
                    answer = ask(client, "POST", INFER, request_for(len(self.statuses)))
                    self.statuses.append(answer.status)
                    if len(self.statuses) == 20:
                        self._enough.release()
                    if answer.headers.get("connection") == "close":
                        return
            except (OSError, http.client.HTTPException) as problem:
                self.problems.append(problem)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_nothing(blocking: subprocess.Popen[str], number: signal.Signals) -> None:
    assert blocking.stdout is not None
    assert blocking.stderr is not None
    port = int(blocking.stdout.readline())
    enough = threading.Semaphore(0)
    customers = [Customer(port, enough) for _ in range(16)]
    for _ in customers:
        assert enough.acquire(timeout=60)
    blocking.send_signal(number)
    enough.acquire(timeout=0.02)  # supervisors tell the process, and then its group
    blocking.send_signal(number)
    for customer in customers:
        customer.thread.join(60)
    assert blocking.wait(60) == 0, blocking.stderr.read()
    assert [customer.problems for customer in customers] == [[]] * 16
    assert {status for customer in customers for status in customer.statuses} == {200}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_a_signal_while_loading_ends_at_once_and_leaves_no_worker(blocking: subprocess.Popen[str]) -> None:
    children = Path(f"/proc/{blocking.pid}/task/{blocking.pid}/children")
    eventually(lambda: bool(children.read_text().split()))
    worker = Path("/proc") / children.read_text().split()[0]
    blocking.send_signal(signal.SIGTERM)
    assert blocking.wait(60) == 0
    assert blocking.stderr is not None
    assert blocking.stderr.read() == ""
    eventually(lambda: not worker.exists())


def test_a_worker_whose_server_was_killed_ends_too(blocking: subprocess.Popen[str]) -> None:
    assert blocking.stdout is not None
    assert blocking.stderr is not None
    blocking.stdout.readline()
    children = Path(f"/proc/{blocking.pid}/task/{blocking.pid}/children").read_text().split()
    blocking.kill()
    blocking.wait()
    eventually(lambda: not any(Path("/proc", child).exists() for child in children))
    assert blocking.stderr.read() == ""
