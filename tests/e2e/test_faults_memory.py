"""Memory runs out: in the worker's runtime, in the shared memory, or for the kernel (F5); what is kept out of dumps.

An allocation that fails is the server's trouble and not the client's mistake. It is told with 503, the others of the
batch are run alone and answered, and the worker goes on.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from forwardpass.core.tensors import Array
from forwardpass.errors import ModelNotServed
from forwardpass.serve.process import WorkerProcess
from tests.e2e.serving import Answer, Background, RunningServer, eventually, infer_body, output, serve_settings, serving
from tests.models import write_bundle, write_ones

INFER = "/v2/models/ones/infer"
HUGE = 300_000_000
SENTENCE = (
    "The server has not enough memory to run the model 'ones' on this request. Send fewer rows at once, or try again "
    "later."
)


def size(number: int) -> dict[str, Array]:
    return {"size": np.array([[number]], np.int64)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    return write_bundle(folder / "ones", write_ones(folder / "ones.onnx"), [size(3)], name="ones")


@pytest.fixture
def served(bundle: Path) -> Iterator[RunningServer]:
    with serving(bundle) as running:
        yield running


def ask(running: RunningServer, number: int) -> Answer:
    return running.ask("POST", INFER, infer_body(size(number)))


def limit_memory(pid: int, num_bytes: int) -> None:
    """Let a process have so much more address space than it has now."""
    resource.prlimit(pid, resource.RLIMIT_AS, (psutil.Process(pid).memory_info().vms + num_bytes, -1))


def test_an_allocation_that_fails_is_the_servers_trouble_and_the_worker_goes_on(
    served: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    pids = served.server.worker_pids
    assert ask(served, 7).status == 200
    limit_memory(pids[0], 64 * 2**20)
    refused = ask(served, HUGE)
    assert (refused.status, refused.json["slug"], refused.json["error"]) == (503, "out-of-memory", SENTENCE)
    assert int(refused.headers["retry-after"]) >= 1
    assert ask(served, HUGE).status == 503
    (told,) = (line for line in caplog.messages if "got no memory" in line)
    assert re.fullmatch(rf"the worker {pids[0]} of ones got no memory for a batch: .* up to \d+ MB\. Give the .*", told)
    assert output(ask(served, 5)).shape == (1, 5)
    assert served.server.worker_pids == pids
    assert served.ask("GET", "/v2/health/ready").status == 200
    metrics = served.ask("GET", "/metrics").body.decode()
    assert 'forwardpass_requests_total{model="ones",outcome="out-of-memory",version="1"} 2.0' in metrics


def test_who_shares_a_batch_with_what_does_not_fit_is_answered(served: RunningServer) -> None:
    limit_memory(served.server.worker_pids[0], 64 * 2**20)
    with served.frozen_worker():
        first = Background(partial(ask, served, 2))
        eventually(lambda: served.server.statistics().num_batches == 1)
        culprit = Background(partial(ask, served, HUGE))
        served.wait_until_waiting(1)
        mates = [Background(partial(ask, served, number)) for number in (5, 6)]
        served.wait_until_waiting(3)
    assert [output(answer.result()).shape for answer in (first, *mates)] == [(1, 2), (1, 5), (1, 6)]
    assert culprit.result().status == 503


@pytest.mark.parametrize("method", ["place", "follow"])
def test_shared_memory_that_cannot_grow_is_told_and_heals(
    served: RunningServer, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The front's own part of it: before a batch, and when it reads what the worker has put there."""
    lane = served.server.repository.models["ones"].default._dispatcher._lanes[0]

    def fail(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(type(lane.worker.arena), method, fail)
        refused = ask(served, 5)
        assert (refused.status, refused.json["error"]) == (503, SENTENCE)
    assert output(ask(served, 400_000)).shape == (1, 400_000)
    assert output(ask(served, 5)).shape == (1, 5)


@contextmanager
def memory_group(pid: int, num_bytes: int) -> Iterator[None]:
    """Put a process into a memory cgroup with a limit; skip where this machine has none that may be written."""
    parent = Path("/sys/fs/cgroup/memory")
    old = (Path("/proc/self/cgroup").read_text().partition(":memory:")[2].splitlines() or ["/"])[0]
    group = parent / f"forwardpass-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no memory cgroup may be made here")
    try:
        try:
            (group / "memory.limit_in_bytes").write_text(str(num_bytes))
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            pytest.skip("no memory cgroup with a limit may be made here")
        yield
    finally:
        for member in (group / "cgroup.procs").read_text().split():
            (parent / old.lstrip("/") / "cgroup.procs").write_text(member)
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_a_worker_that_the_kernel_kills_for_memory_is_replaced(served: RunningServer) -> None:
    pid = served.server.worker_pids[0]
    resident = psutil.Process(pid).memory_info().rss
    with memory_group(pid, resident + 64 * 2**20):
        body = infer_body(size(40_000_000), parameters={"binary_data_output": True})  # 160 MB
        answer = served.ask("POST", INFER, body)
        assert answer.status == 200, "its successor has room for it"
        eventually(lambda: ask(served, 5).status == 200)
        assert served.server.worker_pids[0] != pid


@pytest.mark.parametrize(("number", "is_of_memory"), [(signal.SIGKILL, True), (signal.SIGTRAP, False)])
def test_a_worker_that_was_probably_killed_for_memory_leaves_word_of_it(
    bundle: Path, caplog: pytest.LogCaptureFixture, number: signal.Signals, is_of_memory: bool
) -> None:
    with serving(bundle) as running:
        pid = running.server.worker_pids[0]
        assert output(ask(running, 20_000_000)).shape == (1, 20_000_000)
        peak_bytes = psutil.Process(pid).memory_info().rss
        os.kill(pid, number)
        eventually(lambda: any("starting another" in line for line in caplog.messages))
        assert output(ask(running, 5)).shape == (1, 5)
    told = "\n".join(caplog.messages)
    assert f"the worker {pid} of ones ended (signal {number.name}" in told
    held = re.search(r"probably for lack of memory: it held up to (\d+) MB", told)
    assert (held is not None) == is_of_memory
    assert ("Give the server more memory, or serve with fewer workers" in told) == is_of_memory
    if held is not None:
        assert int(held[1]) >= peak_bytes // 10**6


def test_a_worker_that_is_killed_while_it_loads_is_told_with_what_to_do(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = WorkerProcess._popen

    def start_and_kill(self: WorkerProcess, channel: int, arena: int) -> subprocess.Popen[bytes]:
        process = start(self, channel, arena)
        process.kill()
        return process

    monkeypatch.setattr(WorkerProcess, "_popen", start_and_kill)
    with pytest.raises(ModelNotServed) as caught, serving(bundle):
        pass
    assert "ended while loading (signal SIGKILL, probably for lack of memory: it held up to" in str(caught.value)
    assert "Give the server more memory" in str(caught.value)


def test_a_model_that_memory_does_not_suffice_for_is_told_as_such(
    bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is said of another worker either: the server does not start."""
    start = WorkerProcess._popen

    def start_poor(self: WorkerProcess, channel: int, arena: int) -> subprocess.Popen[bytes]:
        patched = "import onnxruntime as ort, runpy, sys\nsys.argv = sys.argv[2:]\n"
        patched += "def fail(*_, **__): raise RuntimeError('std::bad_alloc')\nort.InferenceSession = fail\n"
        patched += "runpy.run_module('forwardpass.serve.worker', run_name='__main__')"
        popen = subprocess.Popen

        def start_patched(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
            return popen([command[0], "-c", patched, *command[1:]], **options)

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", start_patched)
            return start(self, channel, arena)

    monkeypatch.setattr(WorkerProcess, "_popen", start_poor)
    with pytest.raises(ModelNotServed, match="there is not enough memory for it"), serving(bundle):
        pass
    assert "starting another" not in caplog.text


def test_an_answer_that_cannot_be_made_is_an_error_for_one_and_nobody_else(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(bundle, serve_settings(max_batch_rows=8)) as running:
        writer = running.server.repository.models["ones"].default.writer
        write = type(writer).write
        with pytest.MonkeyPatch.context() as patch:

            def fail_once(self: object, outputs: dict[str, Array], call: object) -> bytes:
                if outputs["ones"].shape[0] == 1 and getattr(call, "id", None) == "culprit":
                    raise ZeroDivisionError
                return write(self, outputs, call)  # type: ignore[arg-type]

            patch.setattr(type(writer), "write", fail_once)
            with running.frozen_worker():
                first = Background(partial(ask, running, 4))
                eventually(lambda: running.server.statistics().num_batches == 1)
                culprit = Background(partial(running.ask, "POST", INFER, infer_body(size(4), id="culprit")))
                running.wait_until_waiting(1)
                mates = [Background(partial(ask, running, 4)) for _ in range(3)]
                running.wait_until_waiting(4)
            assert [answer.result().status for answer in (first, *mates)] == [200] * 4
            assert culprit.result().status == 500
            assert "Traceback" not in culprit.result().json["error"]
        assert ask(running, 3).status == 200
    assert "an answer could not be given" in caplog.text


# --- what could be read from memory


@pytest.mark.skipif(sys.platform != "linux", reason="core dumps are forbidden with a call of Linux")
def test_neither_the_server_nor_its_worker_leaves_a_core_dump(bundle: Path, tmp_path: Path) -> None:
    """A process that may be dumped belongs to its user in /proc; one that may not belongs to root."""
    script = (
        "import ctypes, sys; from pathlib import Path; from forwardpass.serve import *\n"
        "model = ModelConfig(name='ones', path=Path(sys.argv[1]))\n"
        "config = ServeConfig(settings=ServeSettings(port=0), models=(model,))\n"
        "state = lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"
        "before = state()\n"
        "serve(config, on_ready=lambda server: print(before, state(), *server.worker_pids, flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(bundle)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        before, after, worker = map(int, process.stdout.readline().split())
        assert (before, after) == (1, 0)
        resource.prlimit(worker, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.kill(worker, signal.SIGSEGV)
        eventually(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)
        process.terminate()
        assert process.wait(60) == 0
    assert list(tmp_path.iterdir()) == []
