"""A real server on a thread of the test, and clients that can misbehave."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from forwardpass.bundle import read_name
from forwardpass.core.tensors import Array
from forwardpass.serve import Front, ModelConfig, ModelSettings, PipelineConfig, ServeConfig, Server, ServeSettings
from forwardpass.serve.native import is_available

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RunningServer:
    """A server whose event loop runs on another thread."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self._loop = loop
        self.port = server.address[1]

    def stop(self) -> None:
        """Drain and stop."""
        asyncio.run_coroutine_threadsafe(self.server.stop(), self._loop).result(PATIENCE_S)

    def call(self, function: Callable[[], None]) -> None:
        """Run a function on the server's event loop."""

        async def on_loop() -> None:
            function()

        asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result(PATIENCE_S)

    @contextmanager
    def frozen_worker(self) -> Iterator[None]:
        """Let nothing finish inside the block: what is sent waits."""
        pid = self.server.worker_pids[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):  # it was killed in the block
                os.kill(pid, signal.SIGCONT)

    def wait_until_waiting(self, num_tickets: int) -> None:
        """Return once so many requests are in the queue."""
        eventually(lambda: self.server.statistics().num_waiting == num_tickets)

    def wait_until_accepted(self, num_tickets: int) -> None:
        """Return once so many requests have come in altogether."""
        eventually(lambda: self.server.statistics().num_accepted == num_tickets)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request on a connection of its own, with Python's own client."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as client:
            return ask(client, method, path, body, headers)

    def connect(self) -> socket.socket:
        """Open a bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)


def ask(
    client: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Send one request and read its answer."""
    client.request(method, path, body, headers or {})
    response = client.getresponse()
    lowered = {name.lower(): value for name, value in response.getheaders()}
    return Answer(status=response.status, headers=lowered, body=response.read())


FRONTS = [Front.AUTO, Front.PYTHON] if is_available() else [Front.PYTHON]
"""What tests of the protocol are run with."""


def serve_settings(**changes: Any) -> ServeSettings:
    """Settings for a test, of the server and of its models alike: a free port and one worker of one thread."""
    named = {"num_threads": 1, "num_workers": 1} | changes
    models = {field.name for field in fields(ModelSettings)}
    model = ModelSettings(**{name: value for name, value in named.items() if name in models})
    return ServeSettings(
        **({"port": 0} | {name: value for name, value in named.items() if name not in models}), model=model
    )


@contextmanager
def serving(bundle: Path, settings: ServeSettings | None = None) -> Iterator[RunningServer]:
    """Serve a bundle for the length of the block."""
    chosen = settings or serve_settings()
    config = ModelConfig(name=read_name(bundle), path=bundle, settings=chosen.model)
    with serving_models([config], settings=chosen) as running:
        yield running


@contextmanager
def serving_models(
    configs: Sequence[ModelConfig],
    *,
    root: Path | None = None,
    settings: ServeSettings | None = None,
    pipelines: Sequence[PipelineConfig] = (),
) -> Iterator[RunningServer]:
    """Serve models for the length of the block."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Server:
        chosen = settings or serve_settings()
        server = Server(
            ServeConfig(settings=chosen, models=tuple(configs), repository=root, pipelines=tuple(pipelines))
        )
        await server.start()
        return server

    try:
        running = RunningServer(asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S), loop)
        try:
            yield running
        finally:
            running.stop()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class Background:
    """One call on a thread, whose answer is asked for later."""

    def __init__(self, call: Callable[[], Answer]) -> None:
        self._call = call
        self._answers: list[Answer] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._answers.append(self._call())

    def result(self) -> Answer:
        """Wait for the answer."""
        self._thread.join(PATIENCE_S)
        return self._answers[0]


def eventually(is_so: Callable[[], bool]) -> None:
    """Return as soon as `is_so`; what is looked at belongs to another process or thread and sends no event."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < give_up_s, "it did not become so in time"
        time.sleep(0.005)


def read_answers(connection: socket.socket, num_answers: int) -> list[Answer]:
    """Read so many answers from a bare connection."""
    answers = []
    with connection.makefile("rb") as stream:
        for _ in range(num_answers):
            status = int(stream.readline().split()[1])
            headers = {}
            while line := stream.readline().strip():
                name, _, value = line.decode().partition(": ")
                headers[name] = value
            answers.append(Answer(status=status, headers=headers, body=stream.read(int(headers["content-length"]))))
    return answers


def read_to_the_end(connection: socket.socket) -> bytes:
    """Read until the server hangs up."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Write a request down."""
    lines = [f"POST {path} HTTP/1.1", "host: test", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def infer_body(tensors: dict[str, Array], **fields: object) -> bytes:
    """Encode tensors as the Open Inference Protocol wants them."""
    names = {"float32": "FP32", "int64": "INT64"}
    inputs = [
        {"name": name, "shape": array.shape, "datatype": names[array.dtype.name], "data": array.ravel().tolist()}
        for name, array in tensors.items()
    ]
    return json.dumps({"inputs": inputs, **fields}).encode()


def output(answer: Answer) -> Array:
    """Return the first output of an inference."""
    assert answer.status == 200, answer.body
    tensor = answer.json["outputs"][0]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])
