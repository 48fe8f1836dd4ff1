"""Clients that drip, do not read, leave, or send bombs, and a server without file descriptors.

F14 (also `test_serve.py`), F15 (streams: `test_streams.py`), F16, F18 (single mistakes: `test_serve.py`,
`test_access.py`, `tests/unit/serve/test_oip.py`), F21.
"""

from __future__ import annotations

import gzip
import json
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from forwardpass.core.tensors import Array
from tests.e2e.processes import ServerProcess, server_process
from tests.e2e.serving import PATIENCE_S, Answer, eventually, infer_body, post, read_answers, read_to_the_end
from tests.models import mlp_calls, write_bundle, write_mlp, write_ones

MLP, ONES = "/v2/models/mlp/infer", "/v2/models/ones/infer"
BODY = infer_body({"pixels": np.ones((1, 64), np.float32)})
MIB = 2**20
NUM_WARM_UPS = 2
CONFIG = """
[server]
header_timeout = 1.5
body_timeout = 1.5
[defaults]
timeout = 30
"""


def size(number: int) -> dict[str, Array]:
    return {"size": np.array([[number]], np.int64)}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("network")
    mlp = write_bundle(folder / "mlp", write_mlp(folder / "mlp.onnx"), mlp_calls())
    ones = write_bundle(folder / "ones", write_ones(folder / "ones.onnx"), [size(3)], name="ones")
    return str(mlp), str(ones)


@pytest.fixture(scope="module")
def served(bundles: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(*bundles, folder=tmp_path_factory.mktemp("served"), config=CONFIG) as running:
        for _ in range(20):
            running.ask("POST", MLP, BODY)
        yield running
        assert "Traceback" not in running.log.read_text()


def is_answered(running: ServerProcess) -> bool:
    with suppress(OSError):  # without descriptors it hangs up on newcomers
        return running.ask("POST", MLP, BODY).status == 200
    return False


# --- F14


@pytest.mark.parametrize("start", [b"POST ", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"])
def test_three_hundred_dripping_clients_are_all_cut_and_nobody_waits_for_them(
    served: ServerProcess, start: bytes
) -> None:
    before = served.footprint()
    with ExitStack() as stack:
        slow = [stack.enter_context(served.connect()) for _ in range(300)]
        for client in slow:
            client.sendall(start)
        begun_s, num_answered = time.monotonic(), 0
        while time.monotonic() - begun_s < 1.0:
            for client in slow[:: len(slow) // 10]:
                client.sendall(b"x")
            assert is_answered(served)
            num_answered += 1
        assert num_answered >= 5
        for client in slow:
            with suppress(ConnectionError):
                assert read_to_the_end(client).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - begun_s < 30
    eventually(lambda: served.footprint().num_files <= before.num_files)


# --- F15


def leave_unread(running: ServerProcess, num_clients: int, num_values: int) -> int:
    """Ask for large answers and read none until all are cut; return the memory that the server then keeps."""
    with ExitStack() as stack:
        lazy = [stack.enter_context(running.connect()) for _ in range(num_clients)]
        ports = {client.getsockname()[1] for client in lazy}
        for client in lazy:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(post(ONES, infer_body(size(num_values))))
        eventually(lambda: running.num_connected(ports) == num_clients)
        due_s = time.monotonic() + PATIENCE_S
        while running.num_connected(ports):
            assert time.monotonic() < due_s, "they were not cut"
            assert is_answered(running)
    assert is_answered(running)  # what belonged to them has been let go of by now
    return running.footprint().rss_bytes


def test_clients_that_do_not_read_cost_their_answers_until_they_are_cut_and_nothing_after(
    served: ServerProcess,
) -> None:
    """What the allocator keeps is used again: one lost answer of each four would show as 8 MB more in each round."""
    num, num_rounds = 2_000_000, 4
    answer_bytes, making_bytes = 4 * num, (4 + 8 + 24 + 4) * num  # text; float32, list, float objects and text of one
    before_bytes = served.footprint().rss_bytes
    kept_bytes = [leave_unread(served, 4, num) for _ in range(NUM_WARM_UPS + num_rounds)]
    assert served.peak_rss_bytes() - before_bytes < 4 * 2 * answer_bytes + making_bytes + 64 * MIB
    assert kept_bytes[-1] - kept_bytes[NUM_WARM_UPS - 1] < num_rounds * answer_bytes / 2


# --- F16


def test_half_of_the_clients_leave_in_the_queue_or_while_they_are_run_and_the_others_get_theirs(
    served: ServerProcess,
) -> None:
    expected = [np.full((1, 64), number, np.float32) for number in range(4)]
    right = [served.ask("POST", MLP, infer_body({"pixels": pixels})).json["outputs"][0]["data"] for pixels in expected]
    before = served.footprint()
    (_, ones_pid), num_right = served.worker_pids(), 0
    assert psutil.pid_exists(ones_pid)
    for turn in range(40):
        with ExitStack() as stack:
            clients = [stack.enter_context(served.connect()) for _ in range(16)]
            for number, client in enumerate(clients):
                client.sendall(post(MLP, infer_body({"pixels": expected[number % 4]})))
                if number % 2:
                    client.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0" if turn % 2 else b"\0" * 8
                    )
                    client.close()
            for number, client in enumerate(clients):
                if number % 2 == 0:
                    (answer,) = read_answers(client, 1)
                    assert answer.json["outputs"][0]["data"] == pytest.approx(right[number % 4], rel=1e-5)
                    num_right += 1
    assert num_right == 40 * 8
    eventually(lambda: served.footprint().num_files <= before.num_files)
    assert served.footprint().rss_bytes - before.rss_bytes < 32 * MIB
    waiting = [line for line in served.ask("GET", "/metrics").body.decode().splitlines() if "waiting_requests{" in line]
    assert all(line.endswith(" 0.0") for line in waiting)


# --- F18


def tensor(**changes: object) -> bytes:
    given = {"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64} | changes
    return json.dumps({"inputs": [given]}).encode()


def chunked(num_chunks: int) -> bytes:
    head = b"POST %s HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" % MLP.encode()
    return head + b"1\r\n \r\n" * num_chunks + b"0\r\n\r\n"


BOMBS = {
    "gzip of zeros": post(MLP, gzip.compress(b"\0" * 200_000_000, 9), "content-encoding: gzip"),
    "gzip of JSON": post(MLP, gzip.compress(b"[" * 50_000_000, 9), "content-encoding: gzip"),
    "depth": post(MLP, b'{"inputs":' + b"[" * 250_000),
    "depth of objects": post(MLP, b'{"a":' * 250_000),
    "chunks": chunked(65_536),
    "dims": post(MLP, tensor(shape=[2**31, 2**31])),
    "dims without data": post(MLP, tensor(shape=[2**31, 2**31], data=[])),
    "negative dims": post(MLP, tensor(shape=[-1, -64])),
    "many dims": post(MLP, tensor(shape=[1] * 100_000)),
    "duplicate keys": post(MLP, b'{"inputs":[],"inputs":[]}'),
    "NUL": post(MLP, b'{"inputs":[{"name":"\\u0000pixels\0"}]}'),
    "NUL in the path": b"GET /v2/models/\0 HTTP/1.1\r\nhost: a\r\n\r\n",
    "a gigabyte announced": b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-length: 1073741824\r\n\r\n{" % MLP.encode(),
    "binary size": post(
        MLP,
        b'{"inputs":[{"name":"pixels","shape":[1,64],"datatype":"FP32","parameters":{"binary_data_size":1099511627776}}]}',
        "inference-header-content-length: 113",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_fast_and_costs_little(served: ServerProcess, bomb: str) -> None:
    before = served.footprint()
    begun_s = time.monotonic()
    with served.connect() as client:
        client.sendall(BOMBS[bomb])
        (answer,) = read_answers(client, 1)
    assert time.monotonic() - begun_s < 10
    assert 400 <= answer.status < 500, answer.body[:300]
    assert "Traceback" not in answer.json["error"]
    assert len(answer.body) < 4096
    assert served.footprint().rss_bytes - before.rss_bytes < (64 + 32) * MIB
    assert is_answered(served)


# --- F21


def test_without_file_descriptors_it_neither_spins_nor_stays_deaf(served: ServerProcess) -> None:
    files = served.footprint().num_files
    _, hard = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (files + 20, hard))
    try:
        with ExitStack() as stack:
            kept = stack.enter_context(served.connect())
            kept.sendall(post(MLP, BODY))
            assert read_answers(kept, 1)[0].status == 200
            for _ in range(200):
                stack.enter_context(served.connect())
            time.sleep(0.3)  # let it run into the limit
            cpu_s, begun_s = served.cpu_s(), time.monotonic()
            time.sleep(1.0)
            share = (served.cpu_s() - cpu_s) / (time.monotonic() - begun_s)
            assert share < 0.5, "it does not spin"
            kept.sendall(post(MLP, BODY))
            assert read_answers(kept, 1)[0].status == 200, "who is connected is answered"
        eventually(lambda: is_answered(served))
    finally:
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert is_answered(served)


def test_a_worker_that_ends_while_there_are_no_file_descriptors_comes_back_later(
    bundles: tuple[str, str], tmp_path: Path
) -> None:
    live = b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n"
    with server_process(bundles[0], folder=tmp_path, config="[server]\nkeep_alive = 600\n") as running:
        files = running.footprint().num_files
        _, hard = resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE)
        with running.connect() as kept:
            kept.sendall(live)
            assert read_answers(kept, 1)[0].status == 200, "it is accepted: newcomers are hung up on"
            resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (files - 3, hard))
            (pid,) = running.worker_pids()
            psutil.Process(pid).send_signal(signal.SIGKILL)
            eventually(lambda: "no worker can be started" in running.log.read_text())
            kept.sendall(live)
            resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
            assert read_answers(kept, 1)[0].status == 200
        eventually(running.is_up)
        assert is_answered(running)
        eventually(lambda: running.footprint().num_files <= files)


def test_after_a_kill_the_port_can_be_bound_again_at_once(bundles: tuple[str, str], tmp_path: Path) -> None:
    with ExitStack() as stack:
        with server_process(bundles[0], folder=tmp_path) as first:
            clients = [stack.enter_context(first.connect()) for _ in range(20)]
            for client in clients:
                client.sendall(post(MLP, BODY))
                assert read_answers(client, 1)[0].status == 200
            workers = first.worker_pids()
            first.process.kill()
            first.process.wait()
        with server_process(bundles[0], folder=tmp_path, port=first.port) as second:
            answer: Answer = second.ask("POST", MLP, BODY)
            assert answer.status == 200
            eventually(lambda: not any(psutil.pid_exists(pid) for pid in workers))
