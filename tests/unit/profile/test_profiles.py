"""Percentiles over rounds, and the ratio of two variants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.statistics import percentile
from forwardpass.errors import InvalidOption
from forwardpass.profile import speedup
from forwardpass.profile.profiles import RoundTimes, measure_percentile, summarise_cell
from tests.unit.profile.examples import example_profile

ROUNDS = st.lists(st.lists(st.floats(1e-6, 10), min_size=1, max_size=30), min_size=1, max_size=9)


@given(rounds=ROUNDS, percent=st.sampled_from([50.0, 95.0, 99.0]))
def test_a_percentile_is_a_time_that_occurred_or_between_two_and_inside_its_interval(
    rounds: list[list[float]], percent: float
) -> None:
    arrays = [np.array(times) for times in rounds]
    calls = np.concatenate(arrays)
    measured = measure_percentile(arrays, percent)
    assert calls.min() <= measured.value <= calls.max()
    assert measured.interval.low <= measured.interval.high


@given(rounds=ROUNDS)
def test_a_tail_of_few_calls_is_that_of_all_calls_together(rounds: list[list[float]]) -> None:
    arrays = [np.array(times) for times in rounds]
    if sum(map(len, arrays)) < 200:
        assert measure_percentile(arrays, 99).value == percentile(np.concatenate(arrays), 99)


def test_one_disturbed_round_does_not_move_the_result() -> None:
    calm, disturbed = np.full(100, 1e-3), np.full(100, 1.0)
    for percent in (50, 95, 99):
        assert measure_percentile([calm, calm, disturbed, calm, calm], percent).value == 1e-3


def test_throughput_counts_rows_over_the_whole_round() -> None:
    cell = summarise_cell(
        num_threads=1, batch_size=8, rounds=[RoundTimes(wall_s=[0.1, 0.3], cpu_s=[0.1, 0.1]) for _ in range(3)]
    )
    assert cell.rows_per_s.value == pytest.approx(8 * 2 / 0.4)
    assert cell.num_calls == 6


def test_pairs_of_rounds_cancel_what_both_suffered() -> None:
    load = np.array([1.0, 5.0, 1.0, 2.0, 9.0])
    slow = example_profile(round_p50_s=tuple(2e-3 * load))
    fast = example_profile(round_p50_s=tuple(1e-3 * load))
    ratio = speedup(fast, slow)
    assert ratio.value == pytest.approx(2.0)
    assert ratio.interval.high - ratio.interval.low == pytest.approx(0.0)


def test_a_cell_that_was_not_measured_names_those_that_were() -> None:
    with pytest.raises(InvalidOption, match=r"Invalid value '4x1' for threads x batch size: expected one .*: 1x1"):
        example_profile().at(4, 1)


@given(
    settled=st.integers(10**7, 10**9),
    leak=st.integers(0, 10**4),
    num_calls=st.integers(1, 50),
    noise=st.lists(st.integers(-4096, 4096), min_size=9, max_size=9),
)
def test_memory_that_grows_with_every_call_is_told_from_memory_that_settles(
    settled: int, leak: int, num_calls: int, noise: list[int]
) -> None:
    """However large the buffers become in the first rounds."""
    early = (settled // 2, settled * 3 // 4, settled, settled)
    rss = [early[at] if at < 4 else settled + at * num_calls * leak + noise[at] for at in range(9)]
    rounds = [RoundTimes(wall_s=[1e-3] * num_calls, cpu_s=[1e-3] * num_calls, rss_bytes=size) for size in rss]
    cell = summarise_cell(num_threads=1, batch_size=1, rounds=rounds)
    growth = replace(example_profile(), cells=(cell,)).growth_bytes_per_call
    assert abs(growth - leak) <= 0.25 * leak + 2 * 4096 / (4 * num_calls)
