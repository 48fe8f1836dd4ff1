"""Mixed precision: the most valuable nodes in 8 bits for which the floor holds, found on the metric itself.

Errors of single nodes only give the order of trying; what counts is the score of the whole model on the validation
split. The plans of the trade-off curve are tried by halving, then single nodes are added where the floor allows.
`MixedSearch` says what to try next and is told whether it held; it knows no file, clock or metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from forwardpass.optimize.knapsack import Item, Plan, best_plans

__all__ = ["MAX_ADDED", "MixedSearch", "Trial", "run_search"]

MAX_ADDED = 8
"""How many single nodes are tried after the halving. Each costs a file and a pass over the validation split."""

Settle = Callable[[frozenset[str]], frozenset[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A set of nodes that was tried in 8 bits, and whether the floor held."""

    names: frozenset[str]
    holds: bool


@dataclass(slots=True, kw_only=True)
class MixedSearch:
    """Asks for trials until the best set of nodes is known; the best so far can be read at any time.

    `settle` removes from a set the nodes that are no gain in its company.
    """

    items: Sequence[Item]
    settle: Settle = lambda names: names
    trials: list[Trial] = field(default_factory=list)
    _saved: dict[str, float] = field(default_factory=dict)
    _results: dict[frozenset[str], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._saved = {item.name: item.saved for item in self.items}

    @property
    def best(self) -> frozenset[str]:
        """The set with the greatest saving for which the floor was seen to hold; empty if there is none."""
        held = [trial.names for trial in self.trials if trial.holds]
        return max(held, key=lambda names: (self.saving(names), sorted(names)), default=frozenset())

    def saving(self, names: frozenset[str]) -> float:
        """Return what a set saves by the sum of its nodes."""
        return sum(self._saved[name] for name in sorted(names))

    def tell(self, names: frozenset[str], *, holds: bool) -> None:
        """Record the outcome of a trial."""
        self.trials.append(Trial(names=names, holds=holds))
        self._results[names] = holds

    def asks(self) -> Iterator[frozenset[str]]:
        """Yield sets to try, each once; `tell` has to be called before the next is taken."""
        plans = [plan for plan in best_plans(self.items) if plan.names]
        yield from self._halve(plans)
        yield from self._add_single_nodes()

    def _halve(self, plans: Sequence[Plan]) -> Iterator[frozenset[str]]:
        """Find the longest beginning of the curve that holds, the whole of it first."""
        low, high = -1, len(plans)  # `low` holds or is nothing; `high` does not or is beyond the end
        middle = high - 1
        while low < middle < high:
            names = self.settle(plans[middle].names)
            if names and names not in self._results:
                yield names
            if self._results.get(names, True):
                low = middle
            else:
                high = middle
            middle = (low + high) // 2

    def _add_single_nodes(self) -> Iterator[frozenset[str]]:
        left = [item for item in self.items if item.name not in self.best and item.saved > 0]
        left.sort(key=lambda item: (-item.saved / (item.error or 1e-30), item.name))
        num_tried = 0
        for item in left:
            names = self.settle(self.best | {item.name})
            if num_tried == MAX_ADDED:
                return
            if names in self._results or item.name not in names:
                continue
            num_tried += 1
            yield names


def run_search(
    search: MixedSearch, holds: Callable[[frozenset[str]], bool], *, has_time: Callable[[], bool] = lambda: True
) -> bool:
    """Drive a search on the real metric; return whether it came to its end before the time did."""
    for names in search.asks():
        if not has_time():
            return False
        search.tell(names, holds=holds(names))
    return True
