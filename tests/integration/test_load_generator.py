"""The load generator of the benchmarks against a server whose behaviour is known."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.load import Load, build_generator, poisson_schedule

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

REQUEST = b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\nabc"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


@dataclass
class Scripted:
    """Gives the answers of a list in turn; None is no answer at all."""

    answers: tuple[bytes | None, ...]
    num_requests: int = 0
    bodies: list[bytes] = field(default_factory=list)
    port: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.bodies.append(await reader.readexactly(3))
                answer = self.answers[self.num_requests % len(self.answers)]
                self.num_requests += 1
                if answer is not None:
                    writer.write(answer)
                    if b"close" in answer:
                        break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


@contextmanager
def running(*answers: bytes | None) -> Iterator[Scripted]:
    server = Scripted(answers)
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(server.handle, "127.0.0.1", 0))
    server.port = listening.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def end() -> None:
        listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_generator(tmp_path_factory.mktemp("load"))


@pytest.mark.parametrize("answer", [ANSWER, CHUNKED])
def test_every_scheduled_request_is_sent_once_and_answered(program: Path, answer: bytes) -> None:
    schedule = poisson_schedule(300, 1.0, np.random.default_rng(0))
    with running(answer) as server:
        outcome = Load(program=program, port=server.port, request=REQUEST).open(schedule, timeout_s=10)
    np.testing.assert_array_equal(outcome.records["due_s"], schedule)
    assert outcome.counts() == {"200": len(schedule)}
    assert server.num_requests == len(schedule)
    assert set(server.bodies) == {b"abc"}
    times = outcome.records
    assert (times["due_s"] <= times["seen_s"]).all()
    assert (times["seen_s"] <= times["sent_s"]).all()
    assert (times["sent_s"] <= times["done_s"]).all()


def test_refusals_that_close_the_connection_are_told_from_answers(program: Path) -> None:
    schedule = np.linspace(0, 0.5, 60)
    with running(ANSWER, REFUSAL) as server:
        outcome = Load(program=program, port=server.port, request=REQUEST).open(schedule, timeout_s=10)
    assert outcome.counts() == {"200": 30, "429": 30}
    assert len(outcome.refusal_latencies_s) == 30


def test_what_is_not_answered_is_given_up_in_time_and_late_answers_are_not_waited_for(program: Path) -> None:
    schedule = np.linspace(0, 0.2, 20)
    with running(None) as server:
        outcome = Load(program=program, port=server.port, request=REQUEST).open(schedule, timeout_s=0.3)
    assert outcome.counts() == {"0": 20}
    assert (outcome.latencies_s >= 0.3).all()
    assert server.num_requests == 20


def test_a_server_that_is_not_there_answers_nothing(program: Path) -> None:
    with running(ANSWER) as server:
        pass
    outcome = Load(program=program, port=server.port, request=REQUEST).open(np.array([0.0, 0.01]), timeout_s=0.2)
    assert outcome.counts() == {"0": 2}


def test_a_closed_loop_keeps_every_connection_busy(program: Path) -> None:
    with running(ANSWER) as server:
        outcome = Load(program=program, port=server.port, request=REQUEST).closed(4, 0.5, warm_up_s=0.1)
    assert outcome.counts().keys() == {"200"}
    assert 4 <= len(outcome.records) <= server.num_requests
    assert (outcome.records["done_s"] >= 0.1).all()
