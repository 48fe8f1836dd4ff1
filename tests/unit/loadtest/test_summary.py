from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.slo import Slo
from forwardpass.core.tensors import Array
from forwardpass.loadtest.messages import Fate, Ran
from forwardpass.loadtest.summary import Failure, LoadSummary, Requests, recovery_s, summarise

SLO = Slo(percent=99, limit_s=0.1)


def ran(scheduled_s: Array, latency_s: Array, **changes: object) -> Ran:
    fates = np.full(len(scheduled_s), Fate.ANSWERED, np.uint8)
    fields: dict[str, object] = {
        "scheduled_s": scheduled_s.tobytes(),
        "released_s": scheduled_s.tobytes(),
        "sent_s": scheduled_s.tobytes(),
        "done_s": (scheduled_s + latency_s).tobytes(),
        "fates": fates.tobytes(),
        "statuses": np.full(len(scheduled_s), 200, np.uint16).tobytes(),
        "wall_s": 10.0,
        "cpu_s": 1.0,
        "num_connections": 3,
        "most_connections": 3,
    }
    return Ran(**fields | changes)  # type: ignore[arg-type]  # fields of Ran


def summarised(run: Ran, *, duration_s: float = 10.0, slo: Slo | None = SLO, max_connections: int = 100) -> LoadSummary:
    requests = Requests.from_run(run)
    return summarise(requests, begin_s=0.0, duration_s=duration_s, slo=slo, ran=run, max_connections=max_connections)


latencies = st.lists(st.floats(1e-5, 5.0), min_size=1, max_size=300)


@given(latencies)
def test_percentiles_agree_with_sorting(given_s: list[float]) -> None:
    latency_s = np.array(given_s)
    scheduled_s = np.linspace(0, 9.99, len(latency_s))
    summary = summarised(ran(scheduled_s, latency_s))
    seen = np.sort((scheduled_s + latency_s) - scheduled_s)
    for percent, measured in ((50, summary.p50_s), (99, summary.p99_s)):
        assert measured is not None
        assert measured.value == seen[int(np.ceil(percent / 100 * len(seen))) - 1]
        assert measured.value in measured.interval
    assert summary.max_s == seen[-1]


@given(latencies, st.data())
def test_every_request_is_counted_once_and_none_is_lost(given_s: list[float], data: st.DataObject) -> None:
    latency_s = np.array(given_s)
    fates = np.array(
        data.draw(st.lists(st.sampled_from(Fate), min_size=len(latency_s), max_size=len(latency_s))), np.uint8
    )
    statuses = np.where(fates == Fate.WRONG_STATUS, 429, 200).astype(np.uint16)
    scheduled_s = np.linspace(0, 9.99, len(latency_s))
    summary = summarised(ran(scheduled_s, latency_s, fates=fates.tobytes(), statuses=statuses.tobytes()))
    unsent = int((fates == Fate.UNSENT).sum())
    failed = sum(failure.num_requests for failure in summary.failures)
    assert summary.num_succeeded + failed + unsent == summary.num_offered == len(latency_s)
    assert sum(window.num_offered for window in summary.windows) == summary.num_offered
    assert sum(window.num_failed for window in summary.windows) == failed + unsent
    assert summary.share_in_time is not None
    assert summary.goodput_per_s is not None
    assert summary.goodput_per_s <= summary.throughput_per_s <= summary.offered_per_s
    assert summary.share_in_time * summary.num_offered == pytest.approx(summary.goodput_per_s * 10)


def test_failures_are_named_the_most_frequent_first() -> None:
    fates = np.array([Fate.WRONG_STATUS] * 3 + [Fate.TIMED_OUT] * 2 + [Fate.REFUSED, Fate.HUNG_UP], np.uint8)
    statuses = np.array([503, 429, 429, 0, 0, 0, 0], np.uint16)
    run = ran(np.arange(7.0), np.ones(7), fates=fates.tobytes(), statuses=statuses.tobytes())
    assert summarised(run).failures == (
        Failure(what="no answer in time", num_requests=2),
        Failure(what="status 429 (too many requests)", num_requests=2),
        Failure(what="connection refused", num_requests=1),
        Failure(what="connection closed before the answer", num_requests=1),
        Failure(what="status 503 (service unavailable)", num_requests=1),
    )


def test_refusals_count_against_the_target() -> None:
    fates = np.full(100, Fate.ANSWERED, np.uint8)
    fates[:2] = Fate.WRONG_STATUS
    summary = summarised(ran(np.arange(100) / 10, np.full(100, 0.01), fates=fates.tobytes()))
    assert summary.share_in_time == 0.98
    assert summary.p99_s is not None
    assert summary.p99_s.value == pytest.approx(0.01)


def test_a_quiet_generator_gives_no_warning() -> None:
    report = summarised(ran(np.arange(100) / 10, np.full(100, 0.01))).generator
    assert report.warnings == ()
    assert report.limit_per_s == pytest.approx(100)


def test_a_late_generator_says_so() -> None:
    scheduled_s = np.arange(100) / 10
    run = ran(scheduled_s, np.full(100, 0.01), released_s=(scheduled_s + 0.005).tobytes())
    (warning,) = summarised(run).generator.warnings
    assert warning == (
        "The generator was late: one request in a hundred was sent 5 ms or more after it was due, and the latency's "
        "p99 of 10 ms holds that, too. Give it a core of its own."
    )


def test_a_busy_generator_and_a_full_pool_say_so() -> None:
    scheduled_s = np.arange(100) / 10
    late = (scheduled_s + np.where(np.arange(100) < 20, 0.05, 0.0)).tobytes()
    run = ran(scheduled_s, np.full(100, 0.1), sent_s=late, cpu_s=9.5, most_connections=8)
    busy, full = summarised(run, max_connections=8).generator.warnings
    assert busy.startswith("The generator used 95% of a core: it was the limit.")
    assert full.startswith("All 8 connections were in use and 20% of the requests waited for one")


@given(st.floats(0.2, 3.0), st.integers(20, 200))
def test_recovery_is_when_the_backlog_is_worked_off(backlog_s: float, rate: int) -> None:
    """Latencies fall to normal in a straight line over `backlog_s`: the first normal request is the answer."""
    scheduled_s = np.arange(0, 10, 1 / rate)
    latency_s = np.maximum(0.01, 1.01 - scheduled_s / backlog_s)
    requests = Requests.from_run(ran(scheduled_s, latency_s))
    found = recovery_s(requests, overload_end_s=0.0, normal_s=0.02, run_length=10, required_share=0.95)
    assert found == pytest.approx(backlog_s * 0.99, abs=1.01 / rate)


def test_recovery_that_never_comes_is_none() -> None:
    requests = Requests.from_run(ran(np.arange(0, 10, 0.01), np.full(1000, 1.0)))
    assert recovery_s(requests, overload_end_s=2, normal_s=0.1, run_length=10, required_share=0.95) is None


def test_intervals_widen_where_whole_stretches_are_slow() -> None:
    """One slow third of the run: resampling whole stretches shows it, resampling single answers would not."""
    scheduled_s = np.arange(0, 10, 0.002)
    latency_s = np.where(scheduled_s < 10 / 3, 0.1, 0.01)
    p50 = summarised(ran(scheduled_s, latency_s)).p50_s
    assert p50 is not None
    assert p50.interval.high == pytest.approx(0.1)
