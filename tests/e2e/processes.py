"""A server in a process of its own, whose memory, files and processor time can be told from the test's."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from tests.e2e.serving import RunningServer, eventually

__all__ = ["ServerProcess", "free_port", "server_process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a server holds, without its workers."""

    rss_bytes: int
    num_files: int
    num_threads: int
    num_children: int


class ServerProcess(RunningServer):
    """`forwardpass serve`, started as an operator starts it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self._seen = psutil.Process(process.pid)

    def footprint(self) -> Footprint:
        """Look at the process."""
        return Footprint(
            rss_bytes=self._seen.memory_info().rss,
            num_files=self._seen.num_fds(),
            num_threads=self._seen.num_threads(),
            num_children=len(self._seen.children()),
        )

    def peak_rss_bytes(self) -> int:
        """Return the most memory that it has had, seen by the kernel: samples would miss it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def num_connected(self, ports: set[int]) -> int:
        """Count the connections that the server holds to clients at these ports."""
        return sum(bool(held.raddr) and held.raddr.port in ports for held in self._seen.net_connections("tcp"))

    def cpu_s(self) -> float:
        """Return the processor time used so far."""
        times = self._seen.cpu_times()
        return float(times.user + times.system)

    def worker_pids(self) -> tuple[int, ...]:
        """The processes that run the models."""
        return tuple(child.pid for child in self._seen.children())

    def is_up(self) -> bool:
        """Whether it answers and is ready."""
        try:
            return self.ask("GET", "/v2/health/ready").status == 200
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return False


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server_process(
    *arguments: str,
    folder: Path,
    config: str = "",
    port: int | None = None,
    prefix: Sequence[str] = (),
    log: Path | None = None,
    program: str | None = None,
) -> Iterator[ServerProcess]:
    """Serve for the length of the block; `prefix` starts it, or `program` in its place. It is stopped or killed."""
    port = port or free_port()
    settings = folder / "serve.toml"
    settings.write_text(config)
    log = log or folder / "serve.log"
    start = ["-c", program] if program else ["-m", "forwardpass"]
    command = [*prefix, sys.executable, *start, "serve", *arguments]
    command += ["--config", str(settings), "--port", str(port), "--threads", "1"]
    stream: IO[bytes]
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stream, cwd=folder)
    try:
        running = ServerProcess(process, port, log)
        eventually(running.is_up)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
