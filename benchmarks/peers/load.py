"""The load, from a small program in C: closed loop, and open loop by a schedule that no slow answer changes.

Python spends about as long on a request as a fast server does and would share its two cores: `load.c` spends a small
part of that. It notes when each request was due, seen, sent and answered; what is made of that is decided here.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["OK", "Array", "Load", "Outcome", "build_generator", "poisson_schedule"]

SOURCE = Path(__file__).with_name("load.c")
RECORD = np.dtype([("due_s", "f8"), ("seen_s", "f8"), ("sent_s", "f8"), ("done_s", "f8"), ("status", "i8")])
OK = 200
REFUSALS = (429, 503)
"""What a server answers that tells a client to come back later."""
MAX_CONNECTIONS = 1000
GRACE_S = 20.0
Array = np.ndarray[Any, np.dtype[Any]]


def build_generator(folder: Path) -> Path:
    """Compile the program, unless that has been done."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    program = folder / f"load-{digest}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["cc", "-O2", "-o", str(program), str(SOURCE)], check=True)
        except FileNotFoundError:
            sys.exit("The load generator needs a C compiler. Install one: apt-get install gcc libc6-dev")
    return program


def poisson_schedule(rate: float, seconds: float, generator: np.random.Generator, *, start_s: float = 0.0) -> Array:
    """Return when requests are due that come independently of each other, `rate` per second on average."""
    number = generator.poisson(rate * seconds)
    return start_s + np.sort(generator.uniform(0.0, seconds, number))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of every request of a load, in the order in which they were due."""

    records: Array
    generator_cpu_s: float

    @property
    def latencies_s(self) -> Array:
        """From when it was due to the whole answer."""
        return self.records["done_s"] - self.records["due_s"]

    @property
    def is_ok(self) -> Array:
        """Which were answered with 200."""
        return self.records["status"] == OK

    def is_within(self, slo_s: float) -> Array:
        """Which were answered with 200 in time."""
        return self.is_ok & (self.latencies_s <= slo_s)

    def share_within(self, slo_s: float) -> float:
        """Return how many of those offered were answered in time."""
        return float(self.is_within(slo_s).mean()) if len(self.records) else 1.0

    @property
    def refusal_latencies_s(self) -> Array:
        """How long refusals took."""
        return self.latencies_s[np.isin(self.records["status"], REFUSALS)]

    @property
    def lag_p99_s(self) -> float:
        """How late the generator itself was: were it in the way, this would tell."""
        lags = self.records["seen_s"] - self.records["due_s"]
        return float(np.percentile(lags, 99)) if len(lags) else 0.0

    def counts(self) -> dict[str, int]:
        """Return how many had each status; 0 were given up, -1 lost their connection."""
        statuses, numbers = np.unique(self.records["status"], return_counts=True)
        return {str(status): int(number) for status, number in zip(statuses, numbers, strict=True)}

    def before(self, time_s: float) -> Outcome:
        """Return what was due before a time."""
        return Outcome(records=self.records[self.records["due_s"] < time_s], generator_cpu_s=self.generator_cpu_s)

    def after(self, time_s: float) -> Outcome:
        """Return what was due from a time on."""
        return Outcome(records=self.records[self.records["due_s"] >= time_s], generator_cpu_s=self.generator_cpu_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Puts load on the server at `port` with one request, again and again."""

    program: Path
    port: int
    request: bytes

    def closed(self, num_connections: int, seconds: float, *, warm_up_s: float) -> Outcome:
        """Ask with so many clients, each of which asks again as soon as it has its answer."""
        whole = self._run("closed", num_connections, warm_up_s + seconds, warm_up_s + seconds, None)
        finished = whole.records[(whole.records["status"] != 0) & (whole.records["done_s"] >= warm_up_s)]
        return Outcome(records=finished, generator_cpu_s=whole.generator_cpu_s)

    def open(self, schedule: Array, *, timeout_s: float) -> Outcome:
        """Ask when it is due; a client hangs up after `timeout_s`."""
        seconds = float(schedule[-1]) if len(schedule) else 0.0
        return self._run("open", MAX_CONNECTIONS, timeout_s, seconds, schedule)

    def _run(self, mode: str, num_connections: int, limit_s: float, seconds: float, schedule: Array | None) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            request, out, due = (Path(folder) / name for name in ("request", "out", "due"))
            request.write_bytes(self.request)
            command = [str(self.program), mode, str(self.port), str(request), str(out), str(num_connections)]
            command.append(str(limit_s))
            if schedule is not None:
                schedule.astype("f8").tofile(due)
                command.append(str(due))
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=seconds + limit_s + GRACE_S
            )
            records = np.fromfile(out, dtype=RECORD)
        return Outcome(records=records, generator_cpu_s=float(done.stdout))
