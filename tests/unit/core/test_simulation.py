"""The simulated batcher: what queueing theory says of it, and what it keeps under overload."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwardpass.core.batching import BatchQueue
from forwardpass.core.latency import LatencyEstimate, LatencyPoint, LatencyTable
from forwardpass.core.simulation import Arrival, Fate, Simulation, poisson_arrivals, simulate


def table(service: Callable[[int], float], sizes: tuple[int, ...]) -> LatencyTable:
    points = (LatencyPoint(batch_size=n, p50_s=service(n), p95_s=1.08 * service(n)) for n in sizes)
    return LatencyTable(num_threads=1, points=tuple(points))


def straight(fixed_s: float, row_s: float) -> Callable[[int], float]:
    return lambda num_rows: fixed_s + row_s * num_rows


def run(
    service: Callable[[int], float],
    *,
    max_batch: int,
    slo_s: float,
    load: float,
    duration_s: float = 10.0,
    seed: int = 1,
) -> tuple[Simulation, float]:
    """Simulate Poisson traffic at a multiple of what the worker can do with its best batch; return that rate, too."""
    generator = np.random.default_rng(seed)
    capacity = max(n / service(n) for n in range(1, max_batch + 1))
    sizes = tuple(n for n in (1, 2, 4, 8, 16, 32, 64) if n <= max_batch)
    queue = BatchQueue(
        max_batch_rows=max_batch, max_queue_rows=1024, latency=LatencyEstimate(table(service, sizes)), num_workers=1
    )
    arrivals = poisson_arrivals(load * capacity, duration_s=duration_s, timeout_s=slo_s, generator=generator)
    noisy = lambda rows, size: service(rows) * float(generator.normal(1.0, 0.05))  # noqa: E731
    return simulate(arrivals, queue, service=noisy), capacity


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_waits_one_by_one_are_those_of_the_queue_m_d_1(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait for a constant service time s is s · load / (2 · (1 - load))."""
    generator = np.random.default_rng(7)
    arrivals = poisson_arrivals(load * 100, duration_s=1000.0, timeout_s=1e6, generator=generator)
    queue = BatchQueue(max_batch_rows=1, max_queue_rows=10**6, latency=LatencyEstimate(None))
    result = simulate(arrivals, queue, service=lambda rows, size: 0.01)
    assert result.share_in_time == 1.0
    wait_s = float(np.mean(result.latencies_s)) - 0.01
    assert wait_s == pytest.approx(0.01 * load / (2 * (1 - load)), rel=0.12)  # a few standard errors at load 0.9


@pytest.mark.parametrize("load", [1.2, 2.0, 4.0])
@pytest.mark.parametrize(
    ("fixed_s", "row_s", "max_batch", "slo_s"),
    [(5e-3, 0.5e-3, 32, 0.05), (0.5e-3, 10e-3, 1, 0.1), (0.5e-3, 10e-3, 8, 0.1), (0.4e-3, 25e-6, 64, 0.01)],
)
def test_overload_does_not_lower_what_is_answered_in_time(
    fixed_s: float, row_s: float, max_batch: int, slo_s: float, load: float
) -> None:
    """And few wait for a refusal: most get it on arrival."""
    result, capacity = run(
        straight(fixed_s, row_s), max_batch=max_batch, slo_s=slo_s, load=load, duration_s=100 * slo_s
    )
    assert result.goodput >= 0.95 * capacity
    assert result.fates.count(Fate.EXPIRED) <= 0.15 * len(result.fates)


@pytest.mark.parametrize(("fixed_s", "row_s", "max_batch"), [(5e-3, 0.5e-3, 32), (20e-3, 2e-3, 32), (10e-3, 10e-3, 8)])
def test_a_tight_target_keeps_most_of_the_throughput(fixed_s: float, row_s: float, max_batch: int) -> None:
    """Within little more than one full batch, the oldest are given up for the others; shrinking batches to save them
    would answer half as many."""
    service = straight(fixed_s, row_s)
    slo_s = 1.18 * service(max_batch)
    result, capacity = run(service, max_batch=max_batch, slo_s=slo_s, load=1.5)
    assert result.goodput >= 0.7 * capacity


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_refusing_on_arrival_refuses_hardly_anybody_who_would_have_been_in_time(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few in a hundred cannot be helped near the capacity; who is refused is to be of these."""

    def play() -> Simulation:
        generator = np.random.default_rng(seed)
        service = straight(0.0018, 0.0115)  # a six-layer encoder, by two workers
        queue = BatchQueue(
            max_batch_rows=4, max_queue_rows=1024, latency=LatencyEstimate(table(service, (1, 2, 4))), num_workers=2
        )
        arrivals = poisson_arrivals(150, duration_s=120.0, timeout_s=0.1, generator=generator)
        noisy = lambda rows, size: service(rows) * float(generator.normal(1.0, 0.03))  # noqa: E731
        return simulate(arrivals, queue, service=noisy, num_workers=2)

    asked = play()
    monkeypatch.setattr(BatchQueue, "admit", lambda *_, **__: None)
    late = play().fates.count(Fate.EXPIRED)
    assert asked.fates.count(Fate.REFUSED) + asked.fates.count(Fate.EXPIRED) < 1.5 * late
    assert asked.fates.count(Fate.EXPIRED) < 0.1 * late, "it is told at once"


def test_after_a_burst_everything_is_as_before() -> None:
    generator = np.random.default_rng(3)
    service = straight(5e-3, 0.5e-3)
    calm = poisson_arrivals(700, duration_s=6.0, timeout_s=0.05, generator=generator)
    burst = [
        Arrival(at_s=2 + arrival.at_s, timeout_s=0.05)
        for arrival in poisson_arrivals(4000, duration_s=1.0, timeout_s=0.05, generator=generator)
    ]
    arrivals = sorted([*calm, *burst], key=lambda arrival: arrival.at_s)
    queue = BatchQueue(
        max_batch_rows=32, max_queue_rows=1024, latency=LatencyEstimate(table(service, (1, 2, 4, 8, 16, 32)))
    )
    result = simulate(arrivals, queue, service=lambda rows, size: service(rows))
    later = [fate for fate, arrival in zip(result.fates, arrivals, strict=True) if arrival.at_s > 3.1]
    assert later.count(Fate.ANSWERED) == len(later)


@settings(max_examples=100, deadline=None)
@given(
    gaps=st.lists(st.floats(0.0, 0.05), min_size=1, max_size=60),
    rows=st.lists(st.integers(1, 6), min_size=60, max_size=60),
    patience_s=st.lists(st.floats(0.001, 0.3), min_size=60, max_size=60),
    shapes=st.text("ab", min_size=60, max_size=60),
    num_workers=st.integers(1, 3),
)
def test_every_arrival_has_one_fate_and_runs_at_most_once(
    gaps: list[float], rows: list[int], patience_s: list[float], shapes: str, num_workers: int
) -> None:
    times = np.cumsum(gaps)
    arrivals = [
        Arrival(at_s=float(at), timeout_s=patience, num_rows=num, shape_key=shape)
        for at, patience, num, shape in zip(times, patience_s, rows, shapes, strict=False)
    ]
    queue = BatchQueue(max_batch_rows=4, max_queue_rows=20, latency=LatencyEstimate(None), num_workers=num_workers)
    result = simulate(arrivals, queue, service=lambda n, size: 0.01 + 0.005 * n, num_workers=num_workers)
    ran = [number for batch in result.batches for number in batch.arrivals]
    assert len(ran) == len(set(ran))
    assert {number for number, fate in enumerate(result.fates) if fate is Fate.ANSWERED} <= set(ran)
    assert not {number for number, fate in enumerate(result.fates) if fate is Fate.REFUSED} & set(ran)
    busy = sorted((batch.started_s, batch.ended_s) for batch in result.batches)
    assert all(sum(start <= at < end for start, end in busy) <= num_workers for at, _ in busy)
    assert len(queue) == 0
