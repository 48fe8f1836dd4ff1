"""The native front beside the one in Python: the same bytes in give the same answer, whatever they are."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forwardpass.core.tensors import Array
from forwardpass.serve import Front
from forwardpass.serve.auth import Scope, new_key, write_keys
from forwardpass.serve.native import is_available
from tests.e2e.serving import (
    FRONTS,
    Background,
    RunningServer,
    eventually,
    infer_body,
    output,
    read_answers,
    read_to_the_end,
    serve_settings,
    serving,
)
from tests.models import mlp_calls, write_bundle, write_mlp

INFER = "/v2/models/mlp/infer"
NUM_INPUTS = 64
TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fronts")
    return write_bundle(folder / "mlp", write_mlp(folder / "mlp.onnx"), mlp_calls())


@pytest.fixture(scope="module")
def both(bundle: Path) -> Iterator[tuple[RunningServer, RunningServer]]:
    if not is_available():
        pytest.skip("the native front was not built")
    with ExitStack() as stack:
        limits = {"max_batch_rows": 4, "max_body_bytes": 5000, "header_timeout_s": 0.2, "body_timeout_s": 0.2}
        fronts = (Front.AUTO, Front.PYTHON)
        native, python = (stack.enter_context(serving(bundle, serve_settings(front=one, **limits))) for one in fronts)
        yield native, python


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("c++"), reason="it needs a C++ compiler")
def test_the_native_front_is_built_where_it_can_be() -> None:
    assert is_available()


# --- what is asked

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.one_of(
    FINITE.map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(["-0", "-0.0", "0e5", "1E3", "1e-400", "1e39", "3.4028235677973366e38", "01", "1.", ".5", "+1"]),
    st.sampled_from(["NaN", "Infinity", "null", "true", '"1"', "1e", "-", "1e999999", "[1]", "0." + "1" * 40]),
)
WORDS = st.sampled_from(["pixels", "FP32", "FP64", "x", "", "ü", "a\\u0041", 'quo\\"te'])
TIMEOUTS = st.one_of(
    st.integers(10**7, 10**19).map(str),  # long enough for an answer
    st.sampled_from(["0", "-1", "1e7", "10000000.0", "010000000", "null", "true", '"10000000"', "[]"]),
)
PARAMETERS = st.lists(
    st.one_of(
        st.sampled_from(['"binary_data_output":true', '"binary_data_output": false', '"priority":1', '"x":1']),
        TIMEOUTS.map('"timeout":{}'.format),
    ),
    max_size=3,
)
GAPS = st.sampled_from(["", "", " ", "\n\t"])


@st.composite
def infer_bodies(draw: st.DrawFn) -> tuple[bytes, int | None]:
    """Return a body, most of them right or nearly so, and where its JSON ends if bytes follow."""
    num_rows = draw(st.sampled_from([1, 1, 1, 2, 4, 5, 0, -1]))
    width = draw(st.sampled_from([NUM_INPUTS] * 8 + [63, 65]))
    count = max(num_rows, 0) * width
    start = draw(st.floats(-10, 10))
    values = [repr(start + at / 7) for at in range(count)]
    for _ in range(draw(st.integers(0, 2))):
        if values:
            values[draw(st.integers(0, len(values) - 1))] = draw(NUMBERS)
    gap = draw(GAPS)
    name, datatype = draw(st.sampled_from([("pixels", "FP32")] * 8 + [("x", "FP32"), ("pixels", "FP64")]))
    fields = [f'"name":{gap}"{name}"', f'"shape":[{num_rows},{gap}{width}]', f'"datatype":{gap}"{datatype}"']
    tail = b""
    if draw(st.booleans()):
        fields.append(f'"data":{gap}[{f"{gap},".join(values)}]')
    else:
        tail = draw(st.sampled_from([b"", b"x"])) if draw(st.integers(0, 9)) == 0 else b""
        tail = np.linspace(-1, 1, count, dtype=np.float32).tobytes() + tail
        fields.append(f'"parameters":{{"binary_data_size":{gap}{draw(st.sampled_from([len(tail)] * 6 + [0, 7]))}}}')
    fields = draw(st.permutations(fields))
    if draw(st.integers(0, 9)) == 0:
        fields = [*fields, draw(st.sampled_from(fields))]
    if draw(st.integers(0, 9)) == 0:
        fields = fields[1:]
    document = [f'"inputs":{gap}[{gap}{{{",".join(fields)}}}]']
    if draw(st.integers(0, 3)) == 0:
        document.append(f'"id":"{draw(WORDS)}"')
    if draw(st.integers(0, 3)) == 0:
        document.append(f'"parameters":{{{f"{gap},".join(draw(PARAMETERS))}}}')
    if draw(st.integers(0, 9)) == 0:
        document.append('"outputs":[{"name":"scores"}]')
    text = f"{gap}{{{f'{gap},'.join(draw(st.permutations(document)))}}}{gap}".encode()
    if draw(st.integers(0, 19)) == 0:
        text = text[: draw(st.integers(0, len(text)))]
    return text + tail, len(text) if tail else None


METHODS = st.sampled_from(["POST"] * 12 + ["GET", "PUT", "get"])
TARGETS = st.sampled_from(
    [INFER] * 12 + ["/v2/models/mlp/versions/1/infer", f"{INFER}?a=1", "/v2/models/no/infer", "/v2/health/live", "*"]
)
HEADERS = st.lists(
    st.sampled_from(
        [
            "Accept: */*",
            "User-Agent:  a client ",
            "X-Request-Timeout-Ms: 10000",
            "X-Request-Timeout-Ms: 0",
            "X-Request-Timeout-Ms: soon",
            "Connection: keep-alive",
            "Connection: close",
            "Content-Type: application/json",
            "Content-Encoding: gzip",
            "Inference-Header-Content-Length: -1",
            "Bad Header: 1",
            "Folded: a\r\n b",
            "Accept: text/event-stream",
            "X-Large: " + 9000 * "x",
        ]
    ),
    max_size=2,
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body, json_bytes = draw(infer_bodies())
    headers = ["Host: localhost", *draw(HEADERS)]
    length = draw(st.sampled_from([len(body)] * 30 + [len(body) + 1, 6000]))
    headers.append(f"Content-Length: {length}")
    if json_bytes is not None:
        headers.append(f"Inference-Header-Content-Length: {json_bytes}")
    version = draw(st.sampled_from(["HTTP/1.1"] * 20 + ["HTTP/1.0", "HTTP/2.0", "http/1.1"]))
    head = "\r\n".join([f"{draw(METHODS)} {draw(TARGETS)} {version}", *headers])
    return head.encode() + b"\r\n\r\n" + body


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(request=requests(), cut=st.floats(0, 1))
def test_the_same_bytes_get_the_same_answer(
    both: tuple[RunningServer, RunningServer], request: bytes, cut: float
) -> None:
    at = round(cut * len(request))
    native, python = (answer_to(server, request[:at], request[at:]) for server in both)
    assert native == python


def answer_to(server: RunningServer, *pieces: bytes) -> Any:
    """Return what a client reads that sends the pieces one after another: status, headers, and the body's meaning."""
    with closing(server.connect()) as client:
        client.settimeout(TIMEOUT_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        try:
            (answer,) = read_answers(client, 1)
        except (IndexError, ConnectionError):  # the server has hung up without a word
            return None
    headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
    size = headers.pop("inference-header-content-length", None)
    if size is not None:
        return answer.status, headers, json.loads(answer.body[: int(size)]), answer.body[int(size) :]
    return answer.status, headers, json.loads(answer.body)


NOISE = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.binary(max_size=40).map(b"\x16\x03".__add__),
    st.sampled_from(
        [b"SSH-2.0-x\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n", b"get / HTTP/1.1", b"GE T", b"POS"]
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(noise=NOISE)
def test_what_is_no_request_gets_the_same_answer(both: tuple[RunningServer, RunningServer], noise: bytes) -> None:
    native, python = (answer_to_the_end(server, noise) for server in both)
    assert native == python


def answer_to_the_end(server: RunningServer, sent: bytes) -> bytes:
    with closing(server.connect()) as client:
        client.settimeout(TIMEOUT_S)
        client.sendall(sent)
        try:
            return read_to_the_end(client)
        except ConnectionError:  # the server has hung up without a word
            return b""


@pytest.mark.parametrize("front", FRONTS)
def test_tls_is_told_at_once_that_it_is_not_spoken_here(bundle: Path, front: Front) -> None:
    """The first words of `openssl s_client`, on a server that waits long for the headers of a request."""
    with serving(bundle, serve_settings(front=front, header_timeout_s=1000.0)) as running:
        answer = answer_to_the_end(running, bytes.fromhex("16030101320100012e0303") + bytes(300))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n")
    assert body == b"This port speaks HTTP, not HTTPS: ask http:// instead of https://, or serve with --tls-cert.\n"


# --- what happens meanwhile

ONES = json.dumps({"inputs": [{"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": [1] * 64}]})
REQUEST = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(ONES)}\r\n\r\n{ONES}".encode()


def native_server(bundle: Path, **changes: Any) -> Any:
    if not is_available():
        pytest.skip("the native front was not built")
    return serving(bundle, serve_settings(**changes))


def test_what_a_dead_worker_ran_is_run_again(bundle: Path) -> None:
    with native_server(bundle) as running, ExitStack() as stack:
        with running.frozen_worker():
            clients = [stack.enter_context(closing(running.connect())) for _ in range(5)]
            for client in clients:
                client.sendall(REQUEST)
            running.wait_until_accepted(5)
            psutil.Process(running.server.worker_pids[0]).kill()
        assert [read_answers(client, 1)[0].status for client in clients] == [200] * 5
        clients[0].sendall(REQUEST)
        assert read_answers(clients[0], 1)[0].status == 200


def request_of(rows: Array, *headers: str, **fields: object) -> bytes:
    body = infer_body({"pixels": rows}, **fields)
    lines = [f"POST {INFER} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_an_answer_that_comes_after_its_deadline_goes_to_nobody_else(bundle: Path) -> None:
    """The same client has asked something else by then, on the same connection."""
    rows = np.random.default_rng(0).standard_normal((4, NUM_INPUTS)).astype(np.float32)
    with native_server(bundle, max_batch_rows=8) as running, closing(running.connect()) as client:
        client.sendall(request_of(rows))
        right = output(read_answers(client, 1)[0])
        with running.frozen_worker():
            client.sendall(request_of(np.zeros((1, NUM_INPUTS), np.float32), "X-Request-Timeout-Ms: 50"))
            assert read_answers(client, 1)[0].status == 504
            client.sendall(request_of(rows))
            running.wait_until_waiting(1)
        assert np.array_equal(output(read_answers(client, 1)[0]), right)
        client.sendall(request_of(rows[:1]))
        assert output(read_answers(client, 1)[0]).shape == (1, 10)


def test_a_deadline_in_the_body_is_kept_by_native_code(bundle: Path) -> None:
    """The shorter one counts, of that in the body and that in the header."""
    rows = np.zeros((1, NUM_INPUTS), np.float32)
    asked = [(50_000, ()), (50_000, ("X-Request-Timeout-Ms: 9000",)), (9_000_000, ("X-Request-Timeout-Ms: 50",))]
    with native_server(bundle) as running, running.frozen_worker():
        for number, (timeout_us, headers) in enumerate(asked, start=1):
            with closing(running.connect()) as client:
                client.sendall(request_of(rows, *headers, parameters={"timeout": timeout_us}))
                (answer,) = read_answers(client, 1)
            assert answer.status == 504
            assert answer.json["error"] == "The request could not be answered within its deadline of 0.05 s."
            line = running.server.repository.models["mlp"].default._line
            assert line is not None
            assert line.statistics()[2] == number, "it was taken in there"


def test_a_request_that_died_with_its_worker_holds_nobody_up(bundle: Path) -> None:
    with native_server(bundle) as running, ExitStack() as stack:
        first, second = (stack.enter_context(closing(running.connect())) for _ in range(2))
        with running.frozen_worker():
            first.sendall(request_of(np.zeros((1, NUM_INPUTS), np.float32), "X-Request-Timeout-Ms: 100"))
            running.wait_until_accepted(1)
            psutil.Process(running.server.worker_pids[0]).kill()
            assert read_answers(first, 1)[0].status == 504
        second.sendall(REQUEST)
        assert read_answers(second, 1)[0].status == 200


def test_what_was_counted_outlives_a_change_of_the_routes(bundle: Path) -> None:
    with native_server(bundle) as running, closing(running.connect()) as client:
        client.sendall(REQUEST)
        assert read_answers(client, 1)[0].status == 200
        assert running.ask("POST", "/v2/repository/index", b"{}").status == 200
        running.call(running.server._on_change)
        assert running.server.statistics().num_accepted == 1


def test_a_client_that_does_not_read_is_cut_whatever_it_sends(bundle: Path) -> None:
    with native_server(bundle, body_timeout_s=0.3, keep_alive_s=0.3) as running, closing(running.connect()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0.2)
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
        with suppress(OSError):
            for _ in range(500):
                client.sendall(ask)
                time.sleep(0.001)  # each is answered before the next comes: one that sends ahead is not native
        connections = running.server._connections._open
        eventually(lambda: not connections)


def test_a_client_that_left_is_not_run_and_harms_nobody(bundle: Path) -> None:
    with native_server(bundle, max_batch_rows=1) as running:
        with running.frozen_worker(), closing(running.connect()) as first, closing(running.connect()) as second:
            first.sendall(REQUEST)
            running.wait_until_accepted(1)
            with closing(running.connect()) as leaver:
                leaver.sendall(REQUEST)
                running.wait_until_accepted(2)
            second.sendall(REQUEST)
            running.wait_until_accepted(3)
            os_resume(running)
            assert [read_answers(one, 1)[0].status for one in (first, second)] == [200, 200]
        eventually(lambda: running.server.statistics().num_waiting == 0)
        assert running.server.statistics().num_batches == 2


def os_resume(running: RunningServer) -> None:
    psutil.Process(running.server.worker_pids[0]).resume()


def test_one_that_sends_ahead_gets_its_answers_in_order(bundle: Path) -> None:
    with native_server(bundle) as running, closing(running.connect()) as client:
        client.sendall(REQUEST + REQUEST + b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        answers = read_answers(client, 3)
        assert [answer.status for answer in answers] == [200] * 3
        assert answers[2].json == {"live": True}


def test_draining_answers_what_waits_and_says_that_it_is_the_last(bundle: Path) -> None:
    with native_server(bundle) as running, closing(running.connect()) as client:
        with running.frozen_worker():
            client.sendall(REQUEST)
            running.wait_until_accepted(1)
            stopping = Background(running.stop)
            eventually(lambda: not running.server.is_ready)
        answer = read_answers(client, 1)[0]
        stopping.result()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert client.recv(1) == b""


def test_a_key_passes_by_itself_only_and_no_longer_than_it_is_known(bundle: Path, tmp_path: Path) -> None:
    made = {scope: new_key(scope.value, (scope,)) for scope in (Scope.INFER, Scope.READ)}
    slow, slow_record = new_key("slow", (Scope.INFER,), requests_per_s=0.001)
    path = tmp_path / "keys.json"
    write_keys(path, (*(record for _, record in made.values()), slow_record))
    right, reading = (made[scope][0] for scope in (Scope.INFER, Scope.READ))
    with native_server(bundle, keys=path) as running, closing(running.connect()) as client:

        def status(header: str) -> int:
            client.sendall(REQUEST.replace(b"Host: localhost", f"Host: localhost\r\n{header}".encode()))
            return read_answers(client, 1)[0].status

        for _ in range(3):
            assert status(f"Authorization: Bearer {right}") == 200
            assert status(f"X-Api-Key: {right}") == 200
            assert status(f"Authorization: Bearer {right}x") == 401
            assert status(f"Authorization: {right}") == 401
            assert status("Accept: */*") == 401
            assert status(f"Authorization: Bearer {reading}") == 403
            assert status(f"X-Api-Key: {reading}\r\nX-Api-Key: {right}") == 200  # the last one counts
            assert status(f"X-Api-Key: {right}\r\nX-Api-Key: {reading}") == 403
        assert [status(f"X-Api-Key: {slow}") for _ in range(3)] == [200, 429, 429]
        write_keys(path, (slow_record,))
        eventually(lambda: status(f"Authorization: Bearer {right}") == 401)
