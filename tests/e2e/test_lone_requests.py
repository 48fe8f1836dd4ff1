"""A request that is alone runs on all cores, where several workers share a crowd: real workers, real sockets."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forwardpass.bundle import open_bundle
from forwardpass.core.latency import LatencyPoint, LatencyTable
from forwardpass.core.slo import Slo
from forwardpass.core.tensors import Array, Tensors
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.errors import GoldenMismatch
from forwardpass.predict import PackingList, VariantToPack, open_variant, pack_bundle
from forwardpass.runtimes import RuntimeOptions, open_runtime
from forwardpass.serve import Front, LowLoadThreads, worker
from forwardpass.serve.channel import WorkerConfig
from tests.e2e.serving import (
    FRONTS,
    Answer,
    Background,
    RunningServer,
    eventually,
    infer_body,
    output,
    serve_settings,
    serving,
)
from tests.models import MACHINE, mlp_calls, write_mlp

INFER = "/v2/models/mlp/infer"
NUM_REQUESTS = 20

needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is all cores")


def table(num_threads: int, row_s: float) -> LatencyTable:
    """Return latencies that are made up, so that one-threaded workers are chosen for a crowd."""
    points = (LatencyPoint(batch_size=n, p50_s=n * row_s, p95_s=n * row_s) for n in (1, 2))
    return LatencyTable(num_threads=num_threads, points=tuple(points))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lone")
    location = str(write_mlp(folder / "mlp.onnx"))
    packed = VariantToPack(
        variant=Variant(name="onnx-fp32", format=Format.ONNX, precision=Precision.FP32, location=location),
        invariance=BatchInvariance.BITWISE,
        exact_thread_counts=(1, 2),
        latency=(table(1, 5e-3), table(2, 3e-3)),
    )
    pack_bundle(
        folder / "mlp",
        PackingList(name="mlp", variants=[packed], golden_inputs=mlp_calls(), machine=MACHINE),
    )
    return folder / "mlp"


@contextmanager
def served(bundle: Path, **changes: Any) -> Iterator[RunningServer]:
    chosen = {"num_threads": None, "num_workers": None, "slo": Slo(percent=99, limit_s=0.1), "timeout_s": 60.0}
    with serving(bundle, serve_settings(**(chosen | changes))) as running:
        yield running


def pixels(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((1, 64)).astype(np.float32)


def ask_for(running: RunningServer, seed: int) -> Answer:
    return running.ask("POST", INFER, infer_body({"pixels": pixels(seed)}))


def num_wide(running: RunningServer) -> float | None:
    metrics = running.ask("GET", "/metrics").body.decode().splitlines()
    found = [line for line in metrics if line.startswith("forwardpass_wide_batches_total")]
    return float(found[0].split()[-1]) if found else None


@needs_two_cores
@pytest.mark.parametrize("front", FRONTS)
def test_lone_requests_run_on_all_cores_with_the_answers_of_a_worker(bundle: Path, front: Front) -> None:
    variant = open_bundle(bundle).variant()
    runtime = open_runtime(variant.format, str(bundle / variant.path), options=RuntimeOptions(num_threads=1))
    with served(bundle, front=front) as running:
        for seed in range(NUM_REQUESTS):
            assert np.array_equal(output(ask_for(running, seed)), runtime.run({"pixels": pixels(seed)})["scores"])
        assert (num_wide(running) or 0) > NUM_REQUESTS / 2
        config = running.ask("GET", "/v2/models/mlp/config").json["parameters"]
        assert (config["threads"], config["low_load_threads"]) == ({"string_value": "1"}, {"string_value": "2"})


@needs_two_cores
def test_nobody_runs_on_all_cores_where_that_is_switched_off(bundle: Path) -> None:
    with served(bundle, low_load_threads=LowLoadThreads.OFF) as running:
        assert ask_for(running, 1).status == 200
        assert num_wide(running) is None


@needs_two_cores
@pytest.mark.parametrize("front", FRONTS)
def test_a_worker_that_is_lost_over_a_lone_request_loses_nothing_and_comes_back_with_all_cores(
    bundle: Path, front: Front
) -> None:
    with served(bundle, front=front) as running:
        before = num_wide(running) or 0
        with running.frozen_worker():
            held = Background(lambda: ask_for(running, 1))
            eventually(lambda: running.server.statistics().num_batches == 1)
            behind = Background(lambda: ask_for(running, 2))
            running.wait_until_accepted(2)
            pids = running.server.worker_pids
            os.kill(pids[0], signal.SIGKILL)
            assert (held.result().status, behind.result().status) == (200, 200)
        assert num_wide(running) == before

        def runs_wide_again() -> bool:
            assert ask_for(running, 3).status == 200
            return (num_wide(running) or 0) > before

        eventually(runs_wide_again)
        assert running.server.worker_pids[1:] == pids[1:]


class OffByABit:
    """A runtime whose answers differ in their last bits, or by much."""

    def __init__(self, runtime: Any, factor: float) -> None:
        self._runtime = runtime
        self._factor = np.float32(factor)
        self.name, self.version, self.signature = runtime.name, runtime.version, runtime.signature

    def run(self, tensors: Tensors) -> dict[str, Array]:
        return {name: array * self._factor for name, array in self._runtime.run(tensors).items()}


@pytest.mark.parametrize(
    ("is_exact", "has_wide", "why_not"),
    [(False, True, ""), (True, False, "its answers there differ in their last bits")],
)
def test_answers_on_all_cores_are_compared_with_those_of_the_worker_on_this_processor(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, is_exact: bool, has_wide: bool, why_not: str
) -> None:
    def opening(*given: Any, options: RuntimeOptions) -> Any:
        runtime = open_variant(*given, options=options)
        return OffByABit(runtime, 1 + 1e-6) if options.num_threads == 2 else runtime

    monkeypatch.setattr(worker, "open_variant", opening)
    loaded = worker.load(config(bundle, is_exact=is_exact))
    assert (loaded.wide is not None, loaded.why_not_wide) == (has_wide, why_not)


def test_a_worker_does_without_a_second_copy_that_cannot_be_opened(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opening(*given: Any, options: RuntimeOptions) -> Any:
        if options.num_threads == 2:
            raise GoldenMismatch(variant="v", output="scores", difference=1.0, tolerance=0.1, machine="this")
        return open_variant(*given, options=options)

    monkeypatch.setattr(worker, "open_variant", opening)
    loaded = worker.load(config(bundle, is_exact=True))
    assert loaded.wide is None
    assert loaded.why_not_wide.startswith("The variant 'v' answers differently on this machine")


def config(bundle: Path, *, is_exact: bool) -> WorkerConfig:
    return WorkerConfig(
        bundle=str(bundle),
        digest=open_bundle(bundle).digest,
        variant="onnx-fp32",
        num_threads=1,
        channel=-1,
        arena=-1,
        wide_threads=2,
        is_wide_exact=is_exact,
    )
