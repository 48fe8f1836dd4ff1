"""What is left of a version that was replaced: nothing, at once. What waits for the collector adds up meanwhile.

The collector is off in these tests, so what is gone was in no circle.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from forwardpass.core.tensors import Array
from forwardpass.serve import Front, ModelConfig, PipelineConfig, StepConfig, Traffic
from forwardpass.serve.versions import ModelVersion
from tests.e2e.serving import (
    FRONTS,
    Background,
    RunningServer,
    eventually,
    infer_body,
    post,
    serve_settings,
    serving_models,
)
from tests.models import mlp_calls, write_bundle, write_mlp, write_text_bundle

INFER, PREDICT = "/v2/models/mlp/infer", "/v1/models/mlp/predict"
PIXELS = np.random.default_rng(5).standard_normal((2, 64)).astype(np.float32)
BODY = infer_body({"pixels": PIXELS})
MAX_BATCH_ROWS = 16
LARGE_BODY = infer_body({"pixels": np.zeros((5 * MAX_BATCH_ROWS, 64), np.float32)})
PREDICT_BODY = json.dumps({"inputs": {"pixels": PIXELS.tolist()}}).encode()
PAGES = ("/metrics", "/v2/models/mlp", "/v2/models/mlp/config", "/v2/models/mlp/stats")
SETTINGS = serve_settings(max_batch_rows=MAX_BATCH_ROWS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a model, and two of one with a processor."""
    folder = tmp_path_factory.mktemp("models")
    for number in ("1", "2"):
        write_bundle(folder / number, write_mlp(folder / f"{number}.onnx", seed=int(number)), mlp_calls())
        write_text_bundle(folder / f"text-{number}")
    return folder


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def references(version: ModelVersion) -> list[weakref.ref[Any]]:
    """Return weak references to a version and to what holds its queue, its bundle, its batches and its tokenizer."""
    parts = [version, version._dispatcher, *version._workers, version.processor]
    return [weakref.ref(part) for part in parts if part is not None]


@contextmanager
def going(running: RunningServer, place: Path, new: Path, name: str, number: str = "1") -> Iterator[None]:
    """Replace a version after the block, and wait until nothing of it is there."""
    yield
    old = references(running.server.repository.models[name].versions[number])
    shutil.rmtree(place)
    shutil.copytree(new, place)
    assert running.ask("POST", f"/v2/repository/models/{name}/load").status == 200
    eventually(lambda: [one() for one in old] == [None] * len(old))


def ask_in_all_ways(running: RunningServer) -> None:
    assert running.ask("POST", INFER, BODY).status == 200
    assert running.ask("POST", INFER, LARGE_BODY).status == 200
    assert running.ask("POST", PREDICT, PREDICT_BODY).status == 200
    assert [running.ask("GET", page).status for page in PAGES] == [200] * len(PAGES)
    assert [running.ask("POST", path, b"[").status for path in (INFER, PREDICT)] == [400, 400]


def hold(running: RunningServer, body: bytes, **headers: str) -> Background:
    """Ask on a thread, and return when the request waits."""
    num_accepted = running.server.statistics().num_accepted
    held = Background(lambda: running.ask("POST", INFER, body, headers))
    eventually(lambda: running.server.statistics().num_accepted > num_accepted)
    return held


def leave_early(running: RunningServer) -> None:
    num_accepted = running.server.statistics().num_accepted
    with running.connect() as client:
        client.sendall(post(INFER, BODY))
        eventually(lambda: running.server.statistics().num_accepted > num_accepted)


@pytest.mark.parametrize("front", FRONTS)
def test_of_a_version_that_has_answered_nothing_is_left(tmp_path: Path, files: Path, front: Front) -> None:
    place = tmp_path / "mlp"
    shutil.copytree(files / "1", place)
    config = ModelConfig(name="mlp", path=place, settings=SETTINGS.model)
    with serving_models([config], settings=serve_settings(front=front)) as running:
        for new in ("2", "1"):
            with going(running, place, files / new, "mlp"):
                ask_in_all_ways(running)


@pytest.mark.parametrize("front", FRONTS)
def test_of_a_version_whose_worker_froze_and_died_nothing_is_left(tmp_path: Path, files: Path, front: Front) -> None:
    place = tmp_path / "mlp"
    shutil.copytree(files / "1", place)
    config = ModelConfig(name="mlp", path=place, settings=SETTINGS.model)
    with (
        serving_models([config], settings=serve_settings(front=front)) as running,
        going(running, place, files / "2", "mlp"),
    ):
        with running.frozen_worker():
            patient, late = hold(running, BODY), hold(running, BODY, **{"x-request-timeout-ms": "300"})
            leave_early(running)
            assert late.result().status == 504
            os.kill(running.server.worker_pids[0], signal.SIGKILL)
        assert patient.result().status == 200


def ask_by_grpc(running: RunningServer, pixels: Array, *, timeout_us: int | None = None) -> bool:
    """Return whether there was an answer that is no error."""
    given = triton_grpc.InferInput("pixels", list(pixels.shape), "FP32")
    given.set_data_from_numpy(pixels)
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{running.server.grpc_port}") as client:
        try:
            client.infer("mlp", [given], timeout=timeout_us)
        except InferenceServerException:
            return False
    return True


def test_of_a_version_that_was_asked_by_grpc_nothing_is_left(tmp_path: Path, files: Path) -> None:
    """Its errors pass through the library, which keeps them in a circle."""
    place = tmp_path / "mlp"
    shutil.copytree(files / "1", place)
    config = ModelConfig(name="mlp", path=place, settings=SETTINGS.model)
    with (
        serving_models([config], settings=serve_settings(grpc_port=0)) as running,
        going(running, place, files / "2", "mlp"),
    ):
        assert ask_by_grpc(running, PIXELS)
        assert not ask_by_grpc(running, PIXELS[:, 1:])
        with running.frozen_worker():
            assert not ask_by_grpc(running, PIXELS, timeout_us=100_000)


def test_of_a_version_with_a_share_of_the_requests_nothing_is_left(tmp_path: Path, files: Path) -> None:
    place = tmp_path / "mlp"
    for number in ("1", "2"):
        shutil.copytree(files / number, place / number)
    traffic = Traffic(labels={"stable": "1"}, split={"1": 1.0, "2": 1.0})
    config = ModelConfig(name="mlp", path=place, settings=SETTINGS.model, traffic=traffic)
    with serving_models([config]) as running, going(running, place / "2", files / "1", "mlp", "2"):
        seen: set[str] = set()
        while len(seen) < 2:
            seen.add(running.ask("POST", INFER, BODY).json["model_version"])


def test_of_a_version_with_a_processor_in_a_pipeline_nothing_is_left(tmp_path: Path, files: Path) -> None:
    place = tmp_path / "text"
    shutil.copytree(files / "text-1", place)
    pipeline = PipelineConfig(name="embed", steps=(StepConfig(model="text"),))
    config = ModelConfig(name="text", path=place, settings=SETTINGS.model)
    ids: dict[str, Array] = {"input_ids": np.array([[2, 4, 6]]), "attention_mask": np.ones((1, 3), np.int64)}
    with (
        serving_models([config], pipelines=[pipeline]) as running,
        going(running, place, files / "text-2", "text"),
    ):
        for name in ("text", "embed"):
            assert running.ask("POST", f"/v1/models/{name}/predict", b'{"text": "the cat sleeps"}').status == 200
            assert running.ask("POST", f"/v2/models/{name}/infer", infer_body(ids)).status == 200
