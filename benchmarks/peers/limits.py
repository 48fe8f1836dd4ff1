"""What the model itself allows: `session.run` in a loop, without any server, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

__all__ = ["Setting", "best_setting", "measure_limit"]

SEARCH_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Rows in a batch, threads of a call, and how many callers share the session."""

    batch: int
    threads: int
    callers: int


def best_setting(model: Path, row: Path, batches: tuple[int, ...], num_cores: int) -> tuple[Setting, dict[str, float]]:
    """Try every setting for a moment; return the fastest, and the rows per second of all."""
    rates = {
        Setting(batch=batch, threads=threads, callers=callers): measure_limit(
            model, row, Setting(batch=batch, threads=threads, callers=callers), SEARCH_S
        )
        for batch in batches
        for threads, callers in sorted({(1, 1), (num_cores, 1), (1, num_cores)})
    }
    best = max(rates, key=lambda setting: rates[setting])
    shown = {f"batch {s.batch}, {s.callers} x {s.threads} threads": round(rate, 1) for s, rate in rates.items()}
    return best, shown


def measure_limit(model: Path, row: Path, setting: Setting, seconds: float) -> float:
    """Return the rows per second of a setting, in a process of its own."""
    arguments = [str(model), str(row), str(setting.batch), str(setting.threads), str(setting.callers), str(seconds)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return float(json.loads(done.stdout))


def _run(model: str, row_file: str, batch: int, threads: int, callers: int, seconds: float) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rows = {session.get_inputs()[0].name: np.stack([np.load(row_file)] * batch)}
    for _ in range(3):
        session.run(None, rows)
    counts = [0] * callers
    started_s = time.perf_counter()
    due_s = started_s + seconds

    def loop(number: int) -> None:
        while time.perf_counter() < due_s:
            session.run(None, rows)
            counts[number] += batch

    if callers == 1:
        loop(0)
    else:
        running = [threading.Thread(target=loop, args=(number,)) for number in range(callers)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    return sum(counts) / (time.perf_counter() - started_s)


if __name__ == "__main__":
    _model, _row, *_numbers = sys.argv[1:]
    _batch, _threads, _callers = map(int, _numbers[:3])
    print(json.dumps(_run(_model, _row, _batch, _threads, _callers, float(_numbers[3]))))
