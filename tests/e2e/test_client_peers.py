"""The clients with peers that follow a script: odd but lawful answers, refusals, and every way to break off."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import numpy as np
import pytest

from forwardpass import AsyncClient, Client
from forwardpass.errors import DeadlineExceeded, InvalidAnswer, NotReady, Overloaded, ServerUnreachable

ARRAY = np.array([[1.5, 2.5]], np.float32)
OUTPUT = {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}
GOOD = json.dumps({"model_name": "m", "outputs": [OUTPUT]}).encode()
Infer: TypeAlias = Callable[..., Any]


class Peer:
    """What a scripted server saw: the requests of each connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections: list[list[bytes]] = []

    @property
    def num_requests(self) -> int:
        return sum(map(len, self.connections))


@contextmanager
def peer(*scripts: Sequence[bytes | None]) -> Iterator[Peer]:
    """Answer each connection by its script, an answer for each request; None is to say nothing. Then hang up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen = Peer(listener.getsockname()[1])
        stopping = threading.Event()

        def work() -> None:
            for script in scripts:
                with suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        seen.connections.append([])
                        converse(connection, script, seen.connections[-1])

        def converse(connection: socket.socket, script: Sequence[bytes | None], requests: list[bytes]) -> None:
            for answer in script:
                request = read_request(connection)
                if not request:
                    return
                requests.append(request)
                if answer is None:
                    stopping.wait(30)
                    return
                connection.sendall(answer)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield seen
        finally:
            stopping.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def read_request(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        if not piece:
            return b""
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def answer(body: bytes = GOOD, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(body: bytes = GOOD) -> bytes:
    half = len(body) // 2
    parts = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:half], body[half:]))
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n"


def blocking(port: int, *, num_calls: int = 1, options: dict[str, Any] | None = None, **named: Any) -> list[Any]:
    with Client(f"127.0.0.1:{port}", **({"binary": False} | (options or {}))) as client:
        return [client.infer("m", {"x": ARRAY}, **named)["y"].tolist() for _ in range(num_calls)]


def awaited(port: int, *, num_calls: int = 1, options: dict[str, Any] | None = None, **named: Any) -> list[Any]:
    async def run() -> list[Any]:
        async with AsyncClient(f"127.0.0.1:{port}", **({"binary": False} | (options or {}))) as client:
            return [(await client.infer("m", {"x": ARRAY}, **named))["y"].tolist() for _ in range(num_calls)]

    return asyncio.run(run())


@pytest.fixture(params=[blocking, awaited])
def infer(request: pytest.FixtureRequest) -> Infer:
    made: Infer = request.param
    return made


RIGHT = [[[1.5, 2.5]]]


@pytest.mark.parametrize(
    "said",
    [
        answer(),
        chunked(),
        b"HTTP/1.1 200 OK\r\n\r\n" + GOOD,
        b"HTTP/1.0 200 OK\r\n\r\n" + GOOD,
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + answer(),
        answer(GOOD, "connection: close"),
    ],
)
def test_lawful_answers_of_any_kind_are_understood(infer: Infer, said: bytes) -> None:
    with peer([said]) as seen:
        assert infer(seen.port) == RIGHT


def test_a_connection_is_kept_where_it_may_be(infer: Infer) -> None:
    with peer([answer(), chunked(), answer(GOOD, "connection: close")], [answer()]) as seen:
        assert infer(seen.port, num_calls=4) == RIGHT * 4
        assert [len(requests) for requests in seen.connections] == [3, 1]


def test_a_request_that_a_kept_connection_swallowed_is_sent_again(infer: Infer) -> None:
    with peer([answer()], [answer()]) as seen:
        assert infer(seen.port, num_calls=2) == RIGHT * 2
        assert seen.num_requests == 2


def test_a_fresh_connection_without_a_word_is_told(infer: Infer) -> None:
    with peer([b""]) as seen, pytest.raises(ServerUnreachable, match="the server hung up"):
        infer(seen.port)
    with peer([answer()[:-1]]) as seen, pytest.raises(ServerUnreachable, match="the answer was cut off"):
        infer(seen.port)
    assert seen.num_requests == 1


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        answer(b"no JSON"),
        answer(b"{}"),
        answer(b'{"outputs":[{"name":"y","datatype":"FP32","shape":[9],"data":[1]}]}'),
        answer(GOOD, "inference-header-content-length: 9999"),
        answer() + b"more",
    ],
)
def test_what_is_not_the_protocol_is_told(infer: Infer, said: bytes) -> None:
    with peer([said]) as seen, pytest.raises(InvalidAnswer) as caught:
        infer(seen.port)
    start = f"The answer of http://127.0.0.1:{seen.port} does not follow the Open Inference Protocol: "
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_a_refusal_is_tried_again_when_the_server_says(infer: Infer, status: str) -> None:
    refusal = answer(b'{"error":"Later."}', "retry-after: 0", status=status)
    with peer([refusal, refusal, answer()]) as seen:
        assert infer(seen.port) == RIGHT
        assert seen.num_requests == 3
    with peer([refusal] * 5) as seen, pytest.raises((Overloaded, NotReady)):
        infer(seen.port, options={"max_retries": 2})
    assert seen.num_requests == 3


def test_a_refusal_is_not_tried_again_without_a_time_or_beyond_the_deadline(infer: Infer) -> None:
    with peer([answer(b"{}", status="503 Service Unavailable")] * 2) as seen, pytest.raises(NotReady):
        infer(seen.port)
    assert seen.num_requests == 1
    busy = answer(b'{"error":"Busy."}', "retry-after: 600", status="429 Too Many Requests")
    with peer([busy] * 2) as seen, pytest.raises(Overloaded) as caught:
        infer(seen.port, timeout_s=30.0)
    assert (seen.num_requests, caught.value.retry_after_s) == (1, 600.0)


def test_a_failure_of_the_server_is_not_tried_again(infer: Infer) -> None:
    failed = answer(b'{"error":"Broken."}', "retry-after: 0", status="500 Internal Server Error")
    with peer([failed] * 2) as seen, pytest.raises(Exception, match="The server answered with status 500: Broken"):
        infer(seen.port)
    assert seen.num_requests == 1


@pytest.mark.parametrize("said", [None, answer()[:20], answer()[:-3]])
def test_silence_ends_at_the_deadline(infer: Infer, said: bytes | None) -> None:
    with peer([said, None] if said else [None]) as seen:
        begun_s = time.monotonic()
        with pytest.raises((DeadlineExceeded, ServerUnreachable)) as caught:
            infer(seen.port, timeout_s=0.3)
        assert time.monotonic() - begun_s < 20
        assert said or isinstance(caught.value, DeadlineExceeded)


@pytest.mark.parametrize("named", [{"timeout_s": 20.0}, {"options": {"timeout_s": 20.0}}])
def test_the_deadline_of_a_call_or_of_the_client_is_told_in_the_header_and_the_body(
    infer: Infer, named: dict[str, Any]
) -> None:
    with peer([answer()]) as seen:
        infer(seen.port, headers={"traceparent": "00-1-2-01"}, **named)
        head, _, body = seen.connections[0][0].partition(b"\r\n\r\n")
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert 1000 < int(lines["x-request-timeout-ms"]) <= 20_000
    assert lines["traceparent"] == "00-1-2-01"
    assert json.loads(body)["parameters"] == {"timeout": 20_000_000}


def test_without_a_deadline_the_server_goes_by_its_own(infer: Infer) -> None:
    with peer([answer()]) as seen:
        infer(seen.port)
        assert b"timeout" not in seen.connections[0][0].lower()


def test_a_deadline_that_the_caller_writes_into_the_header_stands_there_once(infer: Infer) -> None:
    with peer([answer()]) as seen:
        infer(seen.port, timeout_s=20.0, headers={"X-Request-Timeout-Ms": "500"})
        head = seen.connections[0][0].partition(b"\r\n\r\n")[0].decode().lower()
    assert [line for line in head.split("\r\n") if "timeout" in line] == ["x-request-timeout-ms: 500"]


@pytest.mark.parametrize("extensions", [[], ["statistics"], ["binary_tensor_data"]])
def test_bytes_are_sent_where_the_server_announces_them(infer: Infer, extensions: list[str]) -> None:
    described = json.dumps({"name": "s", "version": "1", "extensions": extensions}).encode()
    with peer([answer(described), answer(), answer()]) as seen:
        assert infer(seen.port, num_calls=2, options={"binary": None}) == RIGHT * 2
        first, *asked = seen.connections[0]
    assert first.startswith(b"GET /v2 HTTP/1.1")
    is_binary = extensions == ["binary_tensor_data"]
    assert [ARRAY.tobytes() in request for request in asked] == [is_binary] * 2
