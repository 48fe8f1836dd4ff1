"""The search for the fewest nodes in float: what it returns was tried and holds, in few trials."""

from __future__ import annotations

from collections.abc import Set
from math import ceil, log2

from hypothesis import given
from hypothesis import strategies as st

from forwardpass.optimize.mixed import MAX_SECOND_TRIES, fewest_in_float, quantise_again

NODES = [f"node{number}" for number in range(40)]


class Floor:
    """Holds if all of the `guilty` nodes stay in float; remembers what was tried."""

    def __init__(self, guilty: Set[str]) -> None:
        self.guilty = guilty
        self.tried: list[Set[str]] = []

    def __call__(self, kept: Set[str]) -> bool:
        self.tried.append(kept)
        return self.guilty <= kept


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_the_fewest_of_the_worst_are_found_in_a_logarithm_of_trials(num_nodes: int, places: set[int]) -> None:
    nodes = NODES[:num_nodes]
    guilty = {nodes[place] for place in places if place < num_nodes}
    floor = Floor(guilty)
    found = fewest_in_float(nodes, floor)
    needed = max((nodes.index(name) + 1 for name in guilty), default=0)
    assert found == (tuple(nodes[:needed]) if needed < num_nodes else None)
    assert len(floor.tried) <= ceil(log2(num_nodes + 1)) + 1
    assert found is None or set(found) in floor.tried


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_nodes_that_are_quantised_again_leave_a_floor_that_was_tried(num_nodes: int, places: set[int]) -> None:
    nodes = NODES[:num_nodes]
    guilty = {nodes[place] for place in places if place < num_nodes}
    floor = Floor(guilty)
    staying = quantise_again(nodes, floor)
    assert guilty <= set(staying)
    assert [name for name in nodes if name in staying] == list(staying)
    assert len(floor.tried) <= MAX_SECOND_TRIES
    innocent = set(nodes[-MAX_SECOND_TRIES:]) - guilty
    assert not innocent & set(staying)


@given(st.randoms(use_true_random=False))
def test_a_floor_that_holds_at_random_is_still_held_by_what_is_returned(random: object) -> None:
    """The score need not rise with every node in float; what is returned was tried in any case."""
    answers: dict[Set[str], bool] = {}

    def holds(kept: Set[str]) -> bool:
        return answers.setdefault(kept, bool(random.getrandbits(1)))  # type: ignore[attr-defined]

    found = fewest_in_float(NODES, holds)
    assert found is None or answers[frozenset(found)]
