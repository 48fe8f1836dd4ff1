"""Faults at their full length: minutes of them, not a moment (F2, F14, F17)."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from forwardpass.loadtest.generator import Generator
from forwardpass.loadtest.messages import Fate
from forwardpass.loadtest.schedules import Arrivals, Phase, arrival_times
from forwardpass.loadtest.settings import TargetSettings
from forwardpass.loadtest.summary import Requests
from forwardpass.loadtest.target import prepare_requests
from tests.e2e.processes import ServerProcess, server_process
from tests.e2e.serving import eventually, infer_body, read_to_the_end
from tests.models import mlp_calls, write_bundle, write_mlp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MLP = "/v2/models/mlp/infer"
BODY = infer_body({"pixels": np.ones((1, 64), np.float32)})
MIB = 2**20
CUT_AFTER_S = {"header": 10.0, "body": 30.0}
"""What a server allows whose operator has set nothing."""


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    return write_bundle(folder / "mlp", write_mlp(folder / "mlp.onnx"), mlp_calls())


@dataclass
class Heard:
    """What customers have been told."""

    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[OSError] = field(default_factory=list)


@contextmanager
def customers(running: ServerProcess, num_customers: int, *, pause_s: float) -> Iterator[Heard]:
    """Ask, each again and again, until the block ends."""
    heard, is_over = Heard(), threading.Event()

    def ask() -> None:
        while not is_over.wait(pause_s):
            try:
                heard.statuses[running.ask("POST", MLP, BODY).status] += 1
            except OSError as problem:
                heard.problems.append(problem)

    threads = [threading.Thread(target=ask) for _ in range(num_customers)]
    for thread in threads:
        thread.start()
    try:
        yield heard
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


# --- F2


def _has_other_workers(running: ServerProcess, pid: int) -> bool:
    return running.worker_pids() not in ((), (pid,))


def test_a_worker_killed_every_ten_seconds_for_a_minute_costs_no_answer(mlp: Path, tmp_path: Path) -> None:
    with server_process(str(mlp), folder=tmp_path) as running:
        assert running.ask("POST", MLP, BODY).status == 200
        before = running.footprint()
        with customers(running, 4, pause_s=0.02) as heard:
            for _ in range(6):
                begun_s = time.monotonic()
                (pid,) = running.worker_pids()
                os.kill(pid, signal.SIGKILL)
                eventually(partial(_has_other_workers, running, pid))
                eventually(running.is_up)
                time.sleep(max(0.0, begun_s + 10 - time.monotonic()))
        assert heard.problems == []
        assert set(heard.statuses) == {200}
        assert heard.statuses[200] > 6 * 4
        eventually(lambda: running.footprint().num_files <= before.num_files)
        after = running.footprint()
        assert (after.num_children, after.num_threads) == (before.num_children, before.num_threads)
        assert after.rss_bytes - before.rss_bytes < 16 * MIB
        assert not any(
            child.status() == psutil.STATUS_ZOMBIE for child in psutil.Process(running.process.pid).children()
        )


# --- F14


@pytest.mark.parametrize(
    ("part", "start"),
    [("header", b"POST "), ("body", b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n" % MLP.encode())],
)
def test_three_hundred_clients_that_send_a_byte_a_second_are_cut_when_their_time_is_over(
    mlp: Path, tmp_path: Path, part: str, start: bytes
) -> None:
    with server_process(str(mlp), folder=tmp_path) as running, ExitStack() as stack:
        before = running.footprint()
        begun_s = time.monotonic()
        slow = [stack.enter_context(running.connect()) for _ in range(300)]
        for client in slow:
            client.sendall(start)
        with customers(running, 2, pause_s=0.01) as heard:
            while not any(is_told(client) for client in slow):
                for client in slow:
                    client.sendall(b"x")
                time.sleep(1)
            assert time.monotonic() - begun_s > CUT_AFTER_S[part], "not before"
            for client in slow:
                with suppress(ConnectionError):
                    assert read_to_the_end(client).startswith(b"HTTP/1.1 408 ")
        assert heard.problems == []
        assert set(heard.statuses) == {200}
        assert heard.statuses[200] > CUT_AFTER_S[part]
        eventually(lambda: running.footprint().num_files <= before.num_files)


def is_told(client: socket.socket) -> bool:
    """Whether something has come from the server."""
    try:
        return bool(client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


# --- F17

NUM_LAYERS, WIDTH = 60, 768
DEADLINE_SERVICES = 60
"""The deadline as a multiple of how long one request runs: far beyond what the scheduler of a busy machine adds."""
OVERLOAD_S = 40.0


def write_long_mlp(path: Path) -> Path:
    """Write a model of milliseconds: one matrix again and again, small enough for a cache."""
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
    names = ["x", *(f"h{number}" for number in range(NUM_LAYERS - 1)), "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[at], "w"], [names[at + 1]]) for at in range(NUM_LAYERS)],
        "long",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def test_in_bursts_of_twice_the_capacity_who_is_answered_is_in_time_and_the_rest_hears_it_at_once(
    tmp_path: Path,
) -> None:
    """A fifth of each second brings ten times what can be done, the rest nothing; afterwards all is as before."""
    calls = [{"x": np.ones((1, WIDTH), np.float32)}]
    bundle = write_bundle(tmp_path / "long", write_long_mlp(tmp_path / "long.onnx"), calls, name="long")
    patient = "[server]\nheader_timeout = 600\nkeep_alive = 600\n"  # a connection is never cut as it is used again
    with server_process(str(bundle), "--max-batch", "1", folder=tmp_path, config=patient) as running:
        url = f"http://127.0.0.1:{running.port}"
        capacity_per_s = measured_capacity_per_s(url)
        deadline_s = DEADLINE_SERVICES / capacity_per_s
        target = TargetSettings(url=url, deadline_s=deadline_s)
        phase = Phase(rate_per_s=2 * capacity_per_s, duration_s=OVERLOAD_S, arrivals=Arrivals.BURSTS)
        loaded = ran(target, phase=phase)
        answered = loaded.are_answered
        refused = np.isin(loaded.statuses, (429, 503))
        late = loaded.statuses == 504
        took_s = loaded.done_s - loaded.sent_s
        answered_ms, refused_ms = (np.percentile(took_s[these], [50, 99]) * 1e3 for these in (answered, refused))
        shares = (
            f"{len(loaded)} asked, {answered.mean():.1%} answered (ms: {answered_ms}), {refused.mean():.1%} refused "
            f"(ms: {refused_ms}), {late.mean():.1%} late; capacity {capacity_per_s:.0f}/s, deadline {deadline_s:.3f} s"
        )
        assert (answered | refused | late).all(), shares
        assert (took_s[answered] <= deadline_s).mean() >= 0.97, shares
        assert np.median(took_s[refused]) < deadline_s / 4, shares
        assert late.mean() < 0.2, shares
        sure_per_s = min(capacity_per_s, measured_capacity_per_s(url))  # others may have begun to use the machine
        assert answered.sum() > 0.5 * sure_per_s * OVERLOAD_S * least_share_served(deadline_s), shares
        after = ran(target, phase=Phase(rate_per_s=0.3 * sure_per_s, duration_s=4, arrivals=Arrivals.POISSON))
        assert after.are_answered.mean() >= 0.97


def measured_capacity_per_s(url: str) -> float:
    alone = ran(TargetSettings(url=url), num_connections=2, duration_s=4)
    assert alone.are_answered.all()
    return len(alone) / float(alone.done_s.max() - alone.sent_s.min())


def least_share_served(deadline_s: float) -> float:
    """Return for which part of each second there is something to do, at least: a burst, and what may wait of it."""
    return min(1.0, 0.2 + 0.5 * deadline_s)


def ran(
    target: TargetSettings, *, phase: Phase | None = None, num_connections: int = 1, duration_s: float = 1.0
) -> Requests:
    """Send by a schedule, or over so many connections; return what was written down after the first half second."""
    prepared = prepare_requests(target, None, seed=1, timeout_s=20.0, max_connections=512)
    with Generator(prepared.prepare) as generator:
        if phase is not None:
            done = generator.run_open(arrival_times(phase, seed=1))
        else:
            done = generator.run_closed(num_connections=num_connections, duration_s=duration_s, max_requests=10**6)
    requests = Requests.from_run(done).between(0.5, np.inf)
    assert set(requests.fates.tolist()) <= {Fate.ANSWERED, Fate.WRONG_STATUS}, Counter(requests.fates.tolist())
    return requests
