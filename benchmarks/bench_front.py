"""What does a request cost in the native front, and in the one in Python: CPU time, and requests per second?

Both serve the same tiny network at the same time, on two ports, and are asked in turns, round by round. CPU time is
that of the front process alone, so it says something on a busy machine, too. One JSON line to stdout.

    python benchmarks/bench_front.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import psutil

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.peers.load import Load, build_generator  # noqa: E402
from benchmarks.peers.rivals import RIVALS, Command  # noqa: E402
from benchmarks.peers.serving import RunningServer, free_port, serving  # noqa: E402
from benchmarks.peers.workloads import WORKLOADS, write_bundle, write_model  # noqa: E402
from forwardpass.profile import describe_machine  # noqa: E402

FRONTS = {"native": "auto", "python": "python"}
CONNECTIONS = (1, 32)
SECONDS = 1.0
WORKLOAD = WORKLOADS["mlp"]
OURS = RIVALS["forwardpass"]


def front_cpu_s(server: RunningServer) -> float:
    """Return the CPU seconds that the front has used so far, without its workers."""
    times = psutil.Process(server.process.pid).cpu_times()
    return times.user + times.system


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    num_rounds = parser.parse_args().rounds
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model = write_model(WORKLOAD, folder / "mlp.onnx", hidden_size=0)
        bundle = write_bundle(WORKLOAD, model, folder / "mlp")
        session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        right = session.run(None, {WORKLOAD.input_name: WORKLOAD.row()[None]})[0][0]
        generator = build_generator(folder)
        servers: dict[str, RunningServer] = {}
        for front, option in FRONTS.items():
            port = free_port()
            arguments = [sys.executable, "-m", "forwardpass", "serve", str(bundle), "--port", str(port)]
            command = Command(arguments=[*arguments, "--timeout", "30", "--front", option])
            started = serving(OURS, command, port=port, workload=WORKLOAD, right=right, log=folder / f"{front}.log")
            servers[front] = stack.enter_context(started)
        for _ in range(num_rounds):
            for protocol in OURS.protocols:
                request = protocol.request(WORKLOAD, None)
                for num_connections in CONNECTIONS:
                    for front, server in servers.items():
                        load = Load(program=generator, port=server.port, request=request)
                        before_s = front_cpu_s(server)
                        outcome = load.closed(num_connections, SECONDS, warm_up_s=0.0)
                        cost_us = 1e6 * (front_cpu_s(server) - before_s) / len(outcome.records)
                        case = found.setdefault(f"{protocol.name}, {num_connections} connections", {})
                        case.setdefault(f"{front}, requests/s", []).append(float(outcome.is_ok.sum()) / SECONDS)
                        case.setdefault(f"{front}, CPU us of the front", []).append(cost_us)
    print(json.dumps({"machine": msgspec.to_builtins(describe_machine()), "cases": summarise(found)}))


def summarise(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return least, median and greatest of every series."""
    return {
        case: {
            name: {"least": round(min(of), 1), "median": round(float(np.median(of)), 1), "greatest": round(max(of), 1)}
            for name, of in series.items()
        }
        for case, series in found.items()
    }


if __name__ == "__main__":
    main()
