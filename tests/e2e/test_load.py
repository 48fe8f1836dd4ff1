"""`forwardpass load` against real servers: forwardpass, a foreign one, and some that misbehave."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import trustme
import uvicorn
from click.testing import CliRunner
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

import forwardpass
from forwardpass.cli import main
from forwardpass.core.slo import Slo
from forwardpass.errors import InvalidAnswer, InvalidOption, ServerFailed, ServerUnreachable
from forwardpass.loadtest import Arrivals, LoadResult, LoadSettings, LoadSummary, Scenario, TargetSettings
from tests.e2e.serving import eventually, serve_settings, serving
from tests.models import mlp_calls, write_bundle, write_mlp

STALL_S = 1.0
INTERRUPTED = "Interrupted."


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load")
    return write_bundle(folder / "bundle", write_mlp(folder / "mlp.onnx"), mlp_calls())


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Let `serve` deal with each connection on a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    threads = []

    def deal_with(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            serve(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=deal_with, args=(listener.accept()[0],), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(10)
        for thread in threads:
            thread.join(10)


def requests_on(connection: socket.socket) -> Iterator[bytes]:
    """Read requests without a body."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
        while b"\r\n\r\n" in received:
            head, _, received = received.partition(b"\r\n\r\n")
            yield head


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def loaded(url: str, *, settings: LoadSettings, **target: object) -> LoadSummary:
    result = forwardpass.load_test(TargetSettings(url=url, path="/", **target), settings=settings)  # type: ignore[arg-type]
    assert result.summary is not None
    return result.summary


def open_loop(rate_per_s: float, **changes: object) -> LoadSettings:
    fields = {"duration_s": 1.0, "warm_up_s": 0.0, "arrivals": Arrivals.CONSTANT, "rate_per_s": rate_per_s}
    return LoadSettings(scenario=Scenario.SERVER, **(fields | changes))  # type: ignore[arg-type]


def failures(summary: LoadSummary) -> dict[str, int]:
    return {failure.what: failure.num_requests for failure in summary.failures}


# --- no coordinated omission ---------------------------------------------------------------------------------------


def test_a_stall_is_felt_by_every_request_that_was_due_meanwhile() -> None:
    """The server answers nothing for a second; each request due then has to wait for the rest of that second."""
    begin_s: list[float] = []
    lock = threading.Lock()

    def serve(connection: socket.socket) -> None:
        for number, _ in enumerate(requests_on(connection)):
            with lock:
                if not begin_s and number:  # the first was the probe
                    begin_s.append(time.monotonic())
            if begin_s:
                rest_s = begin_s[0] + 0.5 + STALL_S - time.monotonic()
                if 0 < rest_s < STALL_S:
                    time.sleep(rest_s)
            connection.sendall(OK)

    with raw_server(serve) as url:
        summary = loaded(url, settings=open_loop(200, duration_s=3.0, max_connections=4))
    assert summary.num_succeeded == summary.num_offered == 600
    assert summary.max_s is not None
    assert summary.max_s > 0.9 * STALL_S
    slow = [window for window in summary.windows if window.p50_s is not None and window.p50_s > 0.1]
    assert sum(window.num_offered for window in slow) >= 0.75 * STALL_S * 200
    medians_s = [window.p50_s for window in slow if window.p50_s is not None]
    assert all(earlier > later for earlier, later in pairwise(medians_s))


def test_a_closed_loop_would_have_hidden_it() -> None:
    """The same server, asked one request after another: one slow answer, and all percentiles look fine."""
    begun_s: list[float] = []

    def serve(connection: socket.socket) -> None:
        for _ in requests_on(connection):
            begun_s.append(time.monotonic())
            if len(begun_s) == 300:
                time.sleep(STALL_S)
            connection.sendall(OK)

    with raw_server(serve) as url:
        summary = loaded(url, settings=LoadSettings(max_requests=1000, duration_s=60, warm_up_s=0))
    assert summary.max_s is not None
    assert summary.max_s >= STALL_S
    assert summary.p99_s is not None
    assert summary.p99_s.value < 0.5 * STALL_S


# --- servers that misbehave ----------------------------------------------------------------------------------------


def after_the_probe(misbehave: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """Answer the first request of the server's life, then misbehave."""
    num_seen = 0

    def serve(connection: socket.socket) -> None:
        nonlocal num_seen
        for _ in requests_on(connection):
            num_seen += 1
            if num_seen > 1:
                misbehave(connection)
                return
            connection.sendall(OK)

    return serve


def test_a_server_that_hangs_up_fails_every_request() -> None:
    with raw_server(after_the_probe(lambda connection: connection.close())) as url:
        summary = loaded(url, settings=open_loop(50))
    assert failures(summary) == {"connection closed before the answer": 50}


def test_half_an_answer_is_none() -> None:
    with raw_server(after_the_probe(lambda connection: connection.sendall(OK[:-1]))) as url:
        summary = loaded(url, settings=open_loop(50))
    assert failures(summary) == {"connection closed before the answer": 50}


def test_garbage_is_not_an_answer() -> None:
    with raw_server(after_the_probe(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n"))) as url:
        summary = loaded(url, settings=open_loop(50))
    assert failures(summary) == {"answer is not HTTP": 50}


def test_an_answer_too_many_spoils_the_connection() -> None:
    with raw_server(after_the_probe(lambda connection: connection.sendall(OK + OK))) as url:
        summary = loaded(url, settings=open_loop(20))
    assert failures(summary) == {"answer is not HTTP": 20}


def test_a_silent_server_costs_the_timeout_from_when_the_request_was_due() -> None:
    def wait(connection: socket.socket) -> None:
        connection.recv(1)

    with raw_server(after_the_probe(wait)) as url:
        summary = loaded(url, settings=open_loop(50, timeout_s=0.5))
    assert failures(summary) == {"no answer in time": 50}


def test_a_server_that_goes_away_refuses() -> None:
    """It closes its listening socket with the first request of the load."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for number in range(3):  # the probes: an address, a request; then the load
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                if number == 2:
                    listener.close()
                elif connection.recv(65536):
                    connection.sendall(OK)

    thread = threading.Thread(target=serve)
    thread.start()
    summary = loaded(f"http://127.0.0.1:{listener.getsockname()[1]}", settings=open_loop(50))
    thread.join(10)
    assert summary.num_succeeded == 0
    assert failures(summary)["connection refused"] >= 40
    assert sum(failures(summary).values()) == 50


def test_an_answer_that_ends_with_the_connection_counts() -> None:
    """As servers of HTTP/1.0 do it, such as Python's own."""

    def serve(connection: socket.socket) -> None:
        for _ in requests_on(connection):
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")
            return

    with raw_server(serve) as url:
        summary = loaded(url, settings=open_loop(50))
    assert summary.num_succeeded == 50
    assert summary.generator.num_connections == 50


def test_a_server_that_closes_after_each_answer_is_asked_anew() -> None:
    def serve(connection: socket.socket) -> None:
        for _ in requests_on(connection):
            connection.sendall(OK.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            return

    with raw_server(serve) as url:
        closed = LoadSettings(scenario=Scenario.OFFLINE, num_connections=4, max_requests=100, warm_up_s=0)
        summary = loaded(url, settings=closed)
    assert (summary.num_succeeded, summary.generator.num_connections) == (100, 100)
    assert summary.generator.most_connections <= 4


def test_chunks_and_interim_answers_are_read() -> None:
    num_seen = 0

    def serve(connection: socket.socket) -> None:
        nonlocal num_seen
        for _ in requests_on(connection):
            num_seen += 1
            if num_seen > 1:  # Python's own client, with which the probe is sent, knows no 103
                connection.sendall(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
            connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")

    with raw_server(serve) as url:
        summary = loaded(url, settings=open_loop(50))
    assert summary.num_succeeded == 50


def test_nobody_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ServerUnreachable) as caught:
        forwardpass.load_test(f"http://127.0.0.1:{port}")
    assert str(caught.value) == f"Cannot reach the server at http://127.0.0.1:{port}: connection refused."
    with pytest.raises(SystemExit) as ended:
        main(["load", f"http://127.0.0.1:{port}"])
    assert ended.value.code == 3
    assert capsys.readouterr().err == f"Error: {caught.value}\n"


def test_a_server_of_another_kind_is_named() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"SSH-2.0-OpenSSH\r\n")
        connection.recv(65536)

    with raw_server(serve) as url, pytest.raises(InvalidAnswer, match="it is not HTTP"):
        forwardpass.load_test(url)


# --- forwardpass itself --------------------------------------------------------------------------------------------


def test_our_own_server_is_loaded_in_every_scenario(bundle: Path) -> None:
    with serving(bundle, serve_settings()) as running:
        url = f"http://127.0.0.1:{running.port}"
        bounded = LoadSettings(max_requests=200, duration_s=30, warm_up_s=0)
        alone = forwardpass.load_test(url, settings=bounded)
        offline = forwardpass.load_test(
            f"{url}/v2/models/mlp/infer",
            settings=LoadSettings(
                scenario=Scenario.OFFLINE, num_connections=8, max_requests=400, duration_s=30, warm_up_s=0
            ),
        )
        opened = forwardpass.load_test(
            TargetSettings(url=url, model="mlp", num_rows=3), settings=open_loop(100, arrivals=Arrivals.BURSTS)
        )
        num_accepted = running.server.statistics().num_accepted
    assert alone.target == f"{url}, model mlp, 1 row of made-up inputs as binary tensors"
    for result, number in ((alone, 200), (offline, 400)):
        assert result.summary is not None
        assert result.summary.num_succeeded == result.summary.num_offered == number
    assert opened.summary is not None
    assert opened.summary.num_succeeded == opened.summary.num_offered
    probes_and_requests = 3 + 600 + opened.summary.num_offered
    assert num_accepted == probes_and_requests


def test_samples_are_sent(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", pixels=np.random.default_rng(0).standard_normal((5, 64)), labels=np.arange(5))
    with serving(bundle) as running:
        target = TargetSettings(url=f"127.0.0.1:{running.port}", data=str(tmp_path / "samples.npz"))
        result = forwardpass.load_test(target, settings=LoadSettings(max_requests=20, warm_up_s=0))
    assert result.target.endswith("1 row of samples as binary tensors")
    assert result.summary is not None
    assert result.summary.num_succeeded == 20


def test_a_trace_is_replayed(bundle: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("\n".join(str(1000 + at * 0.01) for at in range(30)))
    with serving(bundle) as running:
        settings = LoadSettings(scenario=Scenario.SERVER, trace=trace)
        result = forwardpass.load_test(f"http://127.0.0.1:{running.port}", settings=settings)
    assert result.summary is not None
    assert result.summary.num_offered == 30
    assert result.summary.duration_s == pytest.approx(0.29)


def test_what_the_server_says_is_wrong_is_said(bundle: Path) -> None:
    with serving(bundle) as running:
        url = f"http://127.0.0.1:{running.port}"
        with pytest.raises(ServerFailed, match="status 404: GET /v2/models/nobody: There is no model 'nobody'"):
            forwardpass.load_test(TargetSettings(url=url, model="nobody"))
        with pytest.raises(ServerFailed, match="status 400: POST /v2/models/mlp/infer: "):
            forwardpass.load_test(TargetSettings(url=url, path="/v2/models/mlp/infer", template=_template(bundle)))


def _template(bundle: Path) -> Path:
    template = bundle.parent / "template.json"
    template.write_text('{"inputs": "{{floats:64}}"}')
    return template


def test_the_capacity_of_a_server_with_one_worker_is_found() -> None:
    """A worker that sleeps 10 ms for each request in turn serves at most 100 a second, and with queueing fewer."""
    turn = threading.Lock()

    def serve(connection: socket.socket) -> None:
        for _ in requests_on(connection):
            with turn:
                time.sleep(0.01)
            connection.sendall(OK)

    with raw_server(serve) as url:
        result = forwardpass.find_capacity(
            TargetSettings(url=url, path="/"), Slo(percent=90, limit_s=0.3), budget_s=20, with_goodput=False
        )
    assert result.capacity is not None
    assert 0 < result.capacity.capacity.rate_per_s < 100
    assert result.is_met
    assert result.took_s < 40


def test_a_budget_without_room_for_a_trial_is_refused_and_no_target_is_called_missed(bundle: Path) -> None:
    with serving(bundle) as running, pytest.raises(InvalidOption) as caught:
        forwardpass.find_capacity(f"http://127.0.0.1:{running.port}", Slo(percent=99, limit_s=0.02), budget_s=4)
    assert re.fullmatch(
        r"Invalid value '4' for --budget: expected at least \d+ seconds here: that is when a first trial could be "
        r"over, \d+ of them kept for the loads beyond it \(--no-goodput\)\.",
        str(caught.value),
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_load_ends_with_the_one_who_asked_for_it(bundle: Path, number: int, code: int) -> None:
    """Whether it is interrupted or killed: no process goes on sending."""
    with serving(bundle) as running:
        command = [sys.executable, "-m", "forwardpass", "load", f"http://127.0.0.1:{running.port}", "--duration", "600"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        eventually(lambda: running.server.statistics().num_accepted > 20)
        (generator,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        eventually(lambda: not generator.is_running() or generator.status() == psutil.STATUS_ZOMBIE)
    assert process.returncode == code
    assert said.strip() == (INTERRUPTED if number == signal.SIGINT else "")


# --- a foreign server ----------------------------------------------------------------------------------------------


class Pixels(BaseModel):
    pixels: list[float]
    name: str


@contextmanager
def foreign_server() -> Iterator[str]:
    """FastAPI under uvicorn, which checks what it gets."""
    app = FastAPI()

    @app.post("/predict")
    async def predict(body: Pixels, x_key: str = Header(), x_request_timeout_ms: int = Header(default=0)) -> object:
        if x_key != "secret" or len(body.pixels) != 8 or body.name not in ("cat", "dog"):
            raise HTTPException(422, "this is not what was agreed")
        return {"sum": sum(body.pixels), "timeout": x_request_timeout_ms}

    @app.get("/accepted", status_code=202)
    async def accepted() -> None:
        return None

    with served(app) as url:
        yield url


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


def run(*words: str) -> tuple[int, str]:
    """Run the command line in this process and return its exit code and output."""
    from forwardpass.cli.load import command

    result = CliRunner().invoke(command, list(words), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.stdout


def test_a_foreign_server_is_loaded_from_a_template(tmp_path: Path) -> None:
    template = tmp_path / "body.json"
    template.write_text('{"pixels": "{{floats:8}}", "name": "{{choice:cat|dog}}"}')
    page = tmp_path / "load.html"
    with foreign_server() as url:
        words = [
            url,
            "--path",
            "/predict",
            "--template",
            str(template),
            "--header",
            "X-Key: secret",
            "--deadline",
            "500",
        ]
        limited = ["--rate", "100", "--duration", "1", "--warm-up", "0"]
        code, output = run(*words, *limited, "--slo", "p50=10s", "--json", "--html", str(page))
        document = json.loads(output)
        missed, text = run(*words, *limited, "--slo", "p99=1us")
        with pytest.raises(ServerFailed, match="status 422: POST /predict: "):
            run(*words[:5], "--header", "X-Key: wrong")
        accepted, _ = run(url, "--path", "/accepted", "--status", "202", "--requests", "10", "--warm-up", "0")
    assert code == accepted == 0
    assert document["schema_version"] == 1
    summary = document["load"]["summary"]
    assert summary["num_succeeded"] == summary["num_offered"] > 50
    assert document["load"]["is_met"] is True
    assert missed == 1
    assert "MISSED" in text
    assert page.read_text().startswith("<!doctype html>")
    assert "secret" not in output + text + page.read_text()


def test_a_server_without_binary_tensors_gets_json() -> None:
    """Only what the protocol requires: metadata and inference."""
    app = FastAPI()
    seen: list[object] = []

    @app.get("/v2")
    async def server() -> object:
        return {"name": "other", "version": "1", "extensions": []}

    @app.get("/v2/models/m")
    async def metadata() -> object:
        inputs = [
            {"name": "x", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
        ]
        return {"name": "m", "platform": "other", "inputs": inputs, "outputs": []}

    @app.post("/v2/models/m/infer")
    async def infer(body: dict[str, list[dict[str, object]]]) -> object:
        seen.extend((tensor["name"], tensor["shape"], tensor["datatype"]) for tensor in body["inputs"])
        return {"model_name": "m", "outputs": []}

    with served(app) as url:
        target = TargetSettings(url=f"{url}/v2/models/m", num_rows=2)
        result = forwardpass.load_test(target, settings=LoadSettings(max_requests=5, warm_up_s=0))
        with pytest.raises(InvalidOption, match="the server does not list its models"):
            forwardpass.load_test(url)
    assert result.target.endswith("model m, 2 rows of made-up inputs as JSON tensors")
    assert result.summary is not None
    assert result.summary.num_succeeded == 5
    assert seen == [("x", [2, 3], "FP32"), ("ids", [2, 16], "INT64")] * 6


def test_https_is_spoken_to_those_who_can_be_trusted(bundle: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    settings = LoadSettings(max_requests=10, warm_up_s=0)
    with serving(bundle, serve_settings(certificate=tmp_path / "both.pem")) as running:
        url = f"https://localhost:{running.port}"
        trusting = TargetSettings(url=url, certificates=tmp_path / "authority.pem")
        result = forwardpass.load_test(trusting, settings=settings)
        with pytest.raises(ServerUnreachable, match="its certificate is not trusted"):
            forwardpass.load_test(url, settings=settings)
        with pytest.raises(InvalidOption, match="--ca"):
            forwardpass.load_test(TargetSettings(url=url, certificates=tmp_path / "none.pem"), settings=settings)
    assert result.summary is not None
    assert result.summary.num_succeeded == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ftp://x"], "Invalid value 'ftp://x' for URL: expected an address such as http://127.0.0.1:8000."),
        (["x", "--capacity"], "--slo is missing: expected a target to search within, such as p99=100ms."),
        (
            ["x", "--scenario", "server"],
            "--rate is missing: expected requests per second, or --trace, or --capacity.",
        ),
        (["x", "--rate", "-3"], "Invalid value '-3' for --rate: expected 0.001 to 1e+06 requests per second."),
        (
            ["x", "--rate", "1e6", "--duration", "100"],
            "Invalid value '1e+06/s for 101 s' for --rate: expected at most 2,000,000 requests in one run.",
        ),
        (
            ["x", "--template", "body.json"],
            "--path is missing: expected the path that takes the template, such as /predict.",
        ),
        (
            ["x", "--header", "novalue"],
            "Invalid value 'novalue' for --header: expected a name and a value, 'Name: value'.",
        ),
        (
            ["x", "--slo", "fast"],
            "Invalid value 'fast' for --slo: expected a percentile and a limit, such as p95=50ms.",
        ),
        (["x", "--seed", "-1"], "Invalid value '-1' for --seed: expected 0 to 9.22337e+18."),
        (["x", "--timeout", "nan"], "Invalid value 'nan' for --timeout: expected 0.001 to 3600 seconds."),
        (
            ["x", "--capacity", "--slo", "p99=1s", "--budget", "0"],
            "Invalid value '0' for --budget: expected 1 to 86400 seconds.",
        ),
        (
            ["x", "--report", "none/load.html"],
            "Invalid value 'none/load.html' for --report: expected a file in a folder that exists.",
        ),
        (
            ["x", "--rate", "1", "--connections", "3"],
            "Invalid value '3' for --connections: expected the offline scenario.",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(words: list[str], message: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        run(*words)
    assert str(caught.value) == message


def test_the_result_is_plain_data(bundle: Path) -> None:
    with serving(bundle) as running:
        result = forwardpass.load_test(
            f"http://127.0.0.1:{running.port}", settings=LoadSettings(max_requests=10, warm_up_s=0)
        )
    assert isinstance(result, LoadResult)
    assert result.is_met is None
