"""Which requests run together, and which are refused: decisions only, no clock, thread or socket.

The rule is work-conserving with late binding: nothing waits while the worker is idle, and while it is busy the next
batch grows. At low load a request runs alone at once; at high load batches are as large as they may be. There is no
window to set.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from forwardpass.core.latency import LatencyTable
from forwardpass.errors import Overloaded

__all__ = [
    "LOWEST_PRIORITY",
    "NORMAL_PRIORITY",
    "Batch",
    "BatchQueue",
    "Closed",
    "LatencyEstimate",
    "QueueStatistics",
    "Ticket",
]

NORMAL_PRIORITY = 5
LOWEST_PRIORITY = 9

SMOOTHING = 1 / 8
DEVIATION_SMOOTHING = 1 / 4
NUM_DEVIATIONS = 2.0
"""As TCP estimates round trips (RFC 6298): a running mean and mean deviation need no history and forget old load."""


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A waiting request: how many rows it has, what it can be stacked with, and until when it is of use."""

    num_rows: int
    shape_key: Hashable
    deadline_s: float
    priority: int = NORMAL_PRIORITY
    """1 is the most urgent; what is more urgent runs first, and its wait does not count what is less so."""
    is_abandoned: bool = False
    """The client has left; the ticket is dropped before it costs anything."""
    number: int = field(default=-1, init=False)


class Closed(StrEnum):
    """Why a batch was closed, for the statistics."""

    QUEUE_EMPTY = "queue-empty"
    FULL = "full"
    DEADLINE = "deadline"
    """One more ticket would have made the batch too slow for a ticket in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What to run now, oldest first, and what came too late for it."""

    tickets: tuple[Ticket, ...]
    expired: tuple[Ticket, ...]
    closed: Closed


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """What the queue holds and has done."""

    num_waiting: int
    num_waiting_rows: int
    num_accepted: int
    num_refused: int
    num_expired: int
    num_batches: int
    num_batched: int


class LatencyEstimate:
    """Predicts how long a batch takes: from the bundle's table at first, then from what was observed.

    Sizes are kept in powers of two. A prediction never exceeds that of a larger batch, nor that of smaller batches run
    one after another: so one outlier cannot keep a size from ever being tried again.
    """

    def __init__(self, table: LatencyTable | None) -> None:
        self._table = table
        self._seen: dict[int, tuple[float, float]] = {}
        self._predictions: dict[int, float] = {}

    def learn_table(self, table: LatencyTable) -> None:
        """Take over a table that was measured after the start."""
        self._table = table

    def predict_s(self, num_rows: int) -> float:
        """Predict the time of a batch, on the safe side of the mean; 0 while nothing is known."""
        bucket = _bucket(num_rows)
        if bucket not in self._seen and self._table is not None:
            return self._table.predict_s(num_rows)
        if bucket not in self._predictions:
            bounds = (
                (mean + NUM_DEVIATIONS * deviation) * max(1.0, bucket / size)
                for size, (mean, deviation) in self._seen.items()
            )
            self._predictions[bucket] = min(bounds, default=0.0)
        return self._predictions[bucket]

    def observe(self, num_rows: int, seconds: float) -> None:
        """Take note of a batch that has run."""
        bucket = _bucket(num_rows)
        if bucket in self._seen:
            mean, deviation = self._seen[bucket]
            deviation += DEVIATION_SMOOTHING * (abs(seconds - mean) - deviation)
            self._seen[bucket] = (mean + SMOOTHING * (seconds - mean), deviation)
        else:
            self._seen[bucket] = (seconds, seconds / 2)
        self._predictions.clear()


class BatchQueue:
    """Tickets by priority and then in order of arrival, taken out in batches of one shape."""

    def __init__(
        self, *, max_batch_rows: int, max_queue_rows: int, latency: LatencyEstimate, num_workers: int = 1
    ) -> None:
        self.max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._latency = latency
        self._num_workers = num_workers
        self._lines: dict[tuple[int, Hashable], deque[Ticket]] = {}
        self._rows_by_priority: Counter[int] = Counter()
        self._num_waiting = self._num_rows = self._next_number = 0
        self._num_refused = self._num_expired = self._num_batches = self._num_batched = 0

    def admit(self, ticket: Ticket, *, now_s: float, busy_until_s: float) -> None:
        """Refuse a ticket that would come too late; `busy_until_s` is when the first worker is free.

        A request that finds the queue empty is always accepted: one prediction that was far too high must not lock
        everybody out for ever.

        Raises:
            Overloaded: the queue is full, or the predicted wait is longer than the ticket's deadline allows.
        """
        if not self._num_waiting:
            return
        wait_s = max(busy_until_s - now_s, 0.0) + self._predict_queue_s(ticket.priority)
        finish_s = now_s + wait_s + self._latency.predict_s(ticket.num_rows)
        if self._num_rows + ticket.num_rows > self._max_queue_rows:
            self._refuse(wait_s, f"{self._num_rows} rows are waiting, the limit is {self._max_queue_rows}")
        if finish_s > ticket.deadline_s:
            self._refuse(wait_s, f"the predicted wait of {wait_s:.3g} s is longer than the request's deadline allows")

    def put(self, ticket: Ticket) -> None:
        """Take in a ticket that was admitted."""
        ticket.number = self._next_number
        self._next_number += 1
        self._lines.setdefault((ticket.priority, ticket.shape_key), deque()).append(ticket)
        self._num_waiting += 1
        self._num_rows += ticket.num_rows
        self._rows_by_priority[ticket.priority] += ticket.num_rows

    def pop_batch(self, *, now_s: float) -> Batch:
        """Return the tickets to run now; empty when nothing waits that is still of use.

        The oldest ticket decides the shape, and others of its shape join it in order, as long as the batch is in time
        for all of them. A ticket that is predicted to come too late is dropped here, before it costs anything; but
        where it would leave the worker idle, it is tried: predictions can be wrong.
        """
        expired: list[Ticket] = []
        taken, hopeless = self._take_first(expired, now_s)
        if taken is None and hopeless:
            taken = max(hopeless, key=lambda ticket: ticket.deadline_s)
            hopeless.remove(taken)
        expired += hopeless
        tickets, closed = self._take_mates(taken, now_s) if taken is not None else ((), Closed.QUEUE_EMPTY)
        self._num_expired += len(expired)
        self._num_batches += bool(tickets)
        self._num_batched += len(tickets)
        return Batch(tickets=tickets, expired=tuple(expired), closed=closed)

    def drop_expired(self, *, now_s: float) -> tuple[Ticket, ...]:
        """Take out and return every ticket whose deadline has passed."""
        late = [ticket for ticket in self._waiting() if ticket.deadline_s <= now_s]
        for ticket in late:
            line = self._lines[ticket.priority, ticket.shape_key]
            line.remove(ticket)
            self._forget(line, ticket)
        expired = tuple(ticket for ticket in late if not ticket.is_abandoned)
        self._num_expired += len(expired)
        return expired

    def drain(self) -> tuple[Ticket, ...]:
        """Take out everything, oldest first."""
        everything = tuple(sorted(self._waiting(), key=lambda ticket: ticket.number))
        self._lines.clear()
        self._rows_by_priority.clear()
        self._num_waiting = self._num_rows = 0
        return everything

    @property
    def earliest_deadline_s(self) -> float | None:
        """The first deadline among those that wait."""
        return min((ticket.deadline_s for ticket in self._waiting()), default=None)

    def __len__(self) -> int:
        return self._num_waiting

    def statistics(self) -> QueueStatistics:
        """Return what the queue holds and has done."""
        return QueueStatistics(
            num_waiting=self._num_waiting,
            num_waiting_rows=self._num_rows,
            num_accepted=self._next_number,
            num_refused=self._num_refused,
            num_expired=self._num_expired,
            num_batches=self._num_batches,
            num_batched=self._num_batched,
        )

    def _predict_queue_s(self, priority: int) -> float:
        """Predict how long everything takes that runs before a ticket of this priority: full batches and a rest."""
        num_rows = sum(rows for level, rows in self._rows_by_priority.items() if level <= priority)
        full, rest = divmod(num_rows, self.max_batch_rows)
        seconds = full * self._latency.predict_s(self.max_batch_rows) if full else 0.0
        return (seconds + (self._latency.predict_s(rest) if rest else 0.0)) / self._num_workers

    def _take_first(self, expired: list[Ticket], now_s: float) -> tuple[Ticket | None, list[Ticket]]:
        """Take tickets out, in their order, up to one that will be in time; return it and those that hardly will."""
        hopeless: list[Ticket] = []
        while self._lines:
            ticket = self._take_head(self._first_line())
            if ticket.is_abandoned:
                continue
            if ticket.deadline_s <= now_s:
                expired.append(ticket)
            elif now_s + self._latency.predict_s(ticket.num_rows) > ticket.deadline_s:
                hopeless.append(ticket)
            else:
                return ticket, hopeless
        return None, hopeless

    def _take_mates(self, first: Ticket, now_s: float) -> tuple[tuple[Ticket, ...], Closed]:
        """Take out what runs together with `first`: those of its shape, the more urgent first."""
        taken = [first]
        num_rows, deadline_s = first.num_rows, first.deadline_s
        while line := self._line_of(first.shape_key):
            ticket = line[0]
            if ticket.is_abandoned:
                self._take_head(line)
                continue
            num_rows += ticket.num_rows
            deadline_s = min(deadline_s, ticket.deadline_s)
            if num_rows > self.max_batch_rows:
                return tuple(taken), Closed.FULL
            if now_s + self._latency.predict_s(num_rows) > deadline_s:
                return tuple(taken), Closed.DEADLINE
            taken.append(self._take_head(line))
        return tuple(taken), Closed.QUEUE_EMPTY

    def _first_line(self) -> deque[Ticket]:
        lines = self._lines
        if len(lines) == 1:
            return next(iter(lines.values()))
        return min(lines.values(), key=lambda line: (line[0].priority, line[0].number))

    def _line_of(self, shape_key: Hashable) -> deque[Ticket] | None:
        """Return the most urgent line of a shape."""
        if len(self._lines) == 1:
            ((_, only), line) = next(iter(self._lines.items()))
            return line if only == shape_key else None
        levels = [priority for priority, shape in self._lines if shape == shape_key]
        return self._lines[min(levels), shape_key] if levels else None

    def _take_head(self, line: deque[Ticket]) -> Ticket:
        ticket = line.popleft()
        self._forget(line, ticket)
        return ticket

    def _forget(self, line: deque[Ticket], ticket: Ticket) -> None:
        self._num_waiting -= 1
        self._num_rows -= ticket.num_rows
        self._rows_by_priority[ticket.priority] -= ticket.num_rows
        if not line:
            del self._lines[ticket.priority, ticket.shape_key]

    def _waiting(self) -> Iterable[Ticket]:
        return [ticket for line in self._lines.values() for ticket in line]

    def _refuse(self, wait_s: float, reason: str) -> None:
        self._num_refused += 1
        raise Overloaded(retry_after_s=max(wait_s, 0.001), reason=reason)


def _bucket(num_rows: int) -> int:
    """Return the next power of two."""
    return 1 << (num_rows - 1).bit_length()
