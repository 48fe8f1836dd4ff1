"""What do hot reloads cost? A hundred of them under load: failed and wrong answers, latency, memory that stays behind.

The server runs in a process of its own, from the command line. Two versions of a bundle take each other's place on disk
and are loaded over the repository API, while a closed loop of keep-alive connections asks all the time and one more
client compares every answer, bit by bit, with that of the two versions. The memory is the anonymous one of the front
after each reload; its slope is fitted to the reloads after the first thirty, when the allocator has what it needs. Once
in the life of a server, and often among its first hundreds of reloads, Python makes its table of interned names larger:
half a megabyte at one stroke, which a fit spreads over all of them. So the largest step and the growth without it are
told, too. Prints one JSON line and exits with 1 if a request failed or an answer was that of neither version.

    python benchmarks/bench_hot_reload.py [--reloads 100] [--connections 8]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import psutil

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.peers.load import OK, Array, Load, Outcome, build_generator  # noqa: E402
from benchmarks.peers.rivals import RIVALS, Command  # noqa: E402
from benchmarks.peers.serving import RunningServer, ask, free_port, serving  # noqa: E402
from benchmarks.peers.workloads import WORKLOADS  # noqa: E402
from forwardpass.profile import describe_machine  # noqa: E402
from tests.models import mlp_calls, write_bundle, write_mlp  # noqa: E402

NUM_WARM_UPS = 30
SLICE_S = 1.0
"""The load comes in slices of this length, until the reloads are over."""
WORKLOAD = WORKLOADS["mlp"]
PROTOCOL = RIVALS["forwardpass"].protocols[0]
REQUEST = PROTOCOL.request(WORKLOAD, 30.0)
RELOAD = b"POST /v2/repository/models/mlp/load HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}"


@dataclass(slots=True)
class Crowd:
    """Clients that ask until they are told to stop: many that ask fast, and one that looks at every answer."""

    load: Load
    right: dict[str, Array]
    num_connections: int
    outcomes: list[Outcome] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    _is_over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Crowd:
        self._threads = [threading.Thread(target=work) for work in (self._ask_fast, self._look)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask_fast(self) -> None:
        while not self._is_over.is_set():
            self.outcomes.append(self.load.closed(self.num_connections, SLICE_S, warm_up_s=0.0))

    def _look(self) -> None:
        while not self._is_over.is_set():
            status, headers, body = ask(self.load.port, REQUEST)
            self.seen[self._judge(status, headers, body)] += 1

    def _judge(self, status: int, headers: dict[str, str], body: bytes) -> str:
        if status != OK:
            return f"status {status}"
        scores = PROTOCOL.scores(body, headers)
        return next((name for name, array in self.right.items() if np.array_equal(array, scores)), "wrong")


def exchange(new: Path, place: Path) -> None:
    """Put a bundle in the place of another in one step, as the bundle writer does."""
    fresh, old = place.with_name(".fresh"), place.with_name(".old")
    shutil.copytree(new, fresh)
    place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old)


def anonymous_bytes(pid: int) -> int:
    """Return the resident memory of a process without that of files, whose pages the kernel takes and gives back."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def reload_again_and_again(server: RunningServer, folder: Path, num_reloads: int) -> tuple[list[float], list[int]]:
    """Return how long each reload took, and the memory of the front after it."""
    times_s, memories = [], []
    for number in range(num_reloads):
        exchange(folder / ("2" if number % 2 == 0 else "1"), folder / "mlp")
        started_s = time.monotonic()
        status, _, body = ask(server.port, RELOAD)
        if status != OK:
            sys.exit(f"reload {number + 1} was answered with {status}: {body.decode(errors='replace')}")
        times_s.append(time.monotonic() - started_s)
        memories.append(anonymous_bytes(server.process.pid))
    return times_s, memories


def make_files(folder: Path) -> dict[str, Array]:
    """Write both versions, and the first in its place; return what each answers."""
    import onnxruntime as ort

    right = {}
    for number in ("1", "2"):
        model = write_mlp(folder / f"{number}.onnx", seed=int(number))
        write_bundle(folder / number, model, mlp_calls())
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        right[number] = session.run(["scores"], {"pixels": WORKLOAD.row()[None]})[0][0]
    shutil.copytree(folder / "1", folder / "mlp")
    return right


def measure(folder: Path, num_reloads: int, num_connections: int) -> dict[str, object]:
    """Reload under load and say what happened."""
    right = make_files(folder)
    port = free_port()
    command = Command(
        arguments=[sys.executable, "-m", "forwardpass", "serve", str(folder / "mlp"), "--port", str(port)]
    )
    with serving(
        RIVALS["forwardpass"], command, port=port, workload=WORKLOAD, right=right["1"], log=folder / "log"
    ) as server:
        load = Load(program=build_generator(folder), port=port, request=REQUEST)
        quiet = load.closed(num_connections, SLICE_S, warm_up_s=SLICE_S)
        num_files = server.process.num_fds()
        with Crowd(load, right, num_connections) as crowd:
            times_s, memories = reload_again_and_again(server, folder, num_reloads)
        files_left = server.process.num_fds() - num_files
        processes_left = len(server.tree())
    return describe(crowd, quiet, times_s, memories) | {
        "file_descriptors_gained": files_left,
        "processes_at_end": processes_left,
    }


def describe(crowd: Crowd, quiet: Outcome, times_s: list[float], memories: list[int]) -> dict[str, object]:
    """Return the numbers of a run."""
    latencies_s = np.concatenate([outcome.latencies_s[outcome.is_ok] for outcome in crowd.outcomes])
    num_failed = sum(int((~outcome.is_ok).sum()) for outcome in crowd.outcomes)
    num_wrong = sum(number for name, number in crowd.seen.items() if name not in crowd.right)
    settled = np.array(memories[min(NUM_WARM_UPS, len(memories) // 2) :], dtype=float)
    steps = np.diff(settled) if len(settled) > 1 else np.zeros(1)
    slope_bytes = float(np.polyfit(np.arange(len(settled)), settled, 1)[0]) if len(settled) > 1 else 0.0
    return {
        "reloads": len(times_s),
        "requests": len(latencies_s) + num_failed,
        "failed": num_failed,
        "compared": sum(crowd.seen.values()),
        "wrong": num_wrong,
        "answers_by_version": dict(crowd.seen),
        "reload_s": {"median": float(np.median(times_s)), "min": min(times_s), "max": max(times_s)},
        "p99_ms": round(1e3 * float(np.percentile(latencies_s, 99)), 2),
        "p99_ms_without_reloads": round(1e3 * float(np.percentile(quiet.latencies_s[quiet.is_ok], 99)), 2),
        "longest_ms": round(1e3 * float(latencies_s.max()), 1),
        "front_memory_mb": {"first": memories[0] / 1e6, "last": memories[-1] / 1e6},
        "memory_slope_kb_per_reload": round(slope_bytes / 1e3, 2),
        "largest_memory_step_kb": round(float(steps.max()) / 1e3),
        "memory_growth_without_it_kb_per_reload": round(float(steps.sum() - steps.max()) / len(steps) / 1e3, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reload-") as folder:
        result = measure(Path(folder), options.reloads, options.connections)
    context = {
        "benchmark": "hot_reload",
        "connections": options.connections,
        "machine": msgspec.to_builtins(describe_machine()),
        "memory_total_mb": round(psutil.virtual_memory().total / 1e6),
    }
    print(json.dumps(context | result))
    if result["failed"] or result["wrong"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
