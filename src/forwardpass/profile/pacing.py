"""Decides how many calls a cell gets, so that a slow model takes no longer than its budget. Knows no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from forwardpass.profile.settings import ProfileSettings

__all__ = [
    "MIN_CALLS_PER_ROUND",
    "MIN_ROUNDS",
    "CellPlan",
    "pick_evenly",
    "plan_cells",
    "predict_call_s",
    "skip_reason",
]

_T = TypeVar("_T")

MIN_ROUNDS = 3
MIN_CALLS_PER_ROUND = 2
MAX_CALLS_PER_ROUND = 256
"""Enough for a p99 in every round; more would only sharpen the median of a model that is fast anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """How a cell is measured: `num_rounds` rounds of `num_passes` passes over `num_calls` calls.

    Every round begins with one more call that is not timed.
    """

    num_rounds: int
    num_calls: int
    num_passes: int


def pick_evenly(items: Sequence[_T], num_items: int) -> list[_T]:
    """Pick items spread over the whole sequence; of calls sorted by size, few then stand for all.

    >>> pick_evenly("abcdefgh", 1), pick_evenly("abcdefgh", 2), pick_evenly("abc", 5)
    (['e'], ['c', 'g'], ['a', 'b', 'c'])
    """
    num_items = min(num_items, len(items))
    return [items[int((at + 0.5) * len(items) / num_items)] for at in range(num_items)]


def plan_cells(
    call_s: Mapping[str, float], *, num_available_calls: int, settings: ProfileSettings
) -> dict[str, CellPlan]:
    """Plan one batch size for all variants, from how long one call of each took.

    All variants run the same calls, as many as the slowest can run in a round; the faster ones repeat them.
    """
    fitting = int(settings.round_s / max(max(call_s.values()), 1e-9))
    num_calls = max(min(fitting, num_available_calls), min(MIN_CALLS_PER_ROUND, num_available_calls))
    return {name: _plan_cell(seconds, num_calls, settings) for name, seconds in call_s.items()}


def _plan_cell(call_s: float, num_calls: int, settings: ProfileSettings) -> CellPlan:
    pass_s = max(call_s, 1e-9) * num_calls
    wanted = settings.round_s / pass_s
    num_passes = max(1, min(int(wanted), MAX_CALLS_PER_ROUND // num_calls))
    affordable = int(settings.cell_budget_s / (pass_s * num_passes + call_s))
    num_rounds = min(settings.num_rounds, max(affordable, MIN_ROUNDS))
    return CellPlan(num_rounds=num_rounds, num_calls=num_calls, num_passes=num_passes)


def predict_call_s(measured_s: Mapping[int, float], batch_size: int) -> float | None:
    """Predict the time of a call from smaller batch sizes, or None without any.

    Linear growth from the last two sizes; from one size alone, the cost per row stays what it is there.

    >>> predict_call_s({1: 1.0, 2: 1.5}, 4)
    2.5
    """
    sizes = sorted(measured_s)[-2:]
    if not sizes:
        return None
    if len(sizes) == 1:
        return measured_s[sizes[0]] * batch_size / sizes[0]
    slope = (measured_s[sizes[1]] - measured_s[sizes[0]]) / (sizes[1] - sizes[0])
    return measured_s[sizes[1]] + max(slope, 0.0) * (batch_size - sizes[1])


def skip_reason(predicted_s: float | None, skipped_sizes: Sequence[int], settings: ProfileSettings) -> str:
    """Say why a batch size is not measured, or return the empty string if it is."""
    if skipped_sizes:
        return f"batch size {skipped_sizes[0]} was already too slow"
    if predicted_s is None:
        return ""
    least_s = predicted_s * MIN_ROUNDS * (MIN_CALLS_PER_ROUND + 1)
    if least_s <= settings.cell_budget_s:
        return ""
    return (
        f"{MIN_ROUNDS * (MIN_CALLS_PER_ROUND + 1)} calls would take about {least_s:.2g} s, "
        f"more than the {settings.cell_budget_s:g} s set for a batch size"
    )
