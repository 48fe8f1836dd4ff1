"""Serving stays light: what a process that serves must never load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import mlp_calls, write_bundle, write_mlp

HEAVY = (
    "torch",
    "onnx",
    "openvino",
    "ai_edge_litert",
    "executorch",
    "transformers",
    "tokenizers",
    "click",
    "rich",
    "jinja2",
    "prometheus_client",
    "grpc",
    "opentelemetry",
)

SERVE = """
import asyncio, sys
from pathlib import Path
from forwardpass.serve import ModelConfig, ServeConfig, Server, ServeSettings
async def main():
    model = ModelConfig(name="mlp", path=Path(sys.argv[1]))
    server = Server(ServeConfig(settings=ServeSettings(port=0), models=(model,)))
    await server.start()
    await server.stop()
asyncio.run(main())
"""
WORK = "import forwardpass.serve.worker"
LOAD = "import sys, forwardpass; forwardpass.load(sys.argv[1])"
BARE = "import forwardpass"
CALL = "from forwardpass import Client; Client('localhost').close()"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imports")
    return write_bundle(folder / "bundle", write_mlp(folder / "mlp.onnx"), mlp_calls())


@pytest.mark.parametrize("code", [BARE, LOAD, WORK, SERVE], ids=["import", "load", "worker", "server"])
def test_nothing_heavy_is_loaded(code: str, bundle: Path) -> None:
    listed = "\nimport sys\nprint(*(name for name in sys.modules if '.' not in name))"
    command = [sys.executable, "-c", code + listed, str(bundle)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not set(finished.stdout.split()) & set(HEAVY)


def test_the_bare_import_loads_no_runtime_and_no_numpy() -> None:
    command = [sys.executable, "-c", "import forwardpass, sys; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "onnxruntime"} & set(loaded)


def test_the_blocking_client_loads_neither_a_runtime_nor_asyncio() -> None:
    command = [sys.executable, "-c", CALL + "\nimport sys; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "onnxruntime", "forwardpass.serve", "requests", "aiohttp", "httpx"} & set(loaded)
