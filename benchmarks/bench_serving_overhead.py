"""What does serving cost beside the model? forwardpass against plain FastAPI with ONNX Runtime, for a tiny model.

A network of 64 floats in and 10 out takes a few microseconds, so nearly all that is measured is the server. Each server
runs in processes of its own; the load comes from one more, which is the same for all: closed loop over keep-alive
connections. The servers take turns, round by round, in one run. Prints one JSON line.

FastAPI runs under uvicorn with uvloop and httptools and a pydantic body, with its endpoint once as `async def` and once
as `def`; the faster one is the rival.

    python benchmarks/bench_serving_overhead.py [--rounds 7] [--seconds 2]
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
from pathlib import Path

import msgspec
import numpy as np
import uvloop

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

NUM_INPUTS = 64
CONNECTIONS = (1, 32)
TARGETS = {1: 2.0, 32: 4.0}
WARM_UP_S = 0.5


# --- the load: `--client URL …`


class Client(asyncio.Protocol):
    """One connection that sends the next request as soon as it has an answer."""

    def __init__(self, request: bytes, counter: list[float], until_s: float) -> None:
        self._request = request
        self._latencies = counter
        self._until_s = until_s
        self._received = b""
        self._sent_s = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Take an answer, which has to be a 200, and go on."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        assert head.startswith(b"HTTP/1.1 200"), head
        self._received = b""
        now_s = time.perf_counter()
        self._latencies.append(now_s - self._sent_s)
        if now_s < self._until_s:
            self._send()
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def _send(self) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)  # type: ignore[attr-defined]  # a stream transport


async def load(port: int, path: str, body: bytes, num_connections: int, seconds: float) -> list[float]:
    """Return the latency of every answer within the time."""
    loop = asyncio.get_running_loop()
    lines = (
        f"POST {path} HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(body)}",
    )
    head = "\r\n".join((*lines, "", ""))
    latencies: list[float] = []
    until_s = time.perf_counter() + seconds
    clients = []
    for _ in range(num_connections):
        _, client = await loop.create_connection(
            lambda: Client(head.encode() + body, latencies, until_s), "127.0.0.1", port
        )
        clients.append(client)
    await asyncio.gather(*(client.done for client in clients))
    return latencies


def run_client(arguments: list[str]) -> None:
    """Load a server and print what was seen."""
    port, path, body, num_connections, seconds = arguments
    uvloop.run(load(int(port), path, body.encode(), int(num_connections), WARM_UP_S))
    latencies = uvloop.run(load(int(port), path, body.encode(), int(num_connections), float(seconds)))
    print(json.dumps({"rate": len(latencies) / float(seconds), "p50_s": float(np.median(latencies))}))


# --- the servers


def run_fastapi(arguments: list[str]) -> None:
    """Serve the model with plain FastAPI."""
    import onnxruntime as ort
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    model, port, kind = arguments
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options)
    app = FastAPI()

    class Body(BaseModel):
        pixels: list[float]

    def answer(body: Body) -> dict[str, list[float]]:
        pixels = np.array(body.pixels, dtype=np.float32)[None]
        return {"scores": session.run(None, {"pixels": pixels})[0][0].tolist()}

    async def answer_async(body: Body) -> dict[str, list[float]]:
        return answer(body)

    endpoint = answer if kind == "def" else answer_async
    # The annotations of this module are strings, which FastAPI cannot resolve for a local class.
    endpoint.__annotations__["body"] = Body
    app.post("/predict", response_model=None)(endpoint)
    uvicorn.run(app, port=int(port), log_level="warning", loop="uvloop", http="httptools", access_log=False)


def start(command: list[str], port: int) -> subprocess.Popen[bytes]:
    """Start a server and wait until it accepts connections."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def connect() -> None:
        while process.poll() is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
        raise SystemExit(f"the server ended: {command}")

    asyncio.run(asyncio.wait_for(connect(), 60))
    return process


def free_port() -> int:
    """Return a port that is free now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


# --- the comparison


def measure(port: int, path: str, body: str, num_connections: int, seconds: float) -> dict[str, float]:
    """Run one round of load in a fresh process."""
    command = [sys.executable, str(HERE), "--client", str(port), path, body, str(num_connections), str(seconds)]
    result: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return result


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = compare(Path(folder), options.rounds, options.seconds)
    print(json.dumps(summarise(results, options.rounds, options.seconds)))


def compare(folder: Path, num_rounds: int, seconds: float) -> dict[str, dict[int, list[dict[str, float]]]]:
    """Start all servers and let them take turns."""
    from tests.models import mlp_calls, write_bundle, write_mlp

    model = write_mlp(folder / "mlp.onnx", num_inputs=NUM_INPUTS)
    bundle = write_bundle(folder / "bundle", model, mlp_calls())
    pixels = np.random.default_rng(0).standard_normal(NUM_INPUTS).round(4).tolist()
    ours = {"inputs": [{"name": "pixels", "shape": [1, NUM_INPUTS], "datatype": "FP32", "data": pixels}]}
    theirs = json.dumps({"pixels": pixels})
    ports = {name: free_port() for name in ("forwardpass", "fastapi-async", "fastapi-def")}
    serve = [sys.executable, "-m", "forwardpass", "serve", str(bundle), "--threads", "1", "--port"]
    rival = [sys.executable, str(HERE), "--fastapi", str(model)]
    commands = {
        "forwardpass": [*serve, str(ports["forwardpass"])],
        "fastapi-async": [*rival, str(ports["fastapi-async"]), "async"],
        "fastapi-def": [*rival, str(ports["fastapi-def"]), "def"],
    }
    requests = dict.fromkeys(commands, ("/predict", theirs))
    requests["forwardpass"] = ("/v2/models/mlp/infer", json.dumps(ours))
    processes = [start(command, ports[name]) for name, command in commands.items()]
    results: dict[str, dict[int, list[dict[str, float]]]] = {name: {n: [] for n in CONNECTIONS} for name in commands}
    try:
        for _ in range(num_rounds):
            for num_connections in CONNECTIONS:
                for name, (path, body) in requests.items():
                    results[name][num_connections].append(measure(ports[name], path, body, num_connections, seconds))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=30)
    return results


def summarise(results: dict[str, dict[int, list[dict[str, float]]]], rounds: int, seconds: float) -> dict[str, object]:
    """Return medians, spreads and the ratio to the faster FastAPI, from paired rounds."""
    import fastapi
    import onnxruntime
    import uvicorn

    from forwardpass.profile import describe_machine

    table: dict[str, object] = {}
    for num_connections in CONNECTIONS:
        rates = {name: np.array([r["rate"] for r in results[name][num_connections]]) for name in results}
        rival = max(("fastapi-async", "fastapi-def"), key=lambda name: float(np.median(rates[name])))
        ratios = rates["forwardpass"] / rates[rival]
        table[str(num_connections)] = {
            "requests_per_s": {
                name: {"median": round(float(np.median(rate))), "min": round(rate.min()), "max": round(rate.max())}
                for name, rate in rates.items()
            },
            "p50_ms": {
                name: round(1e3 * float(np.median([r["p50_s"] for r in results[name][num_connections]])), 3)
                for name in results
            },
            "ratio_to": rival,
            "ratio": round(float(np.median(ratios)), 2),
            "ratio_range": [round(float(ratios.min()), 2), round(float(ratios.max()), 2)],
            "target_ratio": TARGETS[num_connections],
        }
    return {
        "benchmark": "serving_overhead",
        "machine": msgspec.to_builtins(describe_machine()),
        "versions": {
            "fastapi": fastapi.__version__,
            "uvicorn": uvicorn.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "cores": len(os.sched_getaffinity(0)),
        "rounds": rounds,
        "seconds_per_round": seconds,
        "connections": table,
    }


if __name__ == "__main__":
    modes = {"--client": run_client, "--fastapi": run_fastapi}
    if len(sys.argv) > 1 and sys.argv[1] in modes:
        modes[sys.argv[1]](sys.argv[2:])
    else:
        main()
