"""The system around the server fails: a full disk, a clock that jumps, workers that die again and again, leaks.

F2, F7 (second signal), F12, F19, F20, F22, and the proof that nothing of a request is kept.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from forwardpass.serve.server import SAME_SIGNAL_S
from tests.e2e.processes import ServerProcess, server_process
from tests.e2e.serving import Background, eventually, infer_body, post, serve_settings, serving
from tests.models import mlp_calls, write_bundle, write_mlp, write_text_bundle, write_typed

MLP = "/v2/models/mlp/infer"
BODY = infer_body({"pixels": np.ones((1, 64), np.float32)})
MIB = 2**20


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("system")
    return write_bundle(folder / "mlp", write_mlp(folder / "mlp.onnx"), mlp_calls())


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers what it is given."""
    folder = tmp_path_factory.mktemp("same")
    calls = [{"x": np.ones((1, 4), np.float32)}]
    return write_bundle(folder / "same", write_typed(folder / "same.onnx", "float32", size=4), calls, name="same")


# --- F2, F7


def test_a_worker_killed_again_and_again_leaves_nothing_behind(mlp: Path, tmp_path: Path) -> None:
    with server_process(str(mlp), folder=tmp_path) as running:
        assert running.ask("POST", MLP, BODY).status == 200
        before = running.footprint()
        for _ in range(6):
            (pid,) = running.worker_pids()
            os.kill(pid, signal.SIGKILL)
            assert running.ask("POST", MLP, BODY).status == 200, "it waits for the next worker"
        eventually(lambda: running.footprint().num_files <= before.num_files)
        after = running.footprint()
        assert (after.num_children, after.num_threads) == (before.num_children, before.num_threads)
        assert after.rss_bytes - before.rss_bytes < 16 * MIB


def test_a_second_signal_ends_at_once_and_with_1_and_leaves_nothing(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker, though this one hangs, and no temporary folder, in which the bundle of a bare model is."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    onnx = shutil.copy(next(mlp.rglob("*.onnx")), tmp_path / "bare.onnx")
    with server_process(str(onnx), folder=tmp_path) as running:
        eventually(lambda: "profiled in the background" in running.log.read_text())
        assert list((tmp_path / "temporary").iterdir()) != []
        (worker,) = running.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        with running.connect() as client:
            client.sendall(post("/v2/models/bare/infer", BODY))
            eventually(lambda: psutil.Process(worker).status() == psutil.STATUS_STOPPED)
            running.process.send_signal(signal.SIGTERM)
            eventually(lambda: "draining" in running.log.read_text())
            time.sleep(2 * SAME_SIGNAL_S)  # what comes sooner counts as the same signal
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(10) == 1
        assert "second signal: ending at once" in running.log.read_text()
        eventually(lambda: not psutil.pid_exists(worker))
        assert list((tmp_path / "temporary").iterdir()) == []


def test_a_signal_before_the_server_is_there_leaves_no_temporary_folder(mlp: Path, tmp_path: Path) -> None:
    onnx = next(mlp.rglob("*.onnx"))
    command = [sys.executable, "-m", "forwardpass", "serve", str(onnx), "--port", "0"]
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: any((tmp_path / "temporary").iterdir()))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (0, False), said
    assert list((tmp_path / "temporary").iterdir()) == []


# --- F12


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Mount a disk of one megabyte; skip where that is not allowed."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_under_the_log_costs_lines_of_the_log_and_nothing_else(mlp: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        log = disk / "serve.log"
        with server_process("--log-requests", str(mlp), folder=tmp_path, log=log) as running:
            ballast = disk / "ballast"
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            shutil.rmtree(disk / "nothing", ignore_errors=True)
            size = log.stat().st_size
            for _ in range(300):
                assert running.ask("POST", MLP, BODY).status == 200
            assert shutil.disk_usage(disk).free == 0
            assert log.stat().st_size < size + 8192
            metrics = running.ask("GET", "/metrics").body.decode()
            (dropped,) = [
                line for line in metrics.splitlines() if line.startswith("forwardpass_log_lines_dropped_total ")
            ]
            assert float(dropped.split()[1]) > 100
            ballast.unlink()
            size = log.stat().st_size
            assert running.ask("GET", "/v2/health/live").status == 200
            eventually(lambda: log.stat().st_size > size)


# --- F19


def test_every_answer_is_a_function_of_its_own_request(same: Path) -> None:
    """The ids repeat, a third of the clients leave, and batches are as the load makes them."""
    check_answers(same, 1_500)


@pytest.mark.slow
def test_ten_thousand_answers_are_each_a_function_of_their_own_request(same: Path) -> None:
    check_answers(same, 10_000)


def check_answers(bundle: Path, num_requests: int) -> None:
    chance = random.Random(4)
    tensors = np.arange(num_requests * 4, dtype=np.float32).reshape(num_requests, 1, 4)

    async def one(number: int, port: int, gate: asyncio.Semaphore) -> bool | None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                body = infer_body({"x": tensors[number]}, id=str(number % 7))
                writer.write(post("/v2/models/same/infer", body, "connection: close"))
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() * 0.01)
                    writer.transport.abort()
                    return None
                head, _, content = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
        assert head.startswith(b"HTTP/1.1 200 "), head
        answer = json.loads(content)
        is_own = answer["outputs"][0]["data"] == tensors[number].ravel().tolist()
        return is_own and answer["id"] == str(number % 7)

    async def everybody(port: int) -> list[bool | None]:
        gate = asyncio.Semaphore(200)
        return await asyncio.gather(*(one(number, port, gate) for number in range(num_requests)))

    with serving(bundle) as running:
        told = asyncio.run(everybody(running.port))
        counted = running.server.statistics()
    assert told.count(False) == 0
    assert told.count(True) > num_requests / 2
    assert counted.num_batches < counted.num_batched, "some ran together"


# --- F20


def test_a_wall_clock_that_jumps_by_a_day_changes_nothing(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Durations are measured with a clock that cannot be set."""
    with serving(mlp, serve_settings(timeout_s=20.0, keep_alive_s=20.0)) as running:
        real = time.time
        with running.connect():
            for jump_s in (86_400.0, -86_400.0):
                with running.frozen_worker():
                    held = Background(lambda: running.ask("POST", MLP, BODY))
                    eventually(lambda: not running.server.repository.models["mlp"].default._dispatcher.is_idle)
                    monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
                assert held.result().status == 200
                assert running.ask("POST", MLP, BODY).status == 200
            assert len(running.server._connections._open) >= 1, "the idle connection is still there"
        metrics = running.server.repository.models["mlp"].default.metrics
        assert metrics.total.num_values == 4
        assert 0 <= metrics.total.total < 60
        assert 0 <= metrics.queue.total < 60
        assert metrics.num_failed == 0


def test_a_boot_clock_of_another_namespace_is_no_trouble(mlp: Path, tmp_path: Path) -> None:
    prefix = ("unshare", "--time", "--boottime", "1000000", "--monotonic", "1000000", "--fork", "--kill-child")
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no namespace of clocks may be made here")
    with server_process(str(mlp), folder=tmp_path, prefix=prefix) as running:
        assert running.ask("POST", MLP, BODY).status == 200
        (server,) = psutil.Process(running.process.pid).children()
        server.terminate()
        running.process.wait(40)


# --- F22


class Soak:
    """Mixed traffic, and whether memory or files grow with it."""

    def __init__(self, running: ServerProcess) -> None:
        self._running = running

    def run(self, num_rounds: int) -> list[tuple[int, int]]:
        """Ask in rounds of 200 requests; return memory in bytes and files after each."""
        return [self._round() for _ in range(num_rounds)]

    def _round(self) -> tuple[int, int]:
        for number in range(25):
            for _ in range(5):
                assert self._running.ask("POST", MLP, BODY).status == 200
            assert self._running.ask("POST", MLP, b"{").status == 400
            assert self._running.ask("GET", f"/nothing/{number}").status == 404
            with self._running.connect() as leaver:
                leaver.sendall(post(MLP, BODY))
        assert self._running.ask("POST", "/v2/repository/models/mlp/load").status == 200
        assert self._running.ask("GET", "/metrics").status == 200
        seen = self._running.footprint()
        return seen.rss_bytes, seen.num_files


def slope(values: list[int]) -> float:
    """Return the growth per round as the median of all pairwise slopes (Theil and Sen): single jumps do not count."""
    pairs = [(late - early) / (j - i) for i, early in enumerate(values) for j, late in enumerate(values) if i < j]
    return float(np.median(pairs))


def leaks(rounds: list[tuple[int, int]], *, max_bytes: float = 96 * 1024) -> bool:
    """Tell whether memory grows by more than half a kilobyte per request, or files grow at all."""
    settled = rounds[len(rounds) // 3 :]
    return slope([rss for rss, _ in settled]) > max_bytes or slope([files for _, files in settled]) >= 0.5


LEAKING = """
import sys
from forwardpass.serve.app import Application
handle, kept = Application.handle, []
def leak(self, exchange):
    kept.append(bytearray(2048))
    handle(self, exchange)
Application.handle = leak
sys.argv = ["forwardpass", *sys.argv[1:]]
from forwardpass.cli import main
main()
"""


def test_mixed_traffic_does_not_grow_memory_or_files(mlp: Path, tmp_path: Path) -> None:
    with server_process(str(mlp), folder=tmp_path) as running:
        rounds = Soak(running).run(12)
    assert not leaks(rounds), rounds


def test_a_server_that_leaks_two_kilobytes_per_request_is_caught(mlp: Path, tmp_path: Path) -> None:
    """The control: a test of leaks that never fails proves nothing."""
    with server_process(str(mlp), folder=tmp_path, program=LEAKING) as running:
        rounds = Soak(running).run(12)
    assert leaks(rounds), rounds


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_half_an_hour_of_mixed_traffic_does_not_grow_memory_or_files(mlp: Path, tmp_path: Path) -> None:
    with server_process(str(mlp), folder=tmp_path) as running:
        rounds: list[tuple[int, int]] = []
        end_s = time.monotonic() + 1800
        while time.monotonic() < end_s:
            rounds += Soak(running).run(1)
    assert not leaks(rounds, max_bytes=8 * 1024), rounds[:: max(1, len(rounds) // 50)]


# --- nothing is kept


def holds(place: Path, marker: bytes) -> bool:
    try:
        return marker in place.read_bytes()
    except OSError:
        return False


def files_under(*roots: Path) -> Iterator[Path]:
    for root in roots:
        yield from (path for path in root.rglob("*") if path.is_file())


def test_nothing_of_a_request_is_found_anywhere_afterwards(same: Path, tmp_path: Path) -> None:
    """A random marker goes in as text, as a tensor's bytes, in a header, in a path and in what is refused."""
    marker = secrets.token_hex(16)
    text = write_text_bundle(tmp_path / "text")
    secret = np.frombuffer(marker.encode()[:16], np.float32).reshape(1, 4)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = ("env", f"TMPDIR={temporary}")
    with server_process("--log-requests", str(same), str(text), folder=tmp_path, prefix=environment) as running:
        errors = []
        for method, path, body, headers in [
            ("POST", "/v1/models/text/predict", json.dumps({"text": marker}).encode(), {}),
            ("POST", "/v1/models/text/predict", json.dumps({"text": {"a": marker}}).encode(), {}),
            ("POST", "/v2/models/same/infer", infer_body({"x": secret}), {}),
            ("POST", "/v2/models/same/infer", marker.encode(), {"authorization": f"Bearer {marker}"}),
            ("POST", "/v2/models/same/infer", json.dumps({"inputs": marker}).encode(), {"x-secret": marker}),
            (
                "POST",
                "/v2/models/text/infer",
                infer_body({"input_ids": np.array([[10**6]]), "attention_mask": np.ones((1, 1), np.int64)}),
                {},
            ),
            ("GET", f"/v2/health/live?{marker}", None, {}),
        ]:
            answer = running.ask(method, path, body, headers)
            if answer.status != 200:
                errors.append(answer.body)
        os.kill(running.worker_pids()[0], signal.SIGSEGV)
        eventually(running.is_up)
        metrics = running.ask("GET", "/metrics").body
        everything = [metrics, *errors, running.log.read_bytes()]
        assert len(errors) >= 3
        assert not any(marker.encode() in held or b"1000000" in held for held in everything)
        places = [*files_under(tmp_path, same.parent), *files_under(Path("/dev/shm"))]
        assert not [place for place in places if holds(place, marker.encode()) or holds(place, marker.encode()[:16])]
        left = [path for path in temporary.rglob("*") if path.is_file()]
        assert left == [], "not even an identifier of ONNX Runtime's telemetry"
        written = [
            entry.path
            for pid in (running.process.pid, *running.worker_pids())
            for entry in psutil.Process(pid).open_files()
            if "w" in entry.mode or "a" in entry.mode
        ]
        assert set(written) <= {str(running.log)}
