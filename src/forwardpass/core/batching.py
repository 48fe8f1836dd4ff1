"""Which requests run together, and which are refused: decisions only, no clock, thread or socket.

The rule is work-conserving with late binding: nothing waits while the worker is idle, and while it is busy the next
batch grows. At low load a request runs alone at once; at high load batches are as large as they may be. There is no
window to set. The one exception is `regathering`, a millisecond for those who were answered together.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice

from forwardpass.core.batch_sizes import padded_rows
from forwardpass.core.latency import LatencyEstimate
from forwardpass.errors import Overloaded

__all__ = [
    "LOWEST_PRIORITY",
    "NORMAL_PRIORITY",
    "Batch",
    "BatchQueue",
    "Closed",
    "QueueStatistics",
    "Ticket",
]

NORMAL_PRIORITY = 5
LOWEST_PRIORITY = 9

WORTHWHILE = 0.95
"""A batch whose rows per second come within 5 % of the best is good enough to keep the oldest ticket in it: the same
margin below which the profile takes a gain from batching for noise."""

MAX_LOOKED_AT = 256
"""Tickets from the head of a line that are weighed against each other at most."""

SIZE_SMOOTHING = 1 / 4
"""For the running mean of how large batches have been."""

CAUTION_GAINED = 1 / 2
"""Of what is missing, when a request is dropped that had been taken in: predictions were too good …"""
CAUTION_LOST = 1e-3
"""… and of what is there, with every request that runs: refusing those who would have been in time is no better."""


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A waiting request: how many rows it has, what it can be stacked with, and until when it is of use."""

    num_rows: int
    shape_key: Hashable
    row_size: int = 1
    """Elements of one row, over all inputs: what a row costs beside its number."""
    deadline_s: float
    family: Hashable = None
    """Shapes of one family can be padded to the largest of them without changing an answer; None for no padding."""
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
    SHAPE = "shape"
    """What else waits has other shapes."""
    SHARED = "shared"
    """Other workers are free for the rest."""
    ALONE = "alone"
    """It is run again by itself, after a batch that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What to run now, oldest first, and what came too late for it.

    `num_rows` is how many rows it is to be run with: those of the tickets, and the padding up to an allowed size.
    `row_size` is that of the largest row, to which the others are padded where their shapes differ.
    """

    tickets: tuple[Ticket, ...] = ()
    expired: tuple[Ticket, ...] = ()
    closed: Closed = Closed.QUEUE_EMPTY
    num_rows: int = 0
    row_size: int = 1


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


class BatchQueue:
    """Tickets by priority and then in order of arrival, taken out in batches of one shape, or of one family of shapes.

    `batch_sizes`, if there are any, are the only sizes that may run: a batch is padded up to the next of them.
    """

    def __init__(
        self,
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        latency: LatencyEstimate,
        num_workers: int = 1,
        batch_sizes: tuple[int, ...] = (),
    ) -> None:
        self.max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._latency = latency
        self.num_workers = num_workers
        self._batch_sizes = batch_sizes
        self._lines: dict[tuple[int, Hashable], deque[Ticket]] = {}
        self._rows_by_priority: Counter[int] = Counter()
        self._num_waiting = self._num_rows = self._next_number = 0
        self._num_refused = self._num_expired = self._num_batches = self._num_batched = 0
        self._mean_rows = 1.0
        self._caution = 0.0
        """How far a newcomer reckons with a batch as large as they have been lately, from 0 to 1."""

    def admit(self, ticket: Ticket, *, now_s: float, busy_until_s: float, rows_elsewhere: int = 0) -> None:
        """Refuse a ticket that would come too late; `busy_until_s` is when the first worker is free.

        `rows_elsewhere` wait outside of this queue, and count for its limit.

        A request that finds the queue empty is always accepted: one prediction that was far too high must not lock
        everybody out for ever.

        Raises:
            Overloaded: the queue is full, or the predicted wait is longer than the ticket's deadline allows.
        """
        if not self._num_waiting and not rows_elsewhere:
            return
        wait_s, run_s = self._predict_way(ticket)
        wait_s += max(busy_until_s - now_s, 0.0)
        num_rows = self._num_rows + rows_elsewhere
        retry_after_s = max(wait_s, 0.001)
        if num_rows + ticket.num_rows > self._max_queue_rows:
            self._num_refused += 1
            raise Overloaded.queue_full(retry_after_s=retry_after_s, num_rows=num_rows, max_rows=self._max_queue_rows)
        if now_s + wait_s + run_s > ticket.deadline_s:
            self._num_refused += 1
            raise Overloaded.too_late(retry_after_s=retry_after_s, needed_s=wait_s + run_s)

    def put(self, ticket: Ticket) -> None:
        """Take in a ticket that was admitted."""
        ticket.number = self._next_number
        self._next_number += 1
        self._lines.setdefault((ticket.priority, ticket.shape_key), deque()).append(ticket)
        self._num_waiting += 1
        self._num_rows += ticket.num_rows
        self._rows_by_priority[ticket.priority] += ticket.num_rows

    def pop_batch(self, *, now_s: float, num_free: int = 1) -> Batch:
        """Return the tickets to run now; empty when nothing waits that is still of use.

        Of so many free workers, each gets its part of what waits: nobody is idle while another runs a large batch.

        The oldest ticket decides the shape, and others of its shape join it in order, as long as the batch is in time
        for all of them. A ticket that cannot be in time is dropped here, before it costs anything; but where that
        would leave the worker idle, it is tried: predictions can be wrong. And where the oldest have so little time
        left that the batch with them would be small, and so slow per row that those behind them would come too late
        in their turn, they are given up for the others' sake.
        """
        expired: list[Ticket] = []
        most = self._padded(-(-self._num_rows // num_free)) if num_free > 1 else self.max_batch_rows
        first = self._take_first(expired, now_s)
        self._note_expired(len(expired))
        if first is None:
            return Batch(expired=tuple(expired))
        draft = _Draft(first)
        closed = self._fill(draft, now_s, min(most, self.max_batch_rows))
        self._num_batches += 1
        self._num_batched += len(draft.tickets)
        self._mean_rows += SIZE_SMOOTHING * (draft.num_rows - self._mean_rows)
        self._caution -= min(CAUTION_LOST * len(draft.tickets), 1.0) * self._caution
        return Batch(
            tickets=tuple(draft.tickets),
            expired=tuple(expired),
            closed=closed,
            num_rows=self._padded(draft.num_rows),
            row_size=draft.row_size,
        )

    def batch_of(self, ticket: Ticket) -> Batch:
        """Return a batch of one ticket, which has been in the queue and is to run alone."""
        num_rows = self._padded(ticket.num_rows)
        return Batch(tickets=(ticket,), closed=Closed.ALONE, num_rows=num_rows, row_size=ticket.row_size)

    def curve(self, row_size: int) -> tuple[Sequence[float], Sequence[float]]:
        """Return what is known of the latency of rows of a size: rows, and seconds for as many."""
        return self._latency.curve(row_size)

    def predict_s(self, batch: Batch) -> float:
        """Predict how long a batch will run."""
        return self._latency.predict_s(batch.num_rows, batch.row_size)

    def saved_by_sharing_s(self, some_rows: int, other_rows: int, like: Batch) -> float:
        """Predict what running rows together saves, against some of them alone and then the others."""
        alone_s, behind_s, together_s = (
            self._predict_s(num_rows, like.row_size) for num_rows in (some_rows, other_rows, some_rows + other_rows)
        )
        return alone_s + behind_s - together_s

    def observe(self, batch: Batch, seconds: float) -> None:
        """Take note of how long a batch has run."""
        self._latency.observe(batch.num_rows, seconds, batch.row_size)

    def drop_expired(self, *, now_s: float) -> tuple[Ticket, ...]:
        """Take out and return every ticket whose deadline has passed."""
        late = [ticket for ticket in self._waiting() if ticket.deadline_s <= now_s]
        for ticket in late:
            line = self._lines[ticket.priority, ticket.shape_key]
            line.remove(ticket)
            self._forget(line, ticket)
        expired = tuple(ticket for ticket in late if not ticket.is_abandoned)
        self._note_expired(len(expired))
        return expired

    def drain(self) -> tuple[Ticket, ...]:
        """Take out everything, oldest first."""
        everything = tuple(sorted(self._waiting(), key=lambda ticket: ticket.number))
        self._lines.clear()
        self._rows_by_priority.clear()
        self._num_waiting = self._num_rows = 0
        return everything

    def num_rows_ahead(self, priority: int) -> int:
        """Return the rows of those that run before a newcomer of a priority."""
        return sum(rows for level, rows in self._rows_by_priority.items() if level <= priority)

    @property
    def num_waiting_rows(self) -> int:
        """Rows of all that wait."""
        return self._num_rows

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

    # --- predictions

    def _padded(self, num_rows: int) -> int:
        """Return with how many rows so many are run."""
        return padded_rows(num_rows, self._batch_sizes)

    def _predict_s(self, num_rows: int, row_size: int) -> float:
        return self._latency.predict_s(self._padded(num_rows), row_size)

    def _predict_way(self, ticket: Ticket) -> tuple[float, float]:
        """Predict how long a newcomer waits for full batches ahead of it, and how long its own will run.

        Its own batch holds what is left of those ahead; who comes later joins only if that is in time for all. But
        where such a batch is given up for a larger one, it had better have reckoned with that: after requests that were
        taken in for nothing, a newcomer reckons with a batch as large as they have been lately.
        """
        most = self.max_batch_rows
        ahead = self.num_rows_ahead(ticket.priority)
        full, rest = divmod(ahead, most)
        rows = rest + ticket.num_rows
        if rest and rows > most:
            full, rows = full + 1, ticket.num_rows
        wait_s = full * self._predict_s(most, ticket.row_size) / self.num_workers if full else 0.0
        run_s = self._predict_s(rows, ticket.row_size)
        usual = min(round(self._mean_rows), most)
        if usual > rows:
            run_s += self._caution * (self._predict_s(usual, ticket.row_size) - run_s)
        return wait_s, run_s

    def _note_expired(self, num_expired: int) -> None:
        self._num_expired += num_expired
        for _ in range(num_expired):
            self._caution += CAUTION_GAINED * (1 - self._caution)

    # --- what runs together

    def _take_first(self, expired: list[Ticket], now_s: float) -> Ticket | None:
        """Take out the ticket that the next batch starts with, and those before it that are given up.

        Lines are looked at in the order of their oldest tickets, until one of them has a ticket that can be in time.
        """
        hopeless: list[Ticket] = []
        while line := self._next_line(expired, now_s):
            num_given_up = self._num_given_up(line, now_s)
            if num_given_up is not None:
                expired += [self._take_head(line) for _ in range(num_given_up)] + hopeless
                return self._take_head(line)
            hopeless += [self._take_head(line) for _ in range(min(len(line), MAX_LOOKED_AT))]
        if not hopeless:
            return None
        tried = max(hopeless, key=lambda ticket: ticket.deadline_s)
        hopeless.remove(tried)
        expired += hopeless
        return tried

    def _next_line(self, expired: list[Ticket], now_s: float) -> deque[Ticket] | None:
        """Return the line whose turn it is; what is of no use any more is taken from its head first."""
        while self._lines:
            line = self._first_line()
            head = line[0]
            if head.is_abandoned:
                self._take_head(line)
            elif head.deadline_s <= now_s:
                expired.append(self._take_head(line))
            else:
                return line
        return None

    def _num_given_up(self, line: deque[Ticket], now_s: float) -> int | None:
        """Return how many of the oldest to give up, so that the next batch is worthwhile; None if none can be in time.

        For each of the oldest: the largest batch that starts with it and is in time for it, and its rows per second.
        The first one that comes near the best of them stays. Where batching gains nothing, nobody is given up, and
        neither where those behind a small batch have time enough for a full one after it.
        """
        head = line[0]
        if now_s + self._predict_s(max(self.max_batch_rows, head.num_rows), head.row_size) <= head.deadline_s:
            return 0
        num_left = sum(ticket.num_rows for ticket in line)
        if self._others_can_wait(line, num_left, now_s):
            return 0
        rates: list[float] = []
        for ticket in islice(line, MAX_LOOKED_AT):
            most = max(min(num_left, self.max_batch_rows), ticket.num_rows)
            num_rows = self._largest_in_time(most, ticket, now_s)
            rates.append(num_rows / (self._predict_s(num_rows, ticket.row_size) or 1e-9) if num_rows else 0.0)
            num_left -= ticket.num_rows
            if num_rows == most:
                break
        best = max(rates)
        return next(at for at, rate in enumerate(rates) if rate >= WORTHWHILE * best) if best else None

    def _others_can_wait(self, line: deque[Ticket], num_rows: int, now_s: float) -> bool:
        """Tell whether the head can run in what batch is in time for it, and those behind in a full one after it."""
        head = line[0]
        first = self._largest_in_time(max(min(num_rows, self.max_batch_rows), head.num_rows), head, now_s)
        taken = 0
        for ticket in line:
            if taken + ticket.num_rows > first:
                most = max(min(num_rows - taken, self.max_batch_rows), ticket.num_rows)
                done_s = now_s + self._predict_s(taken, head.row_size) + self._predict_s(most, ticket.row_size)
                return bool(taken) and done_s <= ticket.deadline_s
            taken += ticket.num_rows
        return True

    def _largest_in_time(self, most: int, ticket: Ticket, now_s: float) -> int:
        """Return the most rows, up to `most`, that run before the ticket's deadline; 0 if even its own do not."""
        slack_s = ticket.deadline_s - now_s
        if self._predict_s(most, ticket.row_size) <= slack_s:
            return most
        low, high = ticket.num_rows - 1, most
        while high - low > 1:
            middle = (low + high) // 2
            if self._predict_s(middle, ticket.row_size) <= slack_s:
                low = middle
            else:
                high = middle
        return low if low >= ticket.num_rows else 0

    def _fill(self, draft: _Draft, now_s: float, most: int) -> Closed:
        """Take out what runs together with the first: those of its shape, the more urgent first, then its family."""
        full_s = now_s + self._predict_s(self.max_batch_rows, draft.row_size)
        while line := self._line_of(draft.first.shape_key):
            ticket = line[0]
            if ticket.is_abandoned:
                self._take_head(line)
                continue
            num_rows = draft.num_rows + ticket.num_rows
            if num_rows > most:
                return self._full(num_rows)
            deadline_s = min(draft.deadline_s, ticket.deadline_s)
            if full_s > deadline_s and now_s + self._predict_s(num_rows, draft.row_size) > deadline_s:
                return Closed.DEADLINE
            draft.add(self._take_head(line))
        if not self._lines:
            return Closed.QUEUE_EMPTY
        return self._fill_with_family(draft, now_s, most) if draft.first.family is not None else Closed.SHAPE

    def _fill_with_family(self, draft: _Draft, now_s: float, most: int) -> Closed:
        """Take out those of other shapes that are faster padded to the largest and run now than run by themselves."""
        for line in sorted(self._lines.values(), key=lambda line: (line[0].priority, line[0].number)):
            while line and line[0].family == draft.first.family:
                ticket = line[0]
                if ticket.is_abandoned:
                    self._take_head(line)
                    continue
                num_rows, row_size = draft.num_rows + ticket.num_rows, max(draft.row_size, ticket.row_size)
                if num_rows > most:
                    return self._full(num_rows)
                together_s = self._predict_s(num_rows, row_size)
                if now_s + together_s > min(draft.deadline_s, ticket.deadline_s):
                    return Closed.DEADLINE
                apart_s = self._predict_s(draft.num_rows, draft.row_size)
                if together_s >= apart_s + self._predict_s(ticket.num_rows, ticket.row_size):
                    break
                draft.add(self._take_head(line))
        return Closed.SHAPE if self._lines else Closed.QUEUE_EMPTY

    def _full(self, num_rows: int) -> Closed:
        return Closed.FULL if num_rows > self.max_batch_rows else Closed.SHARED

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


class _Draft:
    """A batch that still grows."""

    __slots__ = ("deadline_s", "first", "num_rows", "row_size", "tickets")

    def __init__(self, first: Ticket) -> None:
        self.first = first
        self.tickets = [first]
        self.num_rows = first.num_rows
        self.row_size = first.row_size
        self.deadline_s = first.deadline_s

    def add(self, ticket: Ticket) -> None:
        self.tickets.append(ticket)
        self.num_rows += ticket.num_rows
        self.row_size = max(self.row_size, ticket.row_size)
        self.deadline_s = min(self.deadline_s, ticket.deadline_s)
