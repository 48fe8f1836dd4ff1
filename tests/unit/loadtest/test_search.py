from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.loadtest.schedules import Phase, arrival_times
from forwardpass.loadtest.search import (
    MAX_TRIALS,
    RESOLUTION,
    Capacity,
    CapacitySearch,
    Trial,
    format_interval,
    trial_duration_s,
)
from tests.unit.loadtest.queueing import capacity, share_within, sojourn_s

REQUIRED = 0.99


def searched(share_at: Callable[[float], float], *, start_per_s: float, max_per_s: float = 1e5) -> Capacity:
    search = CapacitySearch(start_per_s=start_per_s, max_per_s=max_per_s, required_share=REQUIRED)
    while (rate_per_s := search.next_rate()) is not None:
        search.record(Trial(rate_per_s=rate_per_s, share_in_time=share_at(rate_per_s)))
    return search.capacity()


@given(st.floats(0.2, 50_000), st.floats(0.1, 50_000))
def test_the_edge_of_a_server_without_luck_is_found_wherever_the_search_starts(edge: float, start: float) -> None:
    found = searched(lambda rate: 1.0 if rate <= edge else 0.0, start_per_s=start)
    assert found.missed_per_s is not None
    assert found.rate_per_s == found.kept_per_s <= edge < found.missed_per_s
    assert found.missed_per_s <= found.rate_per_s * (1 + RESOLUTION + 1e-9)
    assert not found.is_lower_bound


@given(st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_the_search_ends_whatever_the_server_does(seed: int, luck: float) -> None:
    generator = np.random.default_rng(seed)
    found = searched(lambda _: 1.0 if generator.random() < luck else generator.random() * 0.99, start_per_s=10)
    assert len(found.trials) <= MAX_TRIALS
    assert found.kept_per_s <= found.rate_per_s
    assert found.missed_per_s is None or found.missed_per_s > found.rate_per_s


@given(st.sets(st.integers(0, 30), max_size=6), st.floats(20, 2000))
def test_single_strokes_of_bad_luck_do_not_spoil_the_search(unlucky: set[int], edge: float) -> None:
    """Up to six trials of the search, no two of one rate, fail without reason: a majority of three puts it right."""
    was_unlucky: set[float] = set()
    num_trials = 0

    def share_at(rate: float) -> float:
        nonlocal num_trials
        num_trials += 1
        if rate > edge:
            return 0.2
        if num_trials in unlucky and rate not in was_unlucky:
            was_unlucky.add(rate)
            return 0.9
        return 1.0

    found = searched(share_at, start_per_s=10)
    assert found.rate_per_s <= edge <= found.rate_per_s * (1 + RESOLUTION + 1e-9)
    assert found.high_per_s is not None
    assert found.low_per_s <= edge <= found.high_per_s


def searched_queue(service_s: float, limit_s: float, *, first_seed: int) -> Capacity:
    """Search the capacity of a simulated queue with trials as long as the real ones."""
    search = CapacitySearch(start_per_s=0.5 / service_s, max_per_s=1e5, required_share=REQUIRED)
    seed = first_seed
    while (rate := search.next_rate()) is not None:
        duration_s = trial_duration_s(rate, limit_s, is_repetition=search.was_tried(rate))
        times = arrival_times(Phase(rate_per_s=rate, duration_s=duration_s + 0.5), seed=seed)
        measured = sojourn_s(times, service_s)[times > 0.5]
        search.record(Trial(rate_per_s=rate, share_in_time=float((measured <= limit_s).mean())))
        seed += 1
    return search.capacity()


@pytest.mark.parametrize(("service_s", "limit_s"), [(0.005, 0.05), (0.02, 0.1), (0.002, 0.008)])
def test_the_capacity_of_a_queue_is_what_the_formula_says(service_s: float, limit_s: float) -> None:
    """Seeded. A search has the luck of some thousand requests; the median of nine is within the resolution of 5 %."""
    true = capacity(service_s, limit_s, REQUIRED)
    found = [searched_queue(service_s, limit_s, first_seed=1000 * number) for number in range(9)]
    assert float(np.median([it.rate_per_s for it in found])) == pytest.approx(true, rel=0.05)
    assert all(it.rate_per_s == pytest.approx(true, rel=0.2) for it in found)
    holding = [it for it in found if it.high_per_s is not None and it.low_per_s <= true <= it.high_per_s]
    assert len(holding) >= 7


def test_the_formula_of_the_oracle_agrees_with_its_simulation() -> None:
    times = arrival_times(Phase(rate_per_s=140, duration_s=1000), seed=6)
    seen = float((sojourn_s(times, 0.005) <= 0.03).mean())
    assert seen == pytest.approx(share_within(140, 0.005, 0.03), abs=0.01)


def test_no_rate_is_found_for_a_server_that_keeps_none() -> None:
    found = searched(lambda _: 0.0, start_per_s=100)
    assert (found.rate_per_s, found.kept_per_s, found.is_lower_bound) == (0.0, 0.0, False)


def test_the_largest_rate_is_a_lower_bound() -> None:
    found = searched(lambda _: 1.0, start_per_s=100, max_per_s=1000)
    assert (found.rate_per_s, found.missed_per_s, found.is_lower_bound) == (1000, None, True)


def test_an_end_of_the_interval_that_nothing_bounds_is_no_number() -> None:
    search = CapacitySearch(start_per_s=100, max_per_s=1e5, required_share=REQUIRED)
    search.record(Trial(rate_per_s=100, share_in_time=1.0))
    assert format_interval(search.capacity()) == "unknown", "one trial may have been luck"
    search.record(Trial(rate_per_s=100, share_in_time=1.0))
    assert format_interval(search.capacity()) == "90.9/s to unknown"
    search.record(Trial(rate_per_s=200, share_in_time=0.1))
    assert format_interval(search.capacity()) == "90.9/s to 220/s"


def test_a_failure_of_the_generator_makes_a_lower_bound() -> None:
    search = CapacitySearch(start_per_s=10, max_per_s=1e5, required_share=REQUIRED)
    while (rate := search.next_rate()) is not None:
        share = 1.0 if rate <= 500 else 0.3
        search.record(Trial(rate_per_s=rate, share_in_time=share, is_generator_limited=rate > 500))
    assert search.capacity().is_lower_bound
