"""The line of the native front decides as the queue in Python does, ticket by ticket."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwardpass.core.batching import BatchQueue, Ticket
from forwardpass.core.latency import LatencyEstimate, LatencyPoint, LatencyTable
from forwardpass.errors import Overloaded

native = pytest.importorskip("forwardpass.serve.native._front", reason="no compiler was there to build it")

MAX_QUEUE_ROWS = 40
PATIENCE_S = (0.5, 1.0, 3.0, 3.0, 3.0, 10.0)
TABLES = (
    None,
    LatencyTable(
        num_threads=1,
        points=(LatencyPoint(batch_size=1, p50_s=0.8, p95_s=1.0), LatencyPoint(batch_size=8, p50_s=2.0, p95_s=2.4)),
    ),
    LatencyTable(
        num_threads=1,
        points=(LatencyPoint(batch_size=1, p50_s=0.3, p95_s=0.3), LatencyPoint(batch_size=16, p50_s=4.0, p95_s=4.5)),
    ),
)


class Nobody:
    """Owns a front and a line without clients."""

    def __init__(self) -> None:
        self.connections: set[Any] = set()

    def on_news(self) -> None: ...

    def refusal(self, kind: int, wait_s: float, fact: float) -> bytes:
        return b"no"

    def expiry(self, timeout_s: float) -> bytes:
        return b"late"


def make_line(*, max_batch_rows: int, batch_sizes: tuple[int, ...], num_workers: int) -> Any:
    owner = Nobody()
    front = native.Front(
        owner,
        header_timeout_s=1.0,
        body_timeout_s=1.0,
        keep_alive_s=1.0,
        max_body_bytes=1000,
        max_header_bytes=1000,
        too_busy=b"",
        timed_out=b"",
    )
    return native.Line(
        owner,
        front,
        name="pixels",
        datatype="FP32",
        dtype="float32",
        dims=[4],
        before="",
        outputs=[],
        batch_sizes=batch_sizes,
        edges=[1.0],
        max_batch_rows=max_batch_rows,
        max_queue_rows=MAX_QUEUE_ROWS,
        num_workers=num_workers,
        timeout_s=1.0,
    )


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(1, 4), st.sampled_from(PATIENCE_S)),
        st.tuples(st.just("wait"), st.floats(0.0, 2.0), st.none()),
        st.tuples(st.just("run"), st.floats(0.01, 5.0), st.integers(1, 3)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(
    actions=ACTIONS,
    table=st.sampled_from(TABLES),
    max_batch_rows=st.integers(4, 16),
    batch_sizes=st.sampled_from([(), (1, 4, 16)]),
    num_workers=st.integers(1, 2),
)
def test_the_line_decides_as_the_queue(
    actions: list[tuple[str, Any, Any]],
    table: LatencyTable | None,
    max_batch_rows: int,
    batch_sizes: tuple[int, ...],
    num_workers: int,
) -> None:
    latency = LatencyEstimate(table)
    queue = BatchQueue(
        max_batch_rows=max_batch_rows,
        max_queue_rows=MAX_QUEUE_ROWS,
        latency=latency,
        num_workers=num_workers,
        batch_sizes=batch_sizes,
    )
    line = make_line(max_batch_rows=max_batch_rows, batch_sizes=batch_sizes, num_workers=num_workers)
    line.set_curve(*latency.curve(1))
    now_s = 100.0
    for number, (action, value, other) in enumerate(actions):
        now_s += 0.001
        if action == "arrive":
            ticket = Ticket(num_rows=value, shape_key="a", deadline_s=now_s + other + number * 1e-6)
            line.busy_until_s = now_s
            is_taken = False
            with suppress(Overloaded):
                queue.admit(ticket, now_s=now_s, busy_until_s=now_s)
                queue.put(ticket)
                is_taken = True
            assert line.offer(value, ticket.deadline_s, now_s) == is_taken
        elif action == "wait":
            now_s += value
        else:
            batch, of_line = queue.pop_batch(now_s=now_s, num_free=other), line.pop_batch(now_s, other)
            assert (of_line is None) == (not batch.tickets)
            if of_line is not None:
                deadlines = [connection.ticket[1] for connection in line.release(of_line)]
                assert deadlines == [ticket.deadline_s for ticket in batch.tickets]
                assert (of_line.closed, of_line.num_padded) == (batch.closed, batch.num_rows)
                assert queue.predict_s(batch) == pytest.approx(line.predict_s(of_line.num_rows))
                queue.observe(batch, value)
                line.set_curve(*latency.curve(1))
        assert (line.num_waiting, line.num_waiting_rows) == (len(queue), queue.num_waiting_rows)
    assert (line.num_expired, line.num_batches) == (
        queue.statistics().num_expired,
        queue.statistics().num_batches,
    )
