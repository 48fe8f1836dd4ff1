"""A wait is short, is given up where nobody comes, and is tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.batching import Batch, BatchQueue
from forwardpass.core.latency import LatencyEstimate, LatencyPoint, LatencyTable
from forwardpass.core.regathering import MAX_WAIT_S, MIN_WAIT_S, NUM_LEFT_OUT, SHARE_OF_SAVING, Regathering

MAX_ROWS = 16
ROW_S = 1e-3


def regathering(*, call_s: float = 10e-3, num_workers: int = 1) -> Regathering:
    seconds = [(num, call_s + num * ROW_S) for num in (1, MAX_ROWS)]
    points = tuple(LatencyPoint(batch_size=num, p50_s=taken_s, p95_s=taken_s) for num, taken_s in seconds)
    latency = LatencyEstimate(LatencyTable(num_threads=1, points=points))
    return Regathering(
        BatchQueue(max_batch_rows=MAX_ROWS, max_queue_rows=100, latency=latency, num_workers=num_workers)
    )


@given(
    st.integers(1, MAX_ROWS),
    st.integers(1, 4),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(1, 4),
    st.floats(0, 0.1),
)
def test_a_wait_costs_less_than_it_may_save(
    num: int, rows_each: int, num_waiting: int, num_running: int, num_workers: int, call_s: float
) -> None:
    wait = regathering(call_s=call_s, num_workers=num_workers).wait_after(
        Batch(num_rows=num * rows_each), num_answered=num, num_waiting=num_waiting, num_running=num_running
    )
    if wait is None:
        return
    assert num + num_waiting > 1, "a lone client is never waited for"
    assert wait.num_wanted * num_workers <= num + num_waiting + num_running, "other workers get their part"
    assert num_waiting < wait.num_wanted <= min(num + num_waiting, MAX_ROWS // rows_each)
    assert MIN_WAIT_S <= wait.seconds <= min(MAX_WAIT_S, SHARE_OF_SAVING * call_s * 1.001)


def share_of_waits(waiting: Regathering, num_came: int, num_batches: int = 400) -> float:
    """Return after how many of the batches of four there was a wait, for which so many came."""
    waits = 0
    for _ in range(num_batches):
        wait = waiting.wait_after(Batch(num_rows=4), num_answered=4, num_waiting=0, num_running=0)
        if wait is not None:
            waits += 1
            waiting.learn(wait, num_came)
    return waits / num_batches


def test_waiting_in_vain_is_given_up_and_tried_again() -> None:
    waiting = regathering()
    assert share_of_waits(waiting, 4) == 1
    assert share_of_waits(waiting, 0) < 2 / NUM_LEFT_OUT
    share_of_waits(waiting, 4)
    assert share_of_waits(waiting, 4) == 1
