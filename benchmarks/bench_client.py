"""What does the Python client cost? forwardpass beside Triton's clients and bare http.client, on the same server.

One request at a time over one kept connection, tensors as bytes: 64 floats to a tiny network, and 10 MB there and back
through a model that changes nothing. `http.client` is the floor of the standard library: its request is written down
beforehand, and of the answer it makes one array. Each client runs in a process of its own; they take turns, round by
round, in one run. Prints one JSON line.

    python benchmarks/bench_client.py [--rounds 9] [--requests 300] [--large-requests 12]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

NUM_INPUTS = 64
LARGE_BYTES = 10 * 2**20
SIZES = ("small", "large")
CALLS = {"small": ("mlp", "pixels", "scores"), "large": ("echo", "x", "y")}
BLOCKING = ("forwardpass", "tritonclient", "http.client")
ASYNCHRONOUS = ("forwardpass-async", "tritonclient-aio")
WARM_UP = 5


def tensor(size: str) -> Any:
    """Return what is sent: one row."""
    num_values = NUM_INPUTS if size == "small" else LARGE_BYTES // 4
    return np.random.default_rng(0).standard_normal((1, num_values)).astype(np.float32)


# --- the clients: `--client NAME PORT`, told on standard input how often to ask for which size


def run_client(arguments: list[str]) -> None:
    """Answer every line `SIZE COUNT` with the median seconds of so many requests."""
    name, port = arguments[0], int(arguments[1])
    if name in ASYNCHRONOUS:
        asyncio.run(run_async(name, port))
        return
    ask = {"forwardpass": ask_forwardpass, "tritonclient": ask_triton, "http.client": ask_bare}[name](port)
    for line in sys.stdin:
        size, count = line.split()
        sent = tensor(size)
        for _ in range(WARM_UP):
            assert ask(size, sent).shape[0] == 1
        seconds = []
        for _ in range(int(count)):
            begun_s = time.perf_counter()
            ask(size, sent)
            seconds.append(time.perf_counter() - begun_s)
        print(float(np.median(seconds)), flush=True)


def ask_forwardpass(port: int) -> Callable[[str, Any], Any]:
    """Ask with `forwardpass.Client`."""
    from forwardpass import Client

    client = Client(f"127.0.0.1:{port}")

    def ask(size: str, sent: Any) -> Any:
        model, given, wanted = CALLS[size]
        return client.infer(model, {given: sent})[wanted]

    return ask


def ask_triton(port: int) -> Callable[[str, Any], Any]:
    """Ask with Triton's client."""
    import tritonclient.http as triton

    client = triton.InferenceServerClient(f"127.0.0.1:{port}")

    def ask(size: str, sent: Any) -> Any:
        model, given, wanted = CALLS[size]
        tensor = triton.InferInput(given, list(sent.shape), "FP32")
        tensor.set_data_from_numpy(sent)
        return client.infer(model, [tensor]).as_numpy(wanted)

    return ask


def ask_bare(port: int) -> Callable[[str, Any], Any]:
    """Ask with http.client and no more than it takes."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port)
    bodies: dict[str, tuple[str, bytes, dict[str, str]]] = {}

    def ask(size: str, sent: Any) -> Any:
        if size not in bodies:
            model, given, _ = CALLS[size]
            described = {"name": given, "shape": sent.shape, "datatype": "FP32"}
            described["parameters"] = {"binary_data_size": sent.nbytes}
            head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
            headers = {"Inference-Header-Content-Length": str(len(head))}
            bodies[size] = (f"/v2/models/{model}/infer", head + sent.tobytes(), headers)
        path, body, headers = bodies[size]
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        received = response.read()
        num_json_bytes = int(response.headers["inference-header-content-length"])
        shape = json.loads(received[:num_json_bytes])["outputs"][0]["shape"]
        return np.frombuffer(received, np.float32, offset=num_json_bytes).reshape(shape)

    return ask


async def run_async(name: str, port: int) -> None:
    """Do as `run_client`, on an event loop."""
    import tritonclient.http.aio as triton

    from forwardpass import AsyncClient

    ours, theirs = AsyncClient(f"127.0.0.1:{port}"), triton.InferenceServerClient(f"127.0.0.1:{port}")

    async def ask(size: str, sent: Any) -> Any:
        model, given, wanted = CALLS[size]
        if name == "forwardpass-async":
            return (await ours.infer(model, {given: sent}))[wanted]
        tensor = triton.InferInput(given, list(sent.shape), "FP32")
        tensor.set_data_from_numpy(sent)
        return (await theirs.infer(model, [tensor])).as_numpy(wanted)

    for line in iter(sys.stdin.readline, ""):
        size, count = line.split()
        sent = tensor(size)
        for _ in range(WARM_UP):
            assert (await ask(size, sent)).shape[0] == 1
        seconds = []
        for _ in range(int(count)):
            begun_s = time.perf_counter()
            await ask(size, sent)
            seconds.append(time.perf_counter() - begun_s)
        print(float(np.median(seconds)), flush=True)
    await ours.close()
    await theirs.close()


# --- the comparison


def write_echo(path: Path) -> Path:
    """Write `x [batch, size] -> y [batch, size]`, which is the same."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "echo",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "size"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "size"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--large-requests", type=int, default=12)
    options = parser.parse_args()
    counts = {"small": options.requests, "large": options.large_requests}
    with tempfile.TemporaryDirectory() as folder:
        results = compare(Path(folder), options.rounds, counts)
    print(json.dumps(summarise(results, options.rounds, counts)))


def compare(folder: Path, num_rounds: int, counts: dict[str, int]) -> dict[str, dict[str, list[float]]]:
    """Start the server and all clients, and let the clients take turns."""
    from benchmarks.bench_serving_overhead import free_port, start
    from tests.models import mlp_calls, write_bundle, write_mlp

    mlp = write_bundle(folder / "mlp", write_mlp(folder / "mlp.onnx", num_inputs=NUM_INPUTS), mlp_calls())
    ones = [{"x": np.ones((1, 3), np.float32)}]
    echo = write_bundle(folder / "echo", write_echo(folder / "echo.onnx"), ones, name="echo")
    port = free_port()
    command = [sys.executable, "-m", "forwardpass", "serve", str(mlp), str(echo), "--threads", "1", "--workers", "1"]
    server = start([*command, "--port", str(port)], port)
    names = (*BLOCKING, *ASYNCHRONOUS)
    clients = {
        name: subprocess.Popen(
            [sys.executable, str(HERE), "--client", name, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    }
    results: dict[str, dict[str, list[float]]] = {size: {name: [] for name in names} for size in SIZES}
    try:
        for _ in range(num_rounds):
            for size in SIZES:
                for name, client in clients.items():
                    assert client.stdin is not None, "it is a pipe"
                    assert client.stdout is not None, "it is a pipe"
                    client.stdin.write(f"{size} {counts[size]}\n")
                    client.stdin.flush()
                    results[size][name].append(float(client.stdout.readline()))
    finally:
        for client in clients.values():
            client.terminate()
            client.wait(timeout=30)
        server.terminate()
        server.wait(timeout=30)
    return results


def summarise(results: dict[str, dict[str, list[float]]], num_rounds: int, counts: dict[str, int]) -> dict[str, object]:
    """Return medians, spreads, and ratios from paired rounds: above 1 the other one takes longer than we do."""
    import msgspec

    from forwardpass.profile import describe_machine

    table: dict[str, object] = {}
    for size, by_name in results.items():
        seconds = {name: np.array(values) for name, values in by_name.items()}
        ours = {name: "forwardpass-async" if name in ASYNCHRONOUS else "forwardpass" for name in seconds}
        table[size] = {
            "milliseconds": {name: _spread(values * 1e3) for name, values in seconds.items()},
            "ratio_to_forwardpass": {
                name: _spread(values / seconds[ours[name]]) for name, values in seconds.items() if name != ours[name]
            },
        }
    return {
        "benchmark": "client",
        "machine": msgspec.to_builtins(describe_machine()),
        "versions": {"tritonclient": version("tritonclient"), "python": sys.version.split()[0]},
        "cores": len(os.sched_getaffinity(0)),
        "rounds": num_rounds,
        "requests_per_round": counts,
        "requests": table,
    }


def _spread(values: Any) -> dict[str, float]:
    return {
        "median": round(float(np.median(values)), 3),
        "min": round(float(values.min()), 3),
        "max": round(float(values.max()), 3),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        run_client(sys.argv[2:])
    else:
        main()
