"""The search for nodes in 8 bits, on a made-up metric: the known optimum, few trials, in time, the same each time."""

from __future__ import annotations

from collections.abc import Set
from math import ceil, log2

from hypothesis import given
from hypothesis import strategies as st

from forwardpass.optimize.knapsack import Item, best_plans
from forwardpass.optimize.mixed import MAX_ADDED, MixedSearch, run_search

ITEMS = st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=1, max_size=10).map(
    lambda pairs: [Item(name=f"n{at}", error=error, saved=saved) for at, (error, saved) in enumerate(pairs)]
)


class ErrorLimit:
    """A metric that is exactly the sum of the errors; remembers what was tried."""

    def __init__(self, items: list[Item], limit: float) -> None:
        self.errors = {item.name: item.error for item in items}
        self.limit = limit
        self.tried: list[Set[str]] = []

    def __call__(self, names: frozenset[str]) -> bool:
        self.tried.append(names)
        return sum(self.errors[name] for name in sorted(names)) <= self.limit


@given(ITEMS, st.floats(0, 40))
def test_where_errors_add_up_the_optimum_is_found_in_a_logarithm_of_trials(items: list[Item], limit: float) -> None:
    metric, search = ErrorLimit(items, limit), MixedSearch(items=items)
    assert run_search(search, metric)
    plans = best_plans(items)
    best = [plan for plan in plans if sum(metric.errors[name] for name in sorted(plan.names)) <= limit][-1]
    assert search.saving(search.best) >= best.saved - 1e-9
    assert len(metric.tried) <= ceil(log2(len(plans) + 1)) + 1 + MAX_ADDED
    assert len(set(map(frozenset, metric.tried))) == len(metric.tried)


@given(ITEMS, st.floats(0, 40), st.integers(0, 12))
def test_a_search_stops_when_its_time_is_over_with_something_that_holds(
    items: list[Item], limit: float, num_trials: int
) -> None:
    metric, search = ErrorLimit(items, limit), MixedSearch(items=items)
    is_finished = run_search(search, metric, has_time=lambda: len(metric.tried) < num_trials)
    assert len(metric.tried) <= num_trials
    whole = ErrorLimit(items, limit)
    run_search(MixedSearch(items=items), whole)
    assert is_finished == (len(whole.tried) <= num_trials)
    assert metric.tried == whole.tried[: len(metric.tried)], "what is tried does not depend on the time"
    assert not search.best or metric(search.best)


@given(ITEMS, st.randoms(use_true_random=False))
def test_a_floor_that_holds_at_random_is_held_by_what_is_returned(items: list[Item], random: object) -> None:
    answers: dict[frozenset[str], bool] = {}
    search = MixedSearch(items=items)
    run_search(search, lambda names: answers.setdefault(names, bool(random.getrandbits(1))))  # type: ignore[attr-defined]
    assert not search.best or answers[search.best]


def test_nodes_that_lose_in_their_company_are_not_tried() -> None:
    items = [Item(name=name, error=1.0, saved=2.0) for name in ("a", "b", "c")]
    search = MixedSearch(items=items, settle=lambda names: names - {"b"} if "a" not in names else names)
    run_search(search, lambda names: "a" not in names)
    assert search.best == {"c"}
    assert all("b" not in trial.names for trial in search.trials if "a" not in trial.names)
