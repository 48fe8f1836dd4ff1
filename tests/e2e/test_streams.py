"""Answers that come piece by piece: in order, no faster than they are read, and never half without saying so."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import trustme

from forwardpass.core.tensors import Array, Tensors
from forwardpass.errors import MalformedRequest
from forwardpass.processors import registry
from forwardpass.serve import ServeSettings
from tests.e2e.serving import RunningServer, eventually, post, read_answers, read_to_the_end, serve_settings, serving
from tests.models import pack_with_processor, write_colours, write_text_bundle

SSE = "accept: text/event-stream"
PREDICT = "/v1/models/story/predict"


class Storyteller:
    """Tells `{"count": n}` objects of `size` characters each; the test sees how far it is and may hold it up."""

    files: ClassVar[tuple[str, ...]] = ()
    num_told = 0
    num_closed = 0
    may_go_on = threading.Event()

    def __init__(self, folder: Path) -> None:
        self._request: Mapping[str, Any] = {}

    def encode(self, request: Mapping[str, Any]) -> dict[str, Array]:
        self._request = request
        threading.Event().wait(request.get("sleep_s", 0))
        return {"pixels": np.full((1, 3, 8, 8), request["count"], np.float32)}

    def decode(self, outputs: Tensors) -> Mapping[str, object]:
        return {"count": int(outputs["scores"][0, 0])}

    def stream(self, outputs: Tensors) -> Iterator[Mapping[str, object]]:
        request = self._request
        try:
            for number in range(int(outputs["scores"][0, 0])):
                if number == request.get("wait_at"):
                    assert self.may_go_on.wait(60)
                if number == request.get("fail_at"):
                    raise MalformedRequest(reason="no more") if request.get("politely") else ZeroDivisionError
                Storyteller.num_told += 1
                yield {"number": number, "text": "x" * request.get("size", 1)}
        finally:
            Storyteller.num_closed += 1


@pytest.fixture(scope="module", autouse=True)
def storyteller() -> Iterator[None]:
    registry.SHIPPED["storyteller"] = f"{__name__}:Storyteller"
    yield
    del registry.SHIPPED["storyteller"]


@pytest.fixture(autouse=True)
def fresh() -> None:
    Storyteller.num_told = Storyteller.num_closed = 0
    Storyteller.may_go_on = threading.Event()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    call = {"pixels": np.ones((1, 3, 8, 8), np.float32)}
    return pack_with_processor(
        tmp_path_factory.mktemp("story") / "story", write_colours, call, "story", "storyteller", {}
    )


@pytest.fixture(scope="module")
def served(bundle: Path, storyteller: None) -> Iterator[RunningServer]:
    with serving(bundle) as running:
        yield running


def request(**fields: object) -> bytes:
    return post(PREDICT, json.dumps(fields).encode(), SSE)


def read_head(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    return head


def read_chunks(connection: socket.socket) -> Iterator[bytes]:
    """Read chunks as RFC 9112 has them, until the last."""
    while True:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = connection.recv(1)
            assert byte, "the connection ends before the last chunk"
            line += byte
        size = int(line, 16)
        piece = b""
        while len(piece) < size + 2:
            piece += connection.recv(size + 2 - len(piece))
        if size == 0:
            return
        yield piece[:-2]


def events(text: bytes) -> list[tuple[str, Any]]:
    """Parse events as the standard for browsers has them."""
    found = []
    for block in text.decode().split("\n\n")[:-1]:
        fields = dict(re.findall(r"^(\w+): ?(.*)$", block, re.MULTILINE))
        found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


def test_curl_reads_an_event_for_each_text_of_a_sentence_encoder(tmp_path: Path) -> None:
    with serving(write_text_bundle(tmp_path / "text")) as served:
        url = f"http://127.0.0.1:{served.port}/v1/models/text/predict"
        body = json.dumps({"text": ["the cat", "a kitten naps", "."]})
        command = ["curl", "-sSN", "-i", "-H", SSE, "-d", body, url]
        answered = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
        whole = served.ask("POST", "/v1/models/text/predict", body.encode()).json["embeddings"]
    head, _, text = answered.partition(b"\r\n\r\n")
    assert b"content-type: text/event-stream\r\n" in head.lower() + b"\r\n"
    assert b"transfer-encoding: chunked" in head.lower()
    *rows, done = events(text)
    assert rows == [("message", {"text": index, "embedding": row}) for index, row in enumerate(whole)]
    assert done == ("done", {"num_events": 3})


def test_every_event_is_a_chunk_that_comes_when_it_is_there(served: RunningServer) -> None:
    with closing(served.connect()) as connection:
        connection.sendall(request(count=3, wait_at=1))
        assert b"200 OK" in read_head(connection)
        chunks = read_chunks(connection)
        assert events(next(chunks)) == [("message", {"number": 0, "text": "x"})]  # the second is not there yet
        Storyteller.may_go_on.set()
        assert events(b"".join(chunks))[-1] == ("done", {"num_events": 3})
        connection.sendall(post(PREDICT, b'{"count": 7}'))
        assert read_answers(connection, 1)[0].json == {"count": 7}


def test_pipelined_requests_around_a_stream_are_answered_in_order(served: RunningServer) -> None:
    with closing(served.connect()) as connection:
        alive = b"GET /v2/health/live HTTP/1.1\r\nhost: test\r\n\r\n"
        connection.sendall(alive + request(count=2) + alive + request(count=1) + alive)
        assert read_answers_unbuffered(connection) == {"live": True}
        for count in (2, 1):
            assert b"chunked" in read_head(connection)
            assert events(b"".join(read_chunks(connection)))[-1] == ("done", {"num_events": count})
            assert read_answers_unbuffered(connection) == {"live": True}


def read_answers_unbuffered(connection: socket.socket) -> Any:
    head = read_head(connection)
    (length,) = re.findall(rb"content-length: (\d+)", head)
    return json.loads(connection.recv(int(length), socket.MSG_WAITALL))


@pytest.mark.parametrize("header", [b"", b"connection: keep-alive\r\n"])
def test_a_client_of_http_1_0_gets_no_chunks_and_the_end_of_the_connection(
    served: RunningServer, header: bytes
) -> None:
    with closing(served.connect()) as connection:
        connection.sendall(request(count=2).replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n" + header))
        head, _, text = read_to_the_end(connection).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"connection: close" in head
    assert [name for name, _ in events(text)] == ["message", "message", "done"]


@pytest.mark.parametrize(
    ("politely", "said"),
    [
        (False, {"error": "the processor failed on this answer"}),
        (True, {"error": "Malformed request: no more.", "slug": "malformed-request", "facts": {"reason": "no more"}}),
    ],
)
def test_an_error_in_the_middle_is_the_last_event(served: RunningServer, politely: bool, said: object) -> None:
    with closing(served.connect()) as connection:
        connection.sendall(request(count=5, fail_at=2, politely=politely))
        read_head(connection)
        assert events(b"".join(read_chunks(connection)))[1:] == [
            ("message", {"number": 1, "text": "x"}),
            ("error", said),
        ]
        connection.sendall(post(PREDICT, b'{"count": 1}'))
        assert read_answers(connection, 1)[0].status == 200


def test_the_deadline_includes_what_the_processor_does_with_the_request(served: RunningServer) -> None:
    answer = served.ask("POST", PREDICT, b'{"count": 1, "sleep_s": 0.4}', {"x-request-timeout-ms": "300"})
    assert answer.status == 504
    assert answer.json["error"] == "The request could not be answered within its deadline of 0.3 s."


def test_an_error_before_the_start_is_an_ordinary_answer(served: RunningServer) -> None:
    answer = served.ask("POST", PREDICT, b"[]", {"accept": "text/event-stream"})
    assert (answer.status, answer.json["error"]) == (400, "Malformed request: the body must be a JSON object.")


def told_until_it_stands_still() -> int:
    """Wait until nothing more is told, and return how much that is."""
    told = -1

    def stands_still() -> bool:
        nonlocal told
        before, told = told, Storyteller.num_told
        threading.Event().wait(0.2)
        return before == told == Storyteller.num_told > 0

    eventually(stands_still)
    return told


def test_a_reader_that_stops_holds_up_the_generator_and_closes_it_by_leaving(served: RunningServer) -> None:
    size, count = 2**20, 1000
    with closing(served.connect()) as connection:
        connection.sendall(request(count=count, size=size))
        read_head(connection)
        assert told_until_it_stands_still() < 50  # what fits into the buffers of the kernel, and one
        assert served.ask("POST", PREDICT, b'{"count": 7}').status == 200  # nobody else is held up
        assert Storyteller.num_closed == 0
    eventually(lambda: Storyteller.num_closed == 1)
    assert Storyteller.num_told < 100


def test_a_reader_that_leaves_while_the_next_event_is_made_closes_the_generator_after_it(served: RunningServer) -> None:
    with closing(served.connect()) as connection:
        connection.sendall(request(count=10**7, wait_at=1))
        read_head(connection)
        eventually(lambda: Storyteller.num_told == 1)
    Storyteller.may_go_on.set()
    eventually(lambda: Storyteller.num_closed == 1)
    assert Storyteller.num_told < 10**7


def stop_later(served: RunningServer) -> threading.Thread:
    thread = threading.Thread(target=served.stop)
    thread.start()
    eventually(lambda: not served.server.is_ready)
    return thread


def run_while_stopping(bundle: Path, settings: ServeSettings, *, goes_on: bool) -> list[tuple[str, Any]]:
    with serving(bundle, settings) as served, closing(served.connect()) as connection:
        connection.sendall(request(count=3, wait_at=1))
        read_head(connection)
        chunks = read_chunks(connection)
        first = next(chunks)
        stopping = stop_later(served)
        if goes_on:
            Storyteller.may_go_on.set()
        rest = b"".join(chunks)
        Storyteller.may_go_on.set()
        stopping.join(60)
        assert connection.recv(1) == b""
    return events(first + rest)


def test_stopping_waits_for_a_stream(bundle: Path) -> None:
    assert run_while_stopping(bundle, serve_settings(grace_s=30.0), goes_on=True)[-1] == ("done", {"num_events": 3})


def test_after_the_grace_time_a_stream_is_told_that_it_ends(bundle: Path) -> None:
    name, document = run_while_stopping(bundle, serve_settings(grace_s=0.3), goes_on=False)[-1]
    assert (name, document["error"]) == ("error", "The server is not ready: it is stopping.")


def test_a_reader_that_never_reads_is_hung_up_on_in_time(bundle: Path) -> None:
    with serving(bundle, serve_settings(body_timeout_s=0.3)) as served, closing(served.connect()) as connection:
        connection.sendall(request(count=10**6, size=2**20))
        eventually(lambda: Storyteller.num_closed == 1)
        assert Storyteller.num_told < 100


def test_streams_over_tls_are_held_up_by_their_readers_too(bundle: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with serving(bundle, serve_settings(certificate=tmp_path / "both.pem")) as served:
        with context.wrap_socket(served.connect(), server_hostname="127.0.0.1") as connection:
            connection.sendall(request(count=3))
            read_head(connection)
            assert events(b"".join(read_chunks(connection)))[-1] == ("done", {"num_events": 3})
            Storyteller.num_told = Storyteller.num_closed = 0
            connection.sendall(request(count=1000, size=2**20))
            read_head(connection)
            assert told_until_it_stands_still() < 50
        eventually(lambda: Storyteller.num_closed == 1)
