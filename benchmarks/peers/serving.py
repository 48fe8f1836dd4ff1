"""A server under test: started in processes of its own, checked for right answers, and ended with all its children."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.peers.leftovers import family_of, removing_model_folders
from benchmarks.peers.load import Array
from benchmarks.peers.rivals import Command, Protocol, Rival
from benchmarks.peers.workloads import Workload

__all__ = ["RunningServer", "ServerFailed", "ask", "free_port", "serving"]

START_LIMIT_S = 120.0
STOP_LIMIT_S = 15.0
LOOK_S = 0.1
NUM_LINES_OF_LOG = 4
TOLERANCE = 1e-3


class ServerFailed(Exception):
    """A server does not start or answers wrongly; the message is what it said last."""


@dataclass(slots=True, kw_only=True)
class RunningServer:
    """A server that answers rightly."""

    process: psutil.Process
    port: int

    def tree(self) -> list[psutil.Process]:
        """Return its processes, those of its children included."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        """Return the CPU seconds that its processes have used so far."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def idle_cpu(self, seconds: float) -> tuple[float, float]:
        """Return how many cores it uses while nobody asks, and how many the rest of the machine uses."""
        own_before, all_before, started_s = self.cpu_s(), _machine_cpu_s(), time.monotonic()
        time.sleep(seconds)
        elapsed_s = time.monotonic() - started_s
        own, everything = self.cpu_s() - own_before, _machine_cpu_s() - all_before
        return own / elapsed_s, max(everything - own, 0.0) / elapsed_s

    def memory_bytes(self) -> int:
        """Return the memory that its processes have of their own, and their share of what they have in common."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total


@contextlib.contextmanager
def serving(
    rival: Rival, command: Command, *, port: int, workload: Workload, right: Array, log: Path
) -> Iterator[RunningServer]:
    """Start a server, wait until each protocol gives the right answer, and end it and all its processes.

    One that fails is started a second time: some lose a race with themselves on a busy machine.

    Raises:
        ServerFailed: it ended, took too long or answered wrongly, twice.
    """
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_started(rival, command, port, workload, right, log))
        except ServerFailed:
            server = stack.enter_context(_started(rival, command, port, workload, right, log))
        yield server


@contextlib.contextmanager
def _started(
    rival: Rival, command: Command, port: int, workload: Workload, right: Array, log: Path
) -> Iterator[RunningServer]:
    environment = {**_inherited(), **command.environment}
    with log.open("wb") as out:
        child = subprocess.Popen(
            command.arguments,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=log.parent,
            start_new_session=True,
        )
    server = RunningServer(process=psutil.Process(child.pid), port=port)
    try:
        for protocol in rival.protocols:
            _wait_until_right(child, protocol, port, workload, right, log)
        yield server
    finally:
        _stop(child, server)


def _machine_cpu_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def free_port() -> int:
    """Return a port that is free now, and the two after it: some servers open more than one."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if all(_is_free(port + offset) for offset in (1, 2)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _inherited() -> Mapping[str, str]:
    """Return our environment without what would change how fast numbers are crunched in some servers only."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "OPENBLAS_", "PEER_"))}


def _wait_until_right(
    child: subprocess.Popen[bytes], protocol: Protocol, port: int, workload: Workload, right: Array, log: Path
) -> None:
    due_s = time.monotonic() + START_LIMIT_S
    problem = "it did not answer"
    while time.monotonic() < due_s:
        if child.poll() is not None:
            raise ServerFailed(f"it ended with exit code {child.returncode}: {_last_lines(log)}")
        try:
            status, headers, body = ask(port, protocol.request(workload, None))
        except (OSError, http.client.HTTPException) as error:
            problem = f"no connection ({error})"
        else:
            if status == http.client.OK:
                scores = protocol.scores(body, headers)
                if np.allclose(scores, right, rtol=TOLERANCE, atol=TOLERANCE):
                    return
                raise ServerFailed(f"it answered {scores[:3]}… instead of {right[:3]}…")
            problem = f"status {status}: {body[:200].decode(errors='replace')}"
        time.sleep(LOOK_S)
    raise ServerFailed(f"no right answer within {START_LIMIT_S:g} s; {problem}; {_last_lines(log)}")


def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send the bytes of a request and return status, headers and body."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    method, path, _ = line.split(" ")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, dict(field.split(": ", 1) for field in fields))
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def _stop(child: subprocess.Popen[bytes], server: RunningServer) -> None:
    """Ask it to end, and kill what is left of its processes: Ray and BentoML leave some."""
    family = family_of(server.process.pid)
    with removing_model_folders(family):
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_LIMIT_S)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, timeout=STOP_LIMIT_S)
    child.wait(STOP_LIMIT_S)


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-NUM_LINES_OF_LOG:]) or "it said nothing"
