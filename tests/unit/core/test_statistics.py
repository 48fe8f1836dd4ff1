"""Percentiles and intervals."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.statistics import measure_median, measure_ratio, percentile

FINITE = st.floats(0.001, 1000)


@given(st.lists(FINITE, min_size=1), st.floats(0, 100))
def test_a_percentile_is_an_observed_value_that_splits_the_observations(values: list[float], percent: float) -> None:
    result = percentile(np.array(values), percent)
    assert result in values
    assert sum(value <= result for value in values) >= percent / 100 * len(values)
    assert sum(value < result for value in values) <= percent / 100 * len(values)


@given(st.lists(FINITE, min_size=1, max_size=50))
def test_the_interval_holds_the_median_and_stays_within_the_observations(values: list[float]) -> None:
    measured = measure_median(np.array(values), unit="s")
    assert min(values) <= measured.interval.low <= measured.value <= measured.interval.high <= max(values)


def test_pairing_cancels_what_both_rounds_suffered() -> None:
    noise = np.random.default_rng(3).lognormal(0, 0.5, 40)
    ratio = measure_ratio(3.0 * noise, 1.5 * noise)
    assert ratio.value == 2.0
    assert ratio.interval.high - ratio.interval.low < 1e-9
