"""What an operator sees: metrics, statistics, the interface's own description, the configuration, the log."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.checks import not_a_server_error, response_schema_conformance, status_code_conformance

from forwardpass.bundle import read_name
from forwardpass.core.slo import Slo
from forwardpass.errors import InvalidConfig
from forwardpass.serve import PipelineConfig, StepConfig, read_config
from forwardpass.serve.logs import configure_logs
from tests.e2e.serving import Background, RunningServer, eventually, infer_body, serve_settings, serving
from tests.models import mlp_calls, write_bundle, write_mlp

INFER = "/v2/models/mlp/infer"
BODY = infer_body({"pixels": np.ones((2, 64), np.float32)})
MARK = 0.123456789


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("observe")
    return write_bundle(folder / "mlp", write_mlp(folder / "mlp.onnx"), mlp_calls())


@pytest.fixture
def served(bundle: Path) -> Iterator[RunningServer]:
    with serving(bundle, serve_settings(slo=Slo.parse("p99=7s"))) as running:
        yield running


def metrics(running: RunningServer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read the metrics with Prometheus' own parser."""
    answer = running.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def value(read: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return read[name, frozenset({"model": "mlp", "version": "1", **labels}.items())]


def test_metrics_say_what_happened_and_why_batches_were_closed(served: RunningServer) -> None:
    with served.frozen_worker():
        first = Background(lambda: served.ask("POST", INFER, BODY))
        eventually(lambda: served.server.statistics().num_batches == 1)
        others = [Background(lambda: served.ask("POST", INFER, BODY)) for _ in range(3)]
        served.wait_until_waiting(3)
        late = served.ask("POST", INFER, BODY, {"X-Request-Timeout-Ms": "20"})
    assert late.status in (429, 504)
    assert [answer.result().status for answer in (first, *others)] == [200] * 4
    assert served.ask("POST", INFER, b"{").status == 400
    read = metrics(served)
    assert value(read, "forwardpass_requests_total", outcome="ok") == 4
    assert value(read, "forwardpass_requests_total", outcome="malformed-request") == 1
    assert value(read, "forwardpass_rows_total") == 8
    assert value(read, "forwardpass_batches_total", reason="queue-empty") == 2
    assert value(read, "forwardpass_batch_rows_bucket", le="2.0") == 1
    assert value(read, "forwardpass_batch_rows_bucket", le="8.0") == 2
    assert value(read, "forwardpass_request_seconds_bucket", le="7.0") == 4, "an edge lies on the target"
    assert value(read, "forwardpass_request_seconds_count") == 4
    assert value(read, "forwardpass_queue_seconds_count") == 4
    assert value(read, "forwardpass_compute_seconds_count") == 2
    assert value(read, "forwardpass_request_seconds_sum") >= value(read, "forwardpass_queue_seconds_sum")
    assert value(read, "forwardpass_waiting_requests") == 0
    assert value(read, "forwardpass_model_ready") == 1


def test_the_target_is_the_deadline_of_those_that_name_none(bundle: Path) -> None:
    with serving(bundle, serve_settings(slo=Slo.parse("p99=50ms"))) as running, running.frozen_worker():
        answer = running.ask("POST", INFER, BODY)
    assert answer.status == 504
    assert answer.json["error"] == "The request could not be answered within its deadline of 0.05 s."


def test_a_large_request_is_run_in_parts_and_answered_whole(bundle: Path) -> None:
    pixels = {"pixels": np.random.default_rng(1).standard_normal((37, 64)).astype(np.float32)}
    with serving(bundle, serve_settings(max_batch_rows=8)) as running:
        whole = running.ask("POST", INFER, infer_body(pixels)).json["outputs"][0]
        assert whole["shape"] == [37, 10]
        rows = [
            running.ask("POST", INFER, infer_body({"pixels": row[None]})).json["outputs"][0]["data"]
            for row in pixels["pixels"]
        ]
        assert np.array_equal(np.array(whole["data"], np.float32).reshape(37, 10), np.array(rows, np.float32))
        read = metrics(running)
    assert value(read, "forwardpass_batch_rows_bucket", le="8.0") == value(read, "forwardpass_batch_rows_count")
    assert value(read, "forwardpass_requests_total", outcome="ok") == 38
    assert value(read, "forwardpass_rows_total") == 37 + 37


def test_what_is_urgent_overtakes(bundle: Path) -> None:
    def ask(running: RunningServer, priority: int) -> Background:
        body = infer_body({"pixels": np.ones((1, 64), np.float32)}, parameters={"priority": priority})
        return Background(lambda: running.ask("POST", INFER, body))

    with serving(bundle, serve_settings(max_batch_rows=1)) as running:
        started: list[int] = []
        dispatcher = running.server.repository.models["mlp"].default._dispatcher
        start = dispatcher._start

        def note(lane: Any, batch: Any, place: Any) -> None:
            started.append(batch.tickets[0].priority)
            start(lane, batch, place)

        dispatcher._start = note  # type: ignore[method-assign]
        with running.frozen_worker():
            asked = [ask(running, 0)]
            eventually(lambda: running.server.statistics().num_batches == 1)
            for number, priority in enumerate((0, 9, 1, 30), start=1):
                asked.append(ask(running, priority))
                running.wait_until_waiting(number)
        assert [answer.result().status for answer in asked] == [200] * 5
    assert started == [5, 1, 5, 9, 9]


# --- the interface describes itself


def test_the_page_of_the_interface_needs_nothing_from_elsewhere(served: RunningServer) -> None:
    page = served.ask("GET", "/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    text = page.body.decode()
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", text)
    assert "/v2/models/mlp/infer" in text
    example = served.ask("GET", "/openapi.json").json["paths"][INFER]["post"]["requestBody"]["content"]
    body = json.dumps(example["application/json"]["schema"]["example"]).encode()
    assert served.ask("POST", INFER, body).status == 200, "the example is one"


def test_the_server_keeps_to_its_own_openapi_document(served: RunningServer) -> None:
    """Schemathesis makes requests from the document, right ones and wrong ones, and looks at every answer."""
    url = f"http://127.0.0.1:{served.port}"
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    count = 0
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]  # an error raises here

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            case.call_and_validate(checks=checks)

        ask()
        count += 1
    assert count >= 10


# --- configuration and log


def test_every_mistake_of_a_configuration_is_told_at_once(tmp_path: Path, bundle: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(f"""
colour = "red"
threads = 2
grace = 5
[server]
port = 70000
speed = 3
repository = "nowhere"
keys = "serve.toml"
tls_cert = "cert.pem"
[defaults]
same_answer = "always"
threads = 0
slo = "fast"
[[models]]
path = "missing"
[[models]]
path = "{bundle}"
split = {{ "1" = -1 }}
[[models]]
name = "../up"
path = "{bundle}"
variant = "int4"
labels = {{ stable = 9 }}
[[models]]
workers = 1
[[pipelines]]
name = "a b"
steps = [{{ model = "x" }}, {{ modle = "y" }}]
max_in_flight = 0
[[pipelines]]
steps = []
""")
    with pytest.raises(InvalidConfig) as caught:
        read_config(path)
    told = "\n".join(caught.value.mistakes)
    for part in (
        "'colour' is not known",
        "'threads' belongs into [defaults] or a [[models]]",
        "'grace' belongs into the section [server]",
        "server.port: Expected `int` <= 65535",
        "server.speed: is not known; there are host, port",
        "server.repository: there is no folder",
        "server.keys: Cannot use",
        f"server.tls_cert: there is no file '{tmp_path / 'cert.pem'}'",
        "defaults.same_answer: Invalid enum value 'always'; expected one of affordable, bitwise, rounding",
        "models[2].variant: Invalid value 'int4' for --variant: expected one of onnx-fp32.",
        "models[2]: There is no version '9' of '../up' here. Available: 1.",
        "defaults.threads: Expected `int` >= 1",
        "defaults.slo: Invalid value 'fast'",
        "models[0]: No bundle at",
        "models[1]: Invalid value '{'1': -1.0}' for split",
        "models[2].name: '../up' is no name",
        "models[3].path: is missing",
        "pipelines[0].name: 'a b' is no name",
        "pipelines[0].max_in_flight: Expected `int` >= 1",
        "pipelines[0].steps[1].modle: is not known; did you mean 'model'?",
        "pipelines[0].steps[1].model: is missing",
        "pipelines[1].name: is missing",
        "pipelines[1].steps: Expected `array` of length >= 1",
    ):
        assert part in told
    assert len(caught.value.mistakes) == 23


def test_what_the_command_line_overrules_does_not_have_to_be_there(tmp_path: Path, bundle: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(f"""
[server]
keys = "elsewhere.json"
[[models]]
path = "{bundle}"
variant = "int4"
""")
    with pytest.raises(InvalidConfig) as caught:
        read_config(path)
    assert [mistake.partition(":")[0] for mistake in caught.value.mistakes] == ["server.keys", "models[0].variant"]
    assert len(read_config(path, overruled=("keys", "variant")).models) == 1


def test_a_shadow_needs_another_version_to_be_compared_with(tmp_path: Path, bundle: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(f"""
[[models]]
path = "{bundle}"
shadow = 1
""")
    with pytest.raises(InvalidConfig) as caught:
        read_config(path)
    assert caught.value.mistakes == (
        "models[0]: Invalid value '1' for shadow: expected another version than the one that answers the requests.",
    )


def test_a_pipeline_is_read_as_it_is_written(tmp_path: Path, bundle: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(f"""
[[models]]
name = "digits"
path = "{bundle}"
[[pipelines]]
name = "both"
timeout = 2
slo = "p99=1s"
[[pipelines.steps]]
model = "digits"
version = 1
inputs = {{ pixels = "image" }}
[[pipelines.steps]]
model = "other"
""")
    (pipeline,) = read_config(path, beside=["other"]).pipelines
    assert pipeline == PipelineConfig(
        name="both",
        steps=(StepConfig(model="digits", version="1", inputs={"pixels": "image"}), StepConfig(model="other")),
        timeout_s=2.0,
        slo=Slo.parse("p99=1s"),
    )
    path.write_text(path.read_text().replace('"both"', '"digits"'))
    with pytest.raises(InvalidConfig, match="two models or pipelines are named 'digits'"):
        read_config(path)


def test_a_step_that_names_no_model_is_told_with_all_other_mistakes(tmp_path: Path, bundle: Path) -> None:
    """Models may be elsewhere, too: in the repository, on the command line, or be pipelines."""
    shutil.copytree(bundle, tmp_path / "models" / "encoder")
    path = tmp_path / "serve.toml"
    path.write_text(f"""
[server]
port = "x"
repository = "models"
[[models]]
name = "digits"
path = "{bundle}"
[[pipelines]]
name = "right"
steps = [{{ model = "digits" }}, {{ model = "encoder" }}, {{ model = "given" }}, {{ model = "round" }}]
[[pipelines]]
name = "wrong"
steps = [{{ model = "digits" }}, {{ model = "diigts" }}]
[[pipelines]]
name = "round"
steps = [{{ model = "round" }}]
[[pipelines]]
name = "encoder"
steps = [{{ model = "digits" }}]
""")
    with pytest.raises(InvalidConfig) as caught:
        read_config(path, beside=["given"])
    there = ["given", "digits", "encoder", "right", "wrong", "round"]
    assert caught.value.mistakes == (
        "server.port: Expected `int`, got `str`",
        "server.repository: it has a model 'encoder', which is the name of a pipeline, too",
        f"pipelines[1].steps[1].model: there is no model 'diigts'; there are {', '.join(there)}",
        "the pipelines lead back to themselves: round → round",
    )
    path.write_text(path.read_text().replace("[[models]]", '[[models]]\npath = "nowhere"\n[[models]]'))
    with pytest.raises(InvalidConfig) as caught:
        read_config(path)
    assert not any("there is no model" in mistake for mistake in caught.value.mistakes), (
        "it may be the one without a name"
    )


def test_a_pipeline_of_a_model_that_is_nowhere_loads_none(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "serve.toml").write_text('[[pipelines]]\nname = "p"\nsteps = [{ model = "other" }]\n')
    command = [sys.executable, "-m", "forwardpass", "serve", str(bundle), "--config", "serve.toml", "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        "Error: The configuration 'serve.toml' cannot be used:\n"
        f"  - pipelines[0].steps[0].model: there is no model 'other'; there are {read_name(bundle)}, p\n"
    )


@pytest.mark.parametrize("num_damaged", [1, 2])
def test_what_is_damaged_is_told_once(tmp_path: Path, bundle: Path, num_damaged: int) -> None:
    """The first one ends the program and is its error; of others there is a line of the log."""
    for name in ("a", "b")[:num_damaged]:
        shutil.copytree(bundle, tmp_path / "models" / name)
        (tmp_path / "models" / name / "golden" / "inputs.npz").write_bytes(b"")
    command = [sys.executable, "-m", "forwardpass", "serve", "--repository", "models", "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "'golden/inputs.npz'" in line]
    assert len(lines) == num_damaged
    folder = tmp_path / "models"
    assert lines[-1].startswith(f"Error: The bundle '{folder / 'a'}' is damaged")
    assert all(f"b could not be loaded: The bundle '{folder / 'b'}' is damaged" in line for line in lines[:-1])


def test_a_configuration_is_what_is_served_and_the_command_line_overrules_it(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "serve.toml").write_text(f"""
[server]
port = 1
grace = 5
[defaults]
slo = "p99=9s"
[[models]]
name = "digits"
path = "{bundle}"
threads = 1
""")
    command = [sys.executable, "-m", "forwardpass", "serve", "--config", "serve.toml", "--port", "0"]
    command += ["--log-format", "json", "--log-requests"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for text in process.stderr:
            lines.append(json.loads(text))
            if lines[-1]["message"].startswith("ready on http://"):
                break
        port = int(lines[-1]["message"].rpartition(":")[2])
        connection = RunningServer.__new__(RunningServer)
        connection.port = port
        assert connection.ask("POST", "/v2/models/digits/infer", BODY).status == 200
        assert connection.ask("GET", f"/{MARK}").status == 404
        process.terminate()
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    lines += [json.loads(text) for text in rest.splitlines()]
    told = " ".join(line["message"] for line in lines)
    assert "configuration of server: host=127.0.0.1, port=0, grace_s=5.0" in told
    assert "p99=9000ms" in told
    requests = [line for line in lines if line["logger"] == "forwardpass.requests"]
    assert [(line["method"], line["route"], line["status"]) for line in requests] == [
        ("POST", "/v2/models/digits/infer", 200),
        ("GET", "?", 404),
    ]
    assert str(MARK) not in json.dumps(lines)


def test_nobody_can_forge_a_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    try:
        for as_json in (False, True):
            configure_logs(as_json=as_json)
            logging.getLogger("forwardpass.test").info("a\n2026-01-01 INFO forged\r\x1b[31m")
            written = capsys.readouterr().err
            assert "\x1b" not in written
            assert "\r" not in written
            assert not any(line.startswith("2026-01-01 INFO forged") for line in written.splitlines())
    finally:
        logging.getLogger().handlers[:] = before
