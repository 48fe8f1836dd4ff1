"""What does a pipeline cost? Two and three steps, beside a client that asks the same models one after the other.

The models change nothing, so that all that is measured is the way: HTTP and JSON once instead of at every step, shared
memory between the steps. One request at a time over one kept connection to a server in a process of its own; the cases
take turns, round by round. Prints one JSON line.

    python benchmarks/bench_pipeline.py [--rounds 9] [--requests 200]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

NUM_VALUES = 64
MODELS = ("a", "b", "c")
WARM_UP = 50
CASES = {
    "two requests": ("a", "b"),
    "pipeline of two": ("two",),
    "three requests": ("a", "b", "c"),
    "pipeline of three": ("three",),
}


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """Serve the models and pipelines; yield the port."""
    from tests.models import write_bundle, write_typed

    lines = []
    for name in MODELS:
        model = write_typed(folder / f"{name}.onnx", "float32", size=NUM_VALUES)
        write_bundle(folder / name, model, [{"x": np.ones((1, NUM_VALUES), np.float32)}], name=name)
        lines.append(f'[[models]]\npath = "{name}"\nthreads = 1\nworkers = 1')
    for pipeline, steps in (("two", MODELS[:2]), ("three", MODELS)):
        lines.append(f'[[pipelines]]\nname = "{pipeline}"')
        lines += [f'[[pipelines.steps]]\nmodel = "{name}"\noutputs = {{ y = "x" }}' for name in steps]
    (folder / "serve.toml").write_text("\n".join(lines))
    command = [sys.executable, "-m", "forwardpass", "serve", "--config", str(folder / "serve.toml"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            ready = next(line for line in process.stderr if "ready on" in line)
            yield int(re.findall(r":(\d+)$", ready.strip())[0])
        finally:
            process.terminate()
            process.communicate()


def ask(client: http.client.HTTPConnection, names: tuple[str, ...], body: bytes) -> None:
    """Ask one model or pipeline after the other."""
    for name in names:
        client.request("POST", f"/v2/models/{name}/infer", body)
        response = client.getresponse()
        assert response.status == 200, response.read()
        response.read()


def measure(port: int, *, rounds: int, requests: int) -> dict[str, list[float]]:
    """Return the median seconds of every round by case."""
    values = np.random.default_rng(0).standard_normal(NUM_VALUES).tolist()
    given = {"name": "x", "shape": [1, NUM_VALUES], "datatype": "FP32", "data": values}
    body = json.dumps({"inputs": [given]}).encode()
    client = http.client.HTTPConnection("127.0.0.1", port)
    medians: dict[str, list[float]] = {case: [] for case in CASES}
    for names in CASES.values():
        for _ in range(WARM_UP):
            ask(client, names, body)
    for _ in range(rounds):
        for case, names in CASES.items():
            seconds = []
            for _ in range(requests):
                begun_s = time.perf_counter()
                ask(client, names, body)
                seconds.append(time.perf_counter() - begun_s)
            medians[case].append(float(np.median(seconds)))
    return medians


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and greatest."""
    return {"median": float(np.median(values)), "least": min(values), "greatest": max(values)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as port:
        medians = measure(port, rounds=given.rounds, requests=given.requests)
    result: dict[str, Any] = {"question": "pipeline", "cores": os.cpu_count(), "python": sys.version.split()[0]}
    result["milliseconds"] = {case: spread([value * 1e3 for value in values]) for case, values in medians.items()}
    for number in ("two", "three"):
        pairs = zip(medians[f"pipeline of {number}"], medians[f"{number} requests"], strict=True)
        result[f"pipeline of {number}, relative"] = spread([ours / theirs for ours, theirs in pairs])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
