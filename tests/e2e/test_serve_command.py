"""`forwardpass serve` as an operator starts and stops it: a bundle with a processor, and a bare ONNX file."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime as ort
import pytest

from forwardpass.serve.server import SAME_SIGNAL_S


def serving(folder: Path, arguments: list[str], temporary: Path) -> subprocess.Popen[str]:
    """Start a server."""
    command = [sys.executable, "-m", "forwardpass", "serve", *arguments, "--port", "0"]
    inherited = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    environment = {"TMPDIR": str(temporary), "PATH": "", "PYTHONDONTWRITEBYTECODE": "1", **inherited}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


@contextmanager
def served(folder: Path, name: str, temporary: Path, *, ending: signal.Signals = signal.SIGTERM) -> Iterator[str]:
    """Serve until the block ends; then the exit code has to be 0."""
    server = serving(folder, [name], temporary)
    assert server.stderr is not None
    try:
        lines = []
        for line in server.stderr:
            lines.append(line)
            if " on http://" in line:
                break
        assert " on http://" in lines[-1], lines
        yield lines[-1].rpartition(" on ")[2].strip()
    finally:
        server.send_signal(ending)
        _, rest = server.communicate(timeout=60)
    assert server.returncode == 0, rest


def ask(url: str, body: object) -> dict[str, object]:
    answer: dict[str, object] = json.load(urlopen(Request(url, json.dumps(body).encode()), timeout=30))
    return answer


def test_a_processor_answers_people(user_folder: Path, tmp_path: Path) -> None:
    with served(user_folder, "minilm-bundle", tmp_path) as url:
        path = f"{url}/v1/models/text/predict"
        assert ask(path, {"text": "the cat sleeps"}) == {"embeddings": [[48.0, 51.0, 54.0, 57.0]]}
        several = ask(path, {"text": ["a kitten naps", "the cat sleeps ."]})["embeddings"]
        assert isinstance(several, list)
        assert len(several) == 2
        for body, words in [
            ({"text": 7}, "'text' must be a string or a non-empty list of strings"),
            ({"text": []}, "'text' must be a string or a non-empty list of strings"),
            ({"txet": "hello"}, "unknown field 'txet'; this model takes 'text'"),
            ([], "the body must be a JSON object"),
        ]:
            with pytest.raises(HTTPError) as caught:
                ask(path, body)
            assert caught.value.code == 400
            assert words in json.load(caught.value)["error"]


def test_a_bare_onnx_file_is_served_under_its_name_and_leaves_nothing(user_folder: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(8).standard_normal((3, 64)).astype(np.float32)
    expected = ort.InferenceSession(str(user_folder / "model.onnx")).run(None, {"pixels": pixels})[0]
    with served(user_folder, "model.onnx", tmp_path) as url:
        answer = ask(f"{url}/v1/models/model/predict", {"inputs": {"pixels": pixels.tolist()}})
        outputs = answer["outputs"]
        assert isinstance(outputs, dict)
        np.testing.assert_array_equal(np.array(outputs["scores"], np.float32), expected)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_whatever_asks_it_to_end_leaves_nothing(user_folder: Path, tmp_path: Path, ending: signal.Signals) -> None:
    with served(user_folder, "model.onnx", tmp_path, ending=ending):
        assert leftovers(tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_impatience_while_a_model_loads_leaves_nothing(
    user_folder: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    server = serving(user_folder, ["model.onnx"], tmp_path)
    while not leftovers(tmp_path) and server.poll() is None:
        time.sleep(0.005)
    while server.poll() is None:
        server.send_signal(ending)
        time.sleep(0.05)
    server.communicate(timeout=60)
    assert leftovers(tmp_path) == []


def test_a_second_signal_while_it_profiles_itself_leaves_nothing(user_folder: Path, tmp_path: Path) -> None:
    server = serving(user_folder, ["model.onnx"], tmp_path)
    assert server.stderr is not None
    ready = next(line for line in server.stderr if "ready on http://" in line)
    while not any(tmp_path.glob("**/forwardpass-profile-*")):
        time.sleep(0.005)
    with socket.create_connection(("127.0.0.1", int(ready.rpartition(":")[2]))) as client:
        client.sendall(b"POST /v2/models/model/infer HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n{")
        time.sleep(0.1)  # until it is read, and has to be waited for
        server.send_signal(signal.SIGTERM)
        next(line for line in server.stderr if "draining" in line)
        time.sleep(2 * SAME_SIGNAL_S)  # what comes sooner counts as the same signal
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    assert server.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_needs_no_folder(user_folder: Path, tmp_path: Path) -> None:
    with served(user_folder, "shop-bundle", tmp_path):
        assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--variant", "nope"], "Invalid value 'nope' for --variant: expected one of as-is."),
        (["--tls-key", "key.pem"], "--tls-cert is missing: expected the certificate that --tls-key belongs to."),
        (
            ["--tls-client-ca", "ca.pem"],
            "--tls-cert is missing: expected one of the server, too, if clients need a certificate (--tls-client-ca).",
        ),
    ],
)
def test_a_mistake_is_told_alone(user_folder: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    server = serving(user_folder, ["model.onnx", *arguments], tmp_path)
    assert server.communicate(timeout=60)[1] == f"Error: {sentence}\n"
    assert server.returncode == 2
    assert leftovers(tmp_path) == []


def leftovers(temporary: Path) -> list[str]:
    """Return what the server keeps in the folder for temporary files."""
    return [path.name for path in temporary.iterdir() if path.name.startswith("forwardpass-serve")]
