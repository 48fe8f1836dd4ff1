"""Workers of one version hold its weights once, answer the same to the last bit, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
import pytest

import forwardpass
from forwardpass.bundle import open_bundle
from forwardpass.runtimes import RuntimeOptions
from forwardpass.runtimes.onnx import OnnxRuntime
from forwardpass.serve.channel import WorkerConfig
from forwardpass.serve.weights import LEAST_BYTES, PREFIX, YOUNG_S, WeightFolder, shared_copy
from forwardpass.serve.worker import load
from tests.e2e.processes import ServerProcess, server_process
from tests.e2e.serving import eventually
from tests.models import write_bundle, write_cnn, write_mlp

NUM_INPUTS = LEAST_BYTES // 4 // 32
"""A hidden layer of 32 makes this a model that is just large enough."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    model = write_mlp(folder / "mlp.onnx", num_inputs=NUM_INPUTS)
    return write_bundle(folder / "large", model, [{"pixels": rows(2)}], name="large")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of everything that is started."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def rows(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((number, NUM_INPUTS)).astype(np.float32)


def answers(running: ServerProcess, pixels: np.ndarray) -> list[float]:
    tensor = {"name": "pixels", "shape": pixels.shape, "datatype": "FP32", "data": pixels.ravel().tolist()}
    answer = running.ask("POST", "/v2/models/large/infer", msgspec.json.encode({"inputs": [tensor]}))
    assert answer.status == 200, answer.body
    return msgspec.json.decode(answer.body)["outputs"][0]["data"]


def maps_shared(pid: int) -> bool:
    return f"/{PREFIX}" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a worker")
def test_workers_map_one_file_answer_the_same_and_leave_nothing(large: Path, temporary: Path, tmp_path: Path) -> None:
    expected = forwardpass.load(large).predict({"pixels": rows(3)})["scores"].ravel().tolist()
    with server_process(str(large), "--workers", "2", folder=tmp_path) as running:
        pids = running.worker_pids()
        assert len(pids) == 2
        assert all(map(maps_shared, pids))
        assert answers(running, rows(3)) == pytest.approx(expected, rel=0, abs=0)
        os.kill(pids[0], signal.SIGKILL)
        eventually(lambda: len(running.worker_pids()) == 2 and pids[0] not in running.worker_pids())
        eventually(lambda: all(map(maps_shared, running.worker_pids())))
        assert answers(running, rows(3)) == pytest.approx(expected, rel=0, abs=0)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
    assert list(temporary.iterdir()) == []


def test_a_worker_that_does_not_find_the_file_any_more_loads_the_bundle(
    large: Path, temporary: Path, tmp_path: Path
) -> None:
    """Somebody clears the folders for temporary files, wholly or in part."""
    assert shared_copy(next(large.rglob("*.onnx")), tmp_path / "gone") is None
    with server_process(str(large), "--workers", "2", folder=tmp_path) as running:
        (file,) = temporary.glob("*/whole/model.onnx")
        file.unlink()
        (first, _) = running.worker_pids()
        os.kill(first, signal.SIGKILL)
        eventually(lambda: first not in running.worker_pids() and len(running.worker_pids()) == 2)
        assert len(answers(running, rows(1))) == 10
        assert "could not load" not in running.log.read_text()


def test_without_room_for_the_file_lone_requests_get_no_copy_of_their_own(large: Path, tmp_path: Path) -> None:
    config = WorkerConfig(
        bundle=str(large),
        digest=open_bundle(large).digest,
        variant="onnx-fp32",
        num_threads=1,
        channel=-1,
        arena=-1,
        weights=str(tmp_path / "gone"),
        wide_threads=2,
        is_wide_exact=False,
    )
    loaded = load(config)
    assert loaded.wide is None
    assert loaded.why_not_wide == "there is no room for a file of weights that all sessions share"
    (tmp_path / "there").mkdir()
    assert load(msgspec.structs.replace(config, weights=str(tmp_path / "there"))).wide is not None


def test_of_many_that_come_at_once_one_writes(tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "mlp.onnx", num_inputs=NUM_INPUTS)
    folder = tmp_path / "shared"
    folder.mkdir()
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        files = set(pool.map(shared_copy, [model] * 6, [folder] * 6))
    assert files == {folder / "whole" / "model.onnx"}
    assert sorted(path.name for path in folder.iterdir()) == ["whole", "writing"]


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8, 33])
def test_the_shared_file_answers_to_the_last_bit_like_the_model(tmp_path: Path, num_rows: int) -> None:
    """Convolutions are laid out for this processor, too; what is laid out once more must not change."""
    model = write_cnn(tmp_path / "cnn.onnx")
    file = shared_copy(model, tmp_path)
    assert file is not None
    plain, shared = (OnnxRuntime(str(path), options=RuntimeOptions()) for path in (model, file))
    generator = np.random.default_rng(num_rows)
    call = {
        spec.name: generator.standard_normal((num_rows, *spec.shape[1:])).astype(np.float32)  # type: ignore[arg-type]
        for spec in plain.signature.inputs
    }
    expected, found = plain.run(call), shared.run(call)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_the_folder_of_a_server_that_was_killed_goes_and_that_of_one_that_lives_stays(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from forwardpass.serve.weights import WeightFolder; "
        "folder = WeightFolder(Path(sys.argv[1])); print(folder.path, flush=True); time.sleep(100)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    owners = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        folders = [Path(owner.stdout.readline().strip()) for owner in owners if owner.stdout is not None]
        owners[0].kill()
        owners[0].wait()
        for folder in folders:
            os.utime(folder, (0, folder.stat().st_mtime - 2 * YOUNG_S))
        own = WeightFolder(tmp_path)
        assert set(tmp_path.iterdir()) == {folders[1], own.path}
        own.remove()
        assert set(tmp_path.iterdir()) == {folders[1]}
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()
