"""Traces, read by OpenTelemetry's own messages from what a collector receives: whole, in order, and without payload."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from forwardpass import Client
from forwardpass.errors import InvalidOption, MissingExtra, TensorMismatch
from forwardpass.serve.tracing import open_tracer
from tests.e2e.serving import RunningServer, infer_body, post, serve_settings, serving
from tests.models import mlp_calls, write_bundle, write_mlp, write_text_bundle

PIXELS = np.full((2, 64), 1234.5, np.float32)
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


class Collector:
    """Takes what OTLP exporters post."""

    def __init__(self, server: ThreadingHTTPServer, bodies: list[bytes]) -> None:
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        self.bodies = bodies

    def spans(self) -> list[Any]:
        """Return every span so far, by its start."""
        found = []
        for body in self.bodies:
            message = ExportTraceServiceRequest.FromString(body)
            found += [span for part in message.resource_spans for scope in part.scope_spans for span in scope.spans]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


@pytest.fixture
def collector() -> Iterator[Collector]:
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                bodies.append(body if self.headers.get("content-encoding") is None else b"")
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Collector(server, bodies)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracing")
    return write_bundle(folder / "bundle", write_mlp(folder / "mlp.onnx"), mlp_calls())


def attributes(span: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def traced(
    bundle: Path, collector: Collector, do: Callable[[RunningServer], None], **settings: Any
) -> dict[str, list[Any]]:
    """Serve, do something, stop, and return the spans by name."""
    with serving(bundle, serve_settings(otlp=collector.url, **settings)) as running:
        do(running)
    named: dict[str, list[Any]] = {}
    for span in collector.spans():
        named.setdefault(span.name, []).append(span)
    return named


def ask(running: RunningServer, **headers: str) -> None:
    with Client(f"127.0.0.1:{running.port}") as client:
        client.infer("mlp", {"pixels": PIXELS}, headers=headers)


def test_a_request_is_a_span_with_its_queue_and_its_batch(bundle: Path, collector: Collector) -> None:
    spans = traced(bundle, collector, ask)
    (request,), (queue,), (compute,) = spans["infer"], spans["queue"], spans["compute"]
    assert attributes(request) == {
        "forwardpass.model": "mlp",
        "forwardpass.model.version": "1",
        "forwardpass.rows": 2,
        "forwardpass.outcome": "ok",
        "http.response.status_code": 200,
    }
    assert attributes(compute)["forwardpass.batch.rows"] == 2
    for child in (queue, compute):
        assert (child.trace_id, child.parent_span_id) == (request.trace_id, request.span_id)
    times = [request.start_time_unix_nano, queue.start_time_unix_nano, queue.end_time_unix_nano]
    times += [compute.start_time_unix_nano, compute.end_time_unix_nano, request.end_time_unix_nano]
    assert all(later >= earlier for earlier, later in pairwise(times))


def test_the_clients_trace_goes_on_and_its_flag_is_obeyed(bundle: Path, collector: Collector) -> None:
    def do(running: RunningServer) -> None:
        ask(running, traceparent=SAMPLED)
        ask(running, traceparent=NOT_SAMPLED)
        ask(running, traceparent="nonsense")
        ask(running)

    spans = traced(bundle, collector, do, trace_sample=0.0)
    (request,) = spans["infer"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert len(spans["queue"]) == len(spans["compute"]) == 1


def test_refusals_say_their_kind_and_nothing_of_the_request(bundle: Path, collector: Collector) -> None:
    def do(running: RunningServer) -> None:
        with Client(f"127.0.0.1:{running.port}") as client:
            for name in ("secret-name", "pixels"):
                with pytest.raises(TensorMismatch):
                    client.infer("mlp", {name: PIXELS[:, :3]})
        late = {"x-request-timeout-ms": "1000"}
        with running.frozen_worker():
            answer = running.ask("POST", "/v2/models/mlp/infer", infer_body({"pixels": PIXELS}), late)
            assert answer.status == 504
        running.ask("GET", "/v2/health/ready")

    spans = traced(bundle, collector, do)
    outcomes = [attributes(span)["forwardpass.outcome"] for span in spans["infer"]]
    assert outcomes == ["tensor-mismatch", "tensor-mismatch", "deadline-exceeded"]
    assert spans["infer"][-1].status.code == 2
    everything = b"".join(collector.bodies)
    assert b"secret-name" not in everything
    assert b"1234.5" not in everything
    assert PIXELS.tobytes()[:16] not in everything


def test_a_client_that_leaves_ends_its_span(bundle: Path, collector: Collector) -> None:
    def do(running: RunningServer) -> None:
        with running.frozen_worker():
            connection = running.connect()
            connection.sendall(post("/v2/models/mlp/infer", infer_body({"pixels": PIXELS})))
            running.wait_until_accepted(1)
            connection.close()
            running.ask("GET", "/v2/health/live")  # once this is answered, the server has seen the other one leave
        ask(running)

    spans = traced(bundle, collector, do)
    assert [attributes(span)["forwardpass.outcome"] for span in spans["infer"]] == ["abandoned", "ok"]


def test_processors_are_traced_too(tmp_path: Path, collector: Collector) -> None:
    bundle = write_text_bundle(tmp_path / "bundle")

    def do(running: RunningServer) -> None:
        with Client(f"127.0.0.1:{running.port}") as client:
            client.predict("text", text=["the secret cat"])

    spans = traced(bundle, collector, do)
    assert attributes(spans["infer"][0])["forwardpass.model"] == "text"
    assert len(spans["compute"]) == 1
    assert b"cat" not in b"".join(collector.bodies)


def test_calls_over_grpc_are_traced_too(bundle: Path, collector: Collector) -> None:
    def do(running: RunningServer) -> None:
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{running.server.grpc_port}") as client:
            given = triton_grpc.InferInput("pixels", [2, 64], "FP32")
            given.set_data_from_numpy(PIXELS)
            client.infer("mlp", [given], headers={"traceparent": SAMPLED})
            with pytest.raises(triton_grpc.InferenceServerException):
                client.infer("other", [given])

    spans = traced(bundle, collector, do, grpc_port=0)
    assert [attributes(span)["forwardpass.outcome"] for span in spans["infer"]] == ["ok", "not-found"]
    assert spans["infer"][0].trace_id.hex() == TRACE
    assert spans["compute"][0].parent_span_id == spans["infer"][0].span_id


def test_a_collector_that_is_not_there_harms_nobody(bundle: Path) -> None:
    with serving(bundle, serve_settings(otlp="http://127.0.0.1:9")) as running:
        for _ in range(3):
            ask(running)


def test_without_opentelemetry_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingExtra, match=r"Install it with: pip install 'forwardpass\[otel\]'"):
        open_tracer("http://127.0.0.1:4318", sample=1.0)


@pytest.mark.parametrize("url", ["", "collector:4318", "ftp://collector", "http://", "http://u:secret@collector"])
def test_an_address_that_cannot_be_is_told(url: str) -> None:
    with pytest.raises(InvalidOption, match="expected the address of a collector, 'http://host:4318'"):
        open_tracer(url, sample=1.0)
