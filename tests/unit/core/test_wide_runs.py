"""When a request runs on all cores: for the lone, as long as that is sooner, and never at the cost of a crowd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from forwardpass.core.batching import Batch, BatchQueue
from forwardpass.core.latency import LatencyEstimate, LatencyPoint, LatencyTable
from forwardpass.core.simulation import AllCores, Arrival, Simulation, poisson_arrivals, simulate
from forwardpass.core.wide_runs import NUM_LEFT_OUT, WideRuns

WORKER = {1: 12.0, 2: 23.0, 4: 44.0, 8: 87.0}
ALL_CORES = {1: 7.3, 2: 14.0, 4: 27.0, 8: 50.0}
"""Milliseconds by rows, as of an encoder of six layers on two cores, with one thread and with two."""
ROW = Batch(num_rows=1)


def table(milliseconds: dict[int, float]) -> LatencyTable:
    points = (LatencyPoint(batch_size=n, p50_s=ms / 1e3, p95_s=1.06 * ms / 1e3) for n, ms in milliseconds.items())
    return LatencyTable(num_threads=1, points=tuple(points))


def new_runs() -> WideRuns:
    return WideRuns(narrow=table(WORKER), wide=table(ALL_CORES))


def run(arrivals: list[Arrival], *, has_wide: bool, slowdown: float = 1.0, num_workers: int = 2) -> Simulation:
    """Simulate two workers, and all cores beside them, `slowdown` times slower than their table says."""
    generator = np.random.default_rng(1)

    def service(milliseconds: dict[int, float], factor: float = 1.0) -> Callable[[int, int], float]:
        known = table(milliseconds)
        return lambda rows, size: factor * known.predict_median_s(rows) * float(generator.normal(1.0, 0.05))

    queue = BatchQueue(
        max_batch_rows=8, max_queue_rows=1024, latency=LatencyEstimate(table(WORKER)), num_workers=num_workers
    )
    wide = AllCores(runs=new_runs(), service=service(ALL_CORES, slowdown)) if has_wide else None
    return simulate(arrivals, queue, service=service(WORKER), num_workers=num_workers, all_cores=wide)


def poisson(rate: float, *, seconds: float = 20.0, timeout_s: float = 0.1) -> list[Arrival]:
    return poisson_arrivals(rate, duration_s=seconds, timeout_s=timeout_s, generator=np.random.default_rng(2))


def mean_ms(result: Simulation) -> float:
    return 1e3 * float(np.nanmean(result.latencies_s))


def num_wide(result: Simulation) -> int:
    return sum(batch.is_wide for batch in result.batches)


def test_a_lone_client_is_always_answered_by_all_cores() -> None:
    result = run([Arrival(at_s=0.02 * number, timeout_s=0.1) for number in range(100)], has_wide=True)
    assert num_wide(result) == 100
    assert mean_ms(result) == pytest.approx(7.3, rel=0.02)


@pytest.mark.parametrize("rate", [5, 20, 40, 60, 80, 100, 120])
def test_those_who_come_at_random_are_answered_sooner_on_average_or_as_soon(rate: float) -> None:
    arrivals = poisson(rate)
    assert mean_ms(run(arrivals, has_wide=True)) <= 1.02 * mean_ms(run(arrivals, has_wide=False))


def test_few_who_come_at_random_are_answered_much_sooner() -> None:
    arrivals = poisson(20)
    assert mean_ms(run(arrivals, has_wide=True)) < 0.7 * mean_ms(run(arrivals, has_wide=False))


@pytest.mark.parametrize("rate", [140, 160, 200, 400])
def test_the_capacity_within_a_target_is_what_it_was(rate: float) -> None:
    arrivals = poisson(rate)
    with_wide, without = run(arrivals, has_wide=True), run(arrivals, has_wide=False)
    assert with_wide.share_in_time == pytest.approx(without.share_in_time, abs=0.01)


def test_where_all_cores_are_no_faster_after_all_workers_answer() -> None:
    """As where another program has one of the cores: then threads wait for each other."""
    arrivals = [Arrival(at_s=0.05 * number, timeout_s=1.0) for number in range(1000)]
    result = run(arrivals, has_wide=True, slowdown=2.5)
    assert 0 < num_wide(result) < 0.15 * len(arrivals)


def test_what_runs_on_all_cores_does_not_change_what_is_known_of_the_workers() -> None:
    queue = BatchQueue(max_batch_rows=8, max_queue_rows=9, latency=LatencyEstimate(table(WORKER)), num_workers=2)
    before_s = queue.predict_s(ROW)
    arrivals = [Arrival(at_s=0.05 * number, timeout_s=1.0) for number in range(50)]
    wide = AllCores(runs=new_runs(), service=lambda rows, size: 3e-3)
    simulate(arrivals, queue, service=lambda rows, size: 1.0, num_workers=2, all_cores=wide)
    assert queue.predict_s(ROW) == before_s
    assert wide.runs.predict_s(ROW) == pytest.approx(3e-3, rel=0.2)


def lone_runs(runs: WideRuns, num: int, *, joined_after_s: float | None = None, seconds: float = 7e-3) -> list[bool]:
    """Let lone requests come one after the other, each with another behind it or not; return which run wide."""
    went = []
    for number in range(num):
        batch = Batch(num_rows=1)
        went.append(runs.start(batch, now_s=float(number)))
        if joined_after_s is not None:
            runs.joined(now_s=number + joined_after_s)
        runs.ended(batch, seconds if went[-1] else 12e-3, was_wide=went[-1])
    return went


def test_two_clients_who_take_turns_are_soon_served_by_two_workers_and_the_one_who_stays_by_all_cores() -> None:
    runs = new_runs()
    went = lone_runs(runs, 60, joined_after_s=0.2e-3)
    assert went[0]
    assert not any(went[15:])
    assert lone_runs(runs, 10)[4:] == [True] * 6


def test_who_comes_after_a_run_on_all_cores_would_have_ended_is_no_reason_against_it() -> None:
    runs = new_runs()
    lone_runs(runs, 60, joined_after_s=0.2e-3)
    assert lone_runs(runs, 60, joined_after_s=11e-3)[20:] == [True] * 40


def test_a_slow_run_on_all_cores_now_and_then_changes_nothing_and_slow_ones_are_tried_again() -> None:
    runs = new_runs()
    for _ in range(50):
        assert lone_runs(runs, 3) == [True] * 3
        lone_runs(runs, 1, seconds=0.1)
    lone_runs(runs, 60, seconds=0.1)
    tried = lone_runs(runs, 10 * (NUM_LEFT_OUT + 1), seconds=0.1)
    assert sum(tried) == 10
    assert any(lone_runs(runs, 20 * (NUM_LEFT_OUT + 1))[-20:])


def test_a_worker_is_tried_where_all_cores_are_slow_and_what_is_known_of_it_is_old() -> None:
    """Both were slow, as beside other programs, and then the workers alone are as fast as ever."""
    runs = new_runs()
    for number in range(400):
        batch = Batch(num_rows=1)
        is_wide = runs.start(batch, now_s=float(number))
        slow_worker_s = 40e-3 if number < 200 else 12e-3
        runs.ended(batch, 20e-3 if is_wide else slow_worker_s, was_wide=is_wide)
    went = lone_runs(runs, 100, seconds=20e-3)
    assert sum(went) < 15
    assert all(lone_runs(runs, 100)[40:])
