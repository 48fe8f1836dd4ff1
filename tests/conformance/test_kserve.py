"""KServe's own clients against our server, and our clients against KServe's own server."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from forwardpass import AsyncClient, Client
from forwardpass.core.tensors import Array
from forwardpass.errors import NotFound
from tests.conformance.environments import HERE, free_ports, python_with, running
from tests.conformance.oracle_cases import edges
from tests.e2e.serving import serve_settings, serving
from tests.models import mlp_calls, write_bundle, write_mlp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

PIXELS = np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)
NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


@pytest.fixture(scope="module")
def python() -> Path:
    return python_with("kserve")


@pytest.fixture(scope="module")
def found(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What KServe's clients understood."""
    folder = tmp_path_factory.mktemp("kserve")
    bundle = write_bundle(folder / "bundle", write_mlp(folder / "mlp.onnx"), mlp_calls())
    with serving(bundle, serve_settings(grpc_port=0)) as served:
        addresses = [f"http://127.0.0.1:{served.port}", f"127.0.0.1:{served.server.grpc_port}"]
        command = [str(python), str(HERE / "kserve_driver.py"), *addresses]
        sent = json.dumps({"pixels": PIXELS.tolist()})
        done = subprocess.run(command, input=sent, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Array:
    model = write_mlp(tmp_path_factory.mktemp("right") / "mlp.onnx")
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    array: Array = session.run(["scores"], {"pixels": PIXELS})[0]
    return array


WAYS = ("rest, JSON", "rest, bytes", "rest, bytes in", "rest, bytes out", "grpc, typed", "grpc, raw")


@pytest.mark.parametrize("way", WAYS)
def test_their_clients_get_the_models_answer(found: dict[str, Any], right: Array, way: str) -> None:
    answer = found[way]
    described = {key: answer[key] for key in ("id", "model", "name", "datatype", "shape")}
    assert described == {
        "id": "mine",
        "model": "mlp",
        "name": "scores",
        "datatype": "FP32",
        "shape": [3, 10],
    }
    values = np.array(answer["values"], np.float32).reshape(3, 10)
    np.testing.assert_allclose(values, right, rtol=1e-5, atol=1e-6)  # ONNX Runtime with other threads


@pytest.mark.parametrize("front", ["rest", "grpc"])
def test_their_clients_see_states_and_mistakes(found: dict[str, Any], front: str) -> None:
    assert found[f"{front} ready"]
    assert found[f"{front} live"]
    assert found[f"{front} model ready"]
    assert "Input 'pixels' has shape [3, 3]; expected float32[batch, 64]." in found[f"{front} mistake"]


@pytest.fixture(scope="module")
def theirs(python: Path) -> Iterator[int]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/v2/models/echo/ready"
    with running(python, "kserve_server.py", str(port), ready_url=url):
        yield port


@pytest.mark.parametrize("binary", [None, True, False])
@pytest.mark.parametrize("dtype", [*NUMBERS, "bool"])
def test_our_clients_understand_their_server(theirs: int, dtype: str, binary: bool | None) -> None:
    sent = edges(dtype)
    with Client(f"127.0.0.1:{theirs}", binary=binary) as client:
        came = client.infer("echo", {"x": sent})["y"]
    assert came.dtype == sent.dtype
    np.testing.assert_array_equal(came, sent)

    async def run() -> Array:
        async with AsyncClient(f"127.0.0.1:{theirs}", binary=binary) as client:
            return (await client.infer("echo", {"x": sent}))["y"]

    np.testing.assert_array_equal(asyncio.run(run()), sent)


def test_our_client_reads_what_their_server_says_of_itself(theirs: int) -> None:
    with Client(f"127.0.0.1:{theirs}") as client:
        assert client.metadata().name
        assert client.is_ready()
        assert client.is_ready("echo")
        assert not client.is_ready("other")
        assert "echo" in [model.name for model in client.models()]
        with pytest.raises(NotFound, match="other"):
            client.infer("other", {"x": edges("float32")})
