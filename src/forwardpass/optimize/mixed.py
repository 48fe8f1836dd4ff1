"""Mixed precision: the fewest nodes that have to stay in float so that the floor holds, found on the metric itself.

Errors of single nodes only give the order of trying; what counts is the score of the whole model on the validation
split. Halving finds how many of the worst nodes it takes, then single ones are quantised again where the floor allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

__all__ = ["MAX_SECOND_TRIES", "fewest_in_float", "quantise_again"]

MAX_SECOND_TRIES = 8
"""Each costs a file and a pass over the validation split."""


def fewest_in_float(nodes: Sequence[str], holds: Callable[[Set[str]], bool]) -> tuple[str, ...] | None:
    """Return the shortest beginning of `nodes`, the worst first, whose staying in float makes the floor hold.

    Takes log2(n) trials, as if the score only rose with every node that stays in float. Where it does not, the answer
    may be longer than necessary, but the floor holds for it: it was tried. None if it holds for no proper part.

    >>> fewest_in_float(["a", "b", "c"], lambda kept: len(kept) >= 2)
    ('a', 'b')
    """
    low, high = 0, len(nodes)  # `high` holds or is everything; `low` was not tried or does not
    while low < high:
        middle = (low + high) // 2
        if holds(frozenset(nodes[:middle])):
            high = middle
        else:
            low = middle + 1
    return tuple(nodes[:high]) if high < len(nodes) else None


def quantise_again(
    kept: Sequence[str], holds: Callable[[Set[str]], bool], *, max_tries: int = MAX_SECOND_TRIES
) -> tuple[str, ...]:
    """Quantise nodes again one by one, the least bad first, as long as the floor holds; return those that stay.

    >>> quantise_again(["a", "b", "c"], lambda kept: "b" in kept)
    ('b',)
    """
    staying = list(kept)
    for node in list(reversed(kept))[:max_tries]:
        without = [name for name in staying if name != node]
        if holds(frozenset(without)):
            staying = without
    return tuple(staying)
