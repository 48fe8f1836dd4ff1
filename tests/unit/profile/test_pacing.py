"""The pacing keeps every cell within its budget, and gives all variants the same calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.profile.pacing import (
    MIN_CALLS_PER_ROUND,
    MIN_ROUNDS,
    plan_cells,
    predict_call_s,
    skip_reason,
)
from forwardpass.profile.settings import ProfileSettings

SETTINGS = ProfileSettings(num_rounds=9, round_s=0.2, cell_budget_s=4.0)
CALL_S = st.floats(min_value=1e-6, max_value=30)


@given(call_s=st.lists(CALL_S, min_size=1, max_size=6), num_available_calls=st.integers(1, 16))
def test_a_cell_costs_its_budget_or_the_least_that_is_worth_measuring(
    call_s: list[float], num_available_calls: int
) -> None:
    named = {f"v{at}": seconds for at, seconds in enumerate(call_s)}
    plans = plan_cells(named, num_available_calls=num_available_calls, settings=SETTINGS)
    assert len({plan.num_calls for plan in plans.values()}) == 1
    for name, plan in plans.items():
        calls = plan.num_calls * plan.num_passes
        least_s = named[name] * MIN_ROUNDS * (MIN_CALLS_PER_ROUND + 1)
        assert named[name] * (calls + 1) * plan.num_rounds <= max(SETTINGS.cell_budget_s, least_s) * (1 + 1e-9)
        assert MIN_ROUNDS <= plan.num_rounds <= SETTINGS.num_rounds
        assert 1 <= plan.num_calls <= num_available_calls


@given(row_s=st.floats(1e-6, 1), fixed_s=st.floats(0, 1), sizes=st.sets(st.integers(1, 64), min_size=3, max_size=6))
def test_a_latency_that_grows_linearly_is_predicted_exactly(row_s: float, fixed_s: float, sizes: set[int]) -> None:
    *known, wanted = sorted(sizes)
    measured = {size: fixed_s + row_s * size for size in known}
    assert predict_call_s(measured, wanted) == pytest.approx(fixed_s + row_s * wanted)


def test_the_smallest_batch_size_is_measured_however_slow_the_model_is() -> None:
    assert predict_call_s({}, 1) is None
    assert skip_reason(None, [], SETTINGS) == ""


def test_a_skipped_batch_size_says_what_it_would_have_cost() -> None:
    assert skip_reason(0.4, [], SETTINGS) == ""
    assert skip_reason(1.0, [], SETTINGS) == "9 calls would take about 9 s, more than the 4 s set for a batch size"
