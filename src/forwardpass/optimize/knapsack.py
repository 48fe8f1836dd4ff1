"""Which nodes to compute in 8 bits: the most gained for every amount of error, as one exact trade-off curve.

An item is a node with what 8 bits cost it and what they save. A plan is a set of nodes; it is kept only if no other
plan saves as much with less error (Nemhauser and Ullmann's dominance). The curve answers every limit on the error at
once, so the limit can be found afterwards on the real metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MAX_PLANS", "Item", "Plan", "best_plans"]

MAX_PLANS = 2048
"""A curve that would have more points is thinned, which loses at most a two-thousandth of the error a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A node: the squared error that 8 bits make in it, and what they save (seconds or bytes, above zero)."""

    name: str
    error: float
    saved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Nodes to quantise, with their summed error and saving."""

    names: frozenset[str]
    error: float
    saved: float


def best_plans(items: Sequence[Item], *, max_plans: int = MAX_PLANS) -> tuple[Plan, ...]:
    """Return the plans that no other beats in both error and saving, from none of the items to all that save.

    Error and saving both rise along the result.

    >>> a, b = Item(name="a", error=1.0, saved=3.0), Item(name="b", error=2.0, saved=2.0)
    >>> [(sorted(plan.names), plan.error, plan.saved) for plan in best_plans([a, b])]
    [([], 0.0, 0.0), (['a'], 1.0, 3.0), (['a', 'b'], 3.0, 5.0)]
    """
    useful = [item for item in items if item.saved > 0]
    states = [(0.0, 0.0, 0)]
    for place, item in enumerate(useful):
        grown = [(error + item.error, saved + item.saved, mask | 1 << place) for error, saved, mask in states]
        states = _thinned(_undominated(states + grown), max_plans)
    return tuple(
        Plan(
            names=frozenset(item.name for place, item in enumerate(useful) if mask >> place & 1),
            error=error,
            saved=saved,
        )
        for error, saved, mask in states
    )


def _undominated(states: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Keep what saves more than everything with less error; ties are broken by the nodes, the same way each time."""
    kept: list[tuple[float, float, int]] = []
    for state in sorted(states, key=lambda state: (state[0], -state[1], state[2])):
        if not kept or state[1] > kept[-1][1]:
            kept.append(state)
    return kept


def _thinned(states: list[tuple[float, float, int]], max_plans: int) -> list[tuple[float, float, int]]:
    """Keep both ends and, of every stretch of equal error, the plan that saves most."""
    if len(states) <= max_plans:
        return states
    width = (states[-1][0] - states[0][0]) / (max_plans - 2) or 1.0
    kept = {int((error - states[0][0]) / width): (error, saved, mask) for error, saved, mask in states[1:-1]}
    return [states[0], *kept.values(), states[-1]]
