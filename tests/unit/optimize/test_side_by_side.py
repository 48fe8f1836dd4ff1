"""Calls side by side give what calls one after another give, and no more of them wait than there are cores."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.optimize.side_by_side import SHORT_S, map_calls
from forwardpass.runtimes.options import num_available_cores

LONG_S = 4 * SHORT_S


@given(st.lists(st.booleans(), max_size=12))
def test_results_come_in_the_order_of_the_items_however_long_each_takes(are_long: list[bool]) -> None:
    def call(item: tuple[int, bool]) -> int:
        number, is_long = item
        if is_long:
            time.sleep(LONG_S)
        return number

    assert list(map_calls(call, enumerate(are_long))) == list(range(len(are_long)))


def test_no_more_results_wait_than_there_are_cores() -> None:
    lock, started, taken = threading.Lock(), 0, 0
    waiting = []

    def call(_: int) -> None:
        nonlocal started
        with lock:
            started += 1
            waiting.append(started - taken)
        time.sleep(LONG_S)

    for _ in map_calls(call, range(40)):
        with lock:
            taken += 1
    assert started == taken == 40
    assert max(waiting) <= num_available_cores() + 1


@pytest.mark.parametrize("place", [0, 3])
def test_an_error_is_raised_in_its_turn(place: int) -> None:
    def call(number: int) -> int:
        time.sleep(LONG_S)
        return 1 // (number - place)

    results = map_calls(call, range(6))
    assert len([next(results) for _ in range(place)]) == place
    with pytest.raises(ZeroDivisionError):
        next(results)
