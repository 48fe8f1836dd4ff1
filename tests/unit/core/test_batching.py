"""The laws of the queue, in virtual time: nothing is lost, doubled, reordered, or run in vain."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forwardpass.core.batching import NORMAL_PRIORITY, BatchQueue, Closed, Ticket
from forwardpass.core.latency import LatencyEstimate, LatencyPoint, LatencyTable
from forwardpass.errors import Overloaded

MAX_BATCH_ROWS = 8
MAX_QUEUE_ROWS = 24
TABLE = LatencyTable(
    num_threads=1,
    points=(LatencyPoint(batch_size=1, p50_s=0.8, p95_s=1.0), LatencyPoint(batch_size=8, p50_s=2.0, p95_s=2.4)),
)


def ticket(
    num_rows: int = 1, *, deadline_s: float = 100.0, shape: str = "a", priority: int = NORMAL_PRIORITY
) -> Ticket:
    return Ticket(num_rows=num_rows, shape_key=shape, deadline_s=deadline_s, priority=priority)


def queue(latency: LatencyEstimate | None = None, *, max_queue_rows: int = MAX_QUEUE_ROWS) -> BatchQueue:
    return BatchQueue(
        max_batch_rows=MAX_BATCH_ROWS, max_queue_rows=max_queue_rows, latency=latency or LatencyEstimate(None)
    )


def push(full: BatchQueue, one: Ticket, *, now_s: float, busy_until_s: float) -> None:
    """Put in a ticket if it is admitted."""
    full.admit(one, now_s=now_s, busy_until_s=busy_until_s)
    full.put(one)


class QueueMachine(RuleBasedStateMachine):
    """Clients that come, leave and wait, and a worker that takes between no time and far too long."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.latency = LatencyEstimate(TABLE)
        self.queue = queue(self.latency)
        self.waiting: list[Ticket] = []
        self.num_expired = self.num_batched = self.num_refused = 0
        self.last_run: dict[object, int] = {}

    @rule(
        rows=st.integers(1, 12),
        shape=st.sampled_from("ab"),
        patience_s=st.floats(0.01, 30),
        priority=st.sampled_from((1, NORMAL_PRIORITY, NORMAL_PRIORITY, 9)),
    )
    def arrive(self, rows: int, shape: str, patience_s: float, priority: int) -> None:
        new = ticket(rows, deadline_s=self.now_s + patience_s, shape=shape, priority=priority)
        with suppress(Overloaded):
            push(self.queue, new, now_s=self.now_s, busy_until_s=self.now_s)
            self.waiting.append(new)
            return
        assert self.waiting, "an empty queue takes everything"
        self.num_refused += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).is_abandoned = True

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(seconds=st.floats(0, 1000), num_free=st.integers(1, 3))
    def run_batch(self, seconds: float, num_free: int) -> None:
        live = [one for one in self.waiting if not one.is_abandoned and one.deadline_s > self.now_s]
        part = -(-self.queue.num_waiting_rows // num_free)
        batch = self.queue.pop_batch(now_s=self.now_s, num_free=num_free)
        assert bool(batch.tickets) == bool(live), "the worker is idle only when nothing of use waits"
        rows = [one.num_rows for one in batch.tickets]
        assert sum(rows) <= MAX_BATCH_ROWS or len(rows) == 1
        assert num_free == 1 or sum(rows) <= part or len(rows) == 1, "other workers are free for the rest"
        assert len({one.shape_key for one in batch.tickets}) <= 1
        for one in batch.tickets:
            assert not one.is_abandoned
            assert one.deadline_s > self.now_s
            line = (one.shape_key, one.priority)
            assert one.number > self.last_run.get(line, -1)
            self.last_run[line] = one.number
        for left in self.queue._waiting() if batch.tickets else ():
            assert left.is_abandoned or left.priority >= batch.tickets[0].priority, "the most urgent runs first"
            if left.shape_key == batch.tickets[0].shape_key and not left.is_abandoned:
                assert left.priority >= max(one.priority for one in batch.tickets), "nobody overtakes in the batch"
        self.take_out(batch.tickets)
        self.take_out(batch.expired)
        self.forget_those_who_left()
        assert not any(one.is_abandoned for one in batch.expired)
        self.num_expired += len(batch.expired)
        self.num_batched += len(batch.tickets)
        if batch.tickets:
            self.latency.observe(sum(rows), seconds)

    @rule()
    def drop_expired(self) -> None:
        late = {id(one) for one in self.waiting if one.deadline_s <= self.now_s}
        told = self.queue.drop_expired(now_s=self.now_s)
        assert {id(one) for one in told} <= late
        assert not any(one.is_abandoned for one in told)
        self.waiting = [one for one in self.waiting if id(one) not in late]
        self.num_expired += len(told)

    @rule()
    def drain(self) -> None:
        assert list(self.queue.drain()) == self.waiting
        self.waiting = []

    def take_out(self, tickets: tuple[Ticket, ...]) -> None:
        for one in tickets:
            assert one in self.waiting, "every ticket leaves the queue once"
            self.waiting.remove(one)

    def forget_those_who_left(self) -> None:
        """Take out what the queue has dropped without a word, which it may do with the abandoned only."""
        held = {id(one) for one in self.queue._waiting()}
        assert all(one.is_abandoned for one in self.waiting if id(one) not in held)
        self.waiting = [one for one in self.waiting if id(one) in held]

    @invariant()
    def the_books_balance(self) -> None:
        held = self.queue.statistics()
        assert held.num_waiting == len(self.queue) == len(self.waiting)
        assert held.num_waiting_rows == sum(one.num_rows for one in self.waiting)
        assert held.num_waiting_rows <= MAX_QUEUE_ROWS or held.num_waiting == 1
        assert (held.num_expired, held.num_batched) == (self.num_expired, self.num_batched)
        assert held.num_refused == self.num_refused
        assert self.queue.earliest_deadline_s == min((one.deadline_s for one in self.waiting), default=None)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def fill(full: BatchQueue, *tickets: Ticket) -> None:
    for one in tickets:
        push(full, one, now_s=0.0, busy_until_s=0.0)


def test_an_idle_worker_gets_what_waits_at_once_and_a_busy_one_finds_a_full_batch() -> None:
    few, many = queue(), queue()
    fill(few, ticket())
    fill(many, *(ticket() for _ in range(11)))
    assert few.pop_batch(now_s=0.0).closed is Closed.QUEUE_EMPTY
    batch = many.pop_batch(now_s=0.0)
    assert (len(batch.tickets), batch.closed, len(many)) == (8, Closed.FULL, 3)


def test_shapes_take_turns_by_their_oldest_ticket() -> None:
    mixed = queue()
    fill(mixed, ticket(shape="a"), ticket(shape="b"), ticket(shape="a"))
    assert [one.number for one in mixed.pop_batch(now_s=0.0).tickets] == [0, 2]
    assert [one.number for one in mixed.pop_batch(now_s=0.0).tickets] == [1]


def test_a_batch_does_not_grow_beyond_what_its_most_urgent_ticket_can_wait_for() -> None:
    """The others have time enough for a full batch afterwards."""
    hurried = queue(LatencyEstimate(TABLE))
    fill(hurried, ticket(deadline_s=1.5), *(ticket() for _ in range(7)))
    batch = hurried.pop_batch(now_s=0.0)
    assert batch.closed is Closed.DEADLINE
    assert TABLE.predict_s(len(batch.tickets)) <= 1.5 < TABLE.predict_s(len(batch.tickets) + 1)
    assert len(hurried) == 8 - len(batch.tickets)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    full = queue(LatencyEstimate(TABLE), max_queue_rows=2)
    fill(full, ticket(2))
    with pytest.raises(Overloaded) as caught:
        fill(full, ticket())
    assert str(caught.value) == ("The server is overloaded: 2 rows are waiting, the limit is 2. Try again in 0.001 s.")


def test_a_request_that_would_come_too_late_is_refused_at_once() -> None:
    """Together with the one that waits it would take 1.2 s, once the worker is free in 5 s."""
    busy = queue(LatencyEstimate(TABLE))
    push(busy, ticket(), now_s=0.0, busy_until_s=5.0)
    push(busy, ticket(deadline_s=6.3), now_s=0.0, busy_until_s=5.0)
    with pytest.raises(Overloaded, match=r"an answer would take 6.4 s, longer than the request's deadline allows"):
        push(busy, ticket(deadline_s=6.3), now_s=0.0, busy_until_s=5.0)


def test_predictions_follow_the_table_until_the_size_was_seen() -> None:
    estimate = LatencyEstimate(TABLE)
    assert estimate.predict_s(8) == 2.4
    for _ in range(100):
        estimate.observe(8, 4.0)
    assert estimate.predict_s(8) == pytest.approx(4.0, rel=1e-3)
    assert LatencyEstimate(None).predict_s(3) == 0.0


def test_what_is_slower_than_the_table_says_at_one_size_is_expected_to_be_so_at_others() -> None:
    estimate = LatencyEstimate(TABLE)
    for _ in range(100):
        estimate.observe(8, 4.8)
    assert estimate.predict_s(1) == pytest.approx(2.0, rel=1e-3)


@given(
    seen=st.lists(st.tuples(st.integers(1, 64), st.integers(1, 512), st.floats(1e-4, 10.0)), min_size=1, max_size=30),
    table=st.sampled_from((None, TABLE)),
    size=st.integers(1, 512),
)
def test_larger_batches_are_never_predicted_to_be_faster(
    seen: list[tuple[int, int, float]], table: LatencyTable | None, size: int
) -> None:
    """And never slower than one row after another."""
    estimate = LatencyEstimate(table)
    for num_rows, row_size, seconds in seen:
        estimate.observe(num_rows, seconds, row_size)
    times = [estimate.predict_s(num_rows, size) for num_rows in range(1, 70)]
    assert all(one <= other * (1 + 1e-9) for one, other in pairwise(times))
    assert all(time <= times[0] * (1 + number) * (1 + 1e-9) for number, time in enumerate(times))


@given(size=st.integers(1, 64), outlier_s=st.floats(1.0, 1e6))
def test_one_outlier_is_forgotten(size: int, outlier_s: float) -> None:
    """After n ordinary batches the outlier's share of mean and deviation has shrunk geometrically."""
    estimate = LatencyEstimate(None)
    estimate.observe(size, outlier_s)
    for _ in range(200):
        estimate.observe(size, 0.01)
    assert estimate.predict_s(size) < 0.02


@given(size=st.sampled_from([2, 4, 8, 16]))
def test_an_outlier_of_one_size_does_not_outweigh_what_other_sizes_show(size: int) -> None:
    """Batches of that size would otherwise never be tried again, and so never be seen to be fast."""
    estimate = LatencyEstimate(None)
    for _ in range(20):
        estimate.observe(1, 0.01)
    estimate.observe(size, 1000.0)
    assert estimate.predict_s(size) <= 0.02 * size


@given(lateness=st.floats(2.0, 1e6))
def test_a_prediction_that_was_far_too_high_locks_nobody_out(lateness: float) -> None:
    """With requests always waiting, each batch still runs one, and its true time corrects the prediction."""
    estimate = LatencyEstimate(None)
    estimate.observe(1, lateness)
    locked = queue(estimate)
    for at in range(200):
        now_s = at * 10.0
        for one in (ticket(deadline_s=now_s + 1.0), ticket(deadline_s=now_s + 1.0)):
            try:
                push(locked, one, now_s=now_s, busy_until_s=now_s)
            except Overloaded:
                continue
        batch = locked.pop_batch(now_s=now_s)
        assert batch.tickets
        estimate.observe(len(batch.tickets), 0.01)
    assert len(batch.tickets) == 2
