"""The trade-off curve: for every limit on the error it has the plan that brute force finds."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.optimize.knapsack import Item, best_plans

AMOUNTS = st.one_of(st.integers(0, 5).map(float), st.floats(0, 10))
PAIRS = st.lists(st.tuples(AMOUNTS, AMOUNTS), max_size=9)


def named(pairs: list[tuple[float, float]]) -> list[Item]:
    return [Item(name=f"n{at}", error=error, saved=saved) for at, (error, saved) in enumerate(pairs)]


@given(PAIRS, st.floats(0, 60))
def test_for_any_limit_the_best_plan_is_the_one_of_brute_force(pairs: list[tuple[float, float]], limit: float) -> None:
    items = named(pairs)
    subsets = [part for size in range(len(items) + 1) for part in combinations(items, size)]
    allowed = [part for part in subsets if sum(item.error for item in part) <= limit]
    best = max(sum(item.saved for item in part) for part in allowed)
    found = [plan for plan in best_plans(items) if plan.error <= limit][-1]
    assert found.saved == pytest.approx(best, abs=1e-9)


@given(PAIRS)
def test_error_and_saving_rise_along_the_curve_from_nothing_to_all_that_saves(pairs: list[tuple[float, float]]) -> None:
    items = named(pairs)
    plans = best_plans(items)
    assert plans[0].error == 0
    assert all(one.error < two.error and one.saved < two.saved for one, two in pairwise(plans))
    assert plans[-1].saved == pytest.approx(sum(item.saved for item in items), abs=1e-9)
    assert best_plans(items) == plans


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=12, max_size=40))
def test_a_thinned_curve_keeps_its_ends_and_its_length(pairs: list[tuple[float, float]]) -> None:
    items = named(pairs)
    plans = best_plans(items, max_plans=64)
    assert len(plans) <= 64
    assert plans[0].names == frozenset()
    assert plans[-1].names == {item.name for item in items}
