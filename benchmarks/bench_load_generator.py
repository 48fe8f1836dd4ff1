"""How much load does the generator make? `forwardpass load` in a closed loop against `wrk`, on the same server.

A forwardpass server with a network of 64 floats answers both; they send the same bytes over as many connections, with
one thread each, and take turns round by round. Where client and server share the cores, a costly client takes time from
the server, so that the ratio says what the generator costs. Prints one JSON line; needs `wrk`.

    python benchmarks/bench_load_generator.py [--rounds 7] [--seconds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

NUM_INPUTS = 64
CONNECTIONS = (1, 32)
SCRIPT = """\
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
local file = io.open("{body}")
wrk.body = file:read("*a")
file:close()
"""
PATH = "/v2/models/mlp/infer"


def ours(url: str, body: Path, num_connections: int, seconds: float) -> float:
    """Return the good answers per second that `forwardpass load` counts."""
    words = ("--path", PATH, "--template", str(body), "--connections", str(num_connections), "--warm-up", "0.5")
    command = [sys.executable, "-m", "forwardpass", "load", url, *words, "--duration", str(seconds), "--json"]
    result = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    summary = result["load"]["summary"]
    assert summary["num_succeeded"] == summary["num_offered"], summary["failures"]
    return float(summary["throughput_per_s"])


def theirs(url: str, script: Path, num_connections: int, seconds: float) -> float:
    """Return the answers per second that wrk counts."""
    command = ["wrk", "-t1", f"-c{num_connections}", f"-d{seconds:g}s", "-s", str(script), f"{url}{PATH}"]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert "Non-2xx" not in output, output
    match = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert match is not None, output
    return float(match[1])


def measure(folder: Path, num_rounds: int, seconds: float) -> dict[str, object]:
    """Start the server and let both take turns."""
    from tests.models import mlp_calls, write_bundle, write_mlp

    bundle = write_bundle(folder / "bundle", write_mlp(folder / "mlp.onnx", num_inputs=NUM_INPUTS), mlp_calls())
    pixels = np.random.default_rng(0).standard_normal(NUM_INPUTS).round(4).tolist()
    body, script = folder / "body.json", folder / "post.lua"
    tensor = {"name": "pixels", "shape": [1, NUM_INPUTS], "datatype": "FP32", "data": pixels}
    body.write_text(json.dumps({"inputs": [tensor]}, separators=(",", ":")))
    script.write_text(SCRIPT.format(body=body))
    command = [sys.executable, "-m", "forwardpass", "serve", str(bundle), "--threads", "1", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = next(line.split(" on ")[1].split(",")[0].strip() for line in server.stderr if " on http://" in line)
        table: dict[str, object] = {}
        for num_connections in CONNECTIONS:
            rates = [
                (ours(url, body, num_connections, seconds), theirs(url, script, num_connections, seconds))
                for _ in range(num_rounds)
            ]
            table[str(num_connections)] = summarise(np.array(rates))
        return table
    finally:
        server.terminate()
        server.communicate(timeout=60)


def summarise(rates: np.ndarray) -> dict[str, object]:
    """Return medians, ranges and the ratio of paired rounds."""
    ratios = rates[:, 0] / rates[:, 1]
    return {
        "requests_per_s": {
            name: {"median": round(float(np.median(column))), "min": round(column.min()), "max": round(column.max())}
            for name, column in (("forwardpass", rates[:, 0]), ("wrk", rates[:, 1]))
        },
        "ratio": round(float(np.median(ratios)), 2),
        "ratio_range": [round(float(ratios.min()), 2), round(float(ratios.max()), 2)],
    }


def main() -> None:
    """Compare and print."""
    from forwardpass.profile import describe_machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is not installed; nothing to compare with.", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        table = measure(Path(folder), options.rounds, options.seconds)
    document = {
        "benchmark": "load_generator",
        "machine": msgspec.to_builtins(describe_machine()),
        "cores": len(os.sched_getaffinity(0)),
        "rounds": options.rounds,
        "seconds_per_round": options.seconds,
        "connections": table,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
