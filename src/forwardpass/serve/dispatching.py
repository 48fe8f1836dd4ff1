"""Between the routes and the workers: does what the queue decides, and gives every request exactly one answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from forwardpass.core.batching import NORMAL_PRIORITY, Batch, BatchQueue, Closed, QueueStatistics, Ticket
from forwardpass.core.regathering import LEAST_BATCH_S, Regathering, Wait
from forwardpass.core.tensors import Signature
from forwardpass.core.wide_runs import WideRuns
from forwardpass.errors import (
    DeadlineExceeded,
    InputRejected,
    NotReady,
    OutOfMemory,
    Overloaded,
    RequestError,
    RequestQuarantined,
)
from forwardpass.serve.channel import OUT_OF_MEMORY, Done, Failed, Placed
from forwardpass.serve.lines import Line, LineBatch
from forwardpass.serve.metrics import ModelMetrics
from forwardpass.serve.padding import ShapePadding
from forwardpass.serve.process import WorkerListener, WorkerProcess, WorkerState
from forwardpass.serve.quarantine import Quarantine
from forwardpass.serve.request import Gathering, Request, Result
from forwardpass.serve.timers import call_at

__all__ = ["Dispatcher"]

HANG_FACTOR = 20
INTERNAL = "The answer could not be given because of an error in the server; its log says more."
NO_BATCH = Batch()
RELEARN_S = 5e-3
"""How old what an empty line knows of the latency may be: it does not need it for what comes next."""

log = logging.getLogger("forwardpass.serve")


@dataclass(slots=True, eq=False)
class _Lane:
    """One worker, and the batch that it is running."""

    worker: WorkerProcess
    batch: Sequence[Request] = ()
    line_batch: LineBatch | None = None
    running: Batch = field(default_factory=Batch)
    started_s: float = 0.0
    expected_s: float = 0.0
    hang_due_s: float = 0.0
    hang_alarm: asyncio.TimerHandle | None = field(default=None)
    is_wide: bool = False
    """Whether the batch runs on all cores."""

    @property
    def is_free(self) -> bool:
        return not self.batch and self.line_batch is None and self.worker.state is WorkerState.IDLE

    @property
    def is_busy(self) -> bool:
        return bool(self.batch) or self.line_batch is not None


class Dispatcher:
    """Feeds the workers of one model version from one queue."""

    def __init__(
        self,
        *,
        model: str,
        signature: Signature,
        queue: BatchQueue,
        padding: ShapePadding,
        metrics: ModelMetrics,
        hang_s: float,
        wide_runs: WideRuns | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._now_s = clock
        self._signature = signature
        self._queue = queue
        self._padding = padding
        self._metrics = metrics
        self._hang_s = hang_s
        self._wide_runs = wide_runs
        self._loop = asyncio.get_running_loop()
        self._lanes: list[_Lane] = []
        self._retries: deque[Request] = deque()
        self._quarantine = Quarantine()
        self._alarm: asyncio.TimerHandle | None = None
        self._line: Line | None = None
        self._is_turn_of_line = False
        self._relearn_s = 0.0
        self._regathering = Regathering(queue)
        self._wait: Wait | None = None
        self._wait_alarm: asyncio.TimerHandle | None = None

    def add_line(self, line: Line) -> None:
        """Take batches from `line`, too; where it and the queue have something to run, they take turns."""
        self._line = line
        line.learn(self._queue.curve(line.row_size))
        self._tell_line()

    def on_news(self, deadline_s: float | None) -> None:
        """The line has new requests, of which the first is of use until `deadline_s`."""
        if deadline_s is not None:
            self._set_alarm(deadline_s)
        if self._line is not None and len(self._line):
            self._note_newcomer()
        self._pump()

    def statistics(self) -> QueueStatistics:
        """Return what the queue and the line hold and have done."""
        queue = self._queue.statistics()
        if self._line is None:
            return queue
        names = [field.name for field in fields(QueueStatistics)]
        of_line = zip(names, self._line.statistics(), strict=True)
        return QueueStatistics(**{name: getattr(queue, name) + number for name, number in of_line})

    def add_worker(self, make: Callable[[WorkerListener], WorkerProcess]) -> WorkerProcess:
        """Take in the worker that `make` makes for the listener that it is given."""
        lane: _Lane
        listener = WorkerListener(
            on_idle=self._pump,
            on_done=lambda message: self._on_done(lane, message),
            on_failed=lambda message: self._on_failed(lane, message),
            on_lost=lambda: self._on_lost(lane),
        )
        lane = _Lane(make(listener))
        self._lanes.append(lane)
        return lane.worker

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        waits = self._retries or len(self._queue) or (self._line is not None and len(self._line))
        return not (waits or any(lane.is_busy for lane in self._lanes))

    def submit(self, request: Request) -> None:
        """Queue a request and run it as soon as a worker is free; one that is larger than a batch may be, in parts.

        Raises:
            Overloaded: it would come too late.
            RequestQuarantined: the same tensors have ended two workers.
        """
        now_s = request.arrived_s = self._now_s()
        try:
            self._admit(request, now_s)
        except (Overloaded, RequestQuarantined) as refusal:
            self._metrics.finished(refusal, 0.0, request.num_rows)
            raise
        for part in self._parts(request):
            self._queue.put(part)
        self._note_newcomer()
        self._set_alarm(request.deadline_s)
        self._pump()

    def _admit(self, request: Request, now_s: float) -> None:
        if self._quarantine and (left_s := self._quarantine.seconds_left(request.tensors, now_s=now_s)):
            raise RequestQuarantined(seconds=left_s)
        busy_until_s = self._busy_until_s(now_s)
        in_line = self._line.num_waiting_rows if self._line is not None else 0
        if self._line is not None and in_line and request.priority >= NORMAL_PRIORITY:
            busy_until_s += self._line.backlog_s
        self._queue.admit(request, now_s=now_s, busy_until_s=busy_until_s, rows_elsewhere=in_line)

    def close(self) -> None:
        """Answer whatever is left, with regret, and let go of the workers and the line, which lead back here."""
        left = [request for lane in self._lanes for request in self._take_running(lane)]
        if self._line is not None:
            self._line.note(is_open=False, busy_until_s=0.0, rows_ahead=0, rows_elsewhere=0, max_batch_rows=1)
            left += self._line.drain()
        for request in (*left, *self._retries, *self._queue.drain()):
            assert isinstance(request, Request), "only requests are submitted"
            self._finish(request, NotReady(reason="it was stopped before the request could be answered"))
        self._retries.clear()
        for lane in self._lanes:
            _cancel(lane.hang_alarm)
        _cancel(self._alarm)
        _cancel(self._wait_alarm)
        self._lanes.clear()
        self._line = None

    # --- what runs next

    def _busy_until_s(self, now_s: float) -> float:
        """Return when the first worker will be free."""
        lanes = [lane for lane in self._lanes if lane.is_wide] or self._lanes
        return min((lane.started_s + lane.expected_s if lane.is_busy else now_s for lane in lanes), default=now_s)

    def _parts(self, request: Request) -> Sequence[Request]:
        most = self._queue.max_batch_rows
        if request.num_rows <= most or not self._signature.is_batchable:
            return (request,)
        starts = range(0, request.num_rows, most)
        gather = Gathering(request, len(starts), self._finish)
        return [gather.part(number, start, start + most) for number, start in enumerate(starts)]

    def _pump(self) -> None:
        """Give every free worker something to do."""
        for lane in self._lanes:
            while lane.is_free and not self._is_held and not self._is_waiting() and self._feed(lane):
                pass
        if self._line is not None:
            self._tell_line()

    @property
    def _is_held(self) -> bool:
        """Whether a lone request has all cores, so that no worker begins."""
        return self._wide_runs is not None and any(lane.is_wide for lane in self._lanes)

    def _note_newcomer(self) -> None:
        if self._wide_runs is not None:
            self._wide_runs.joined(now_s=self._now_s())

    def _starts_wide(self, lane: _Lane, batch: Batch) -> bool:
        """Tell whether a batch that was just taken is a lone request, and runs on all cores."""
        if self._wide_runs is None or not lane.worker.has_wide or batch.closed is Closed.ALONE:
            return False
        is_alone = len(lane.line_batch or lane.batch) == 1 and not self._num_waiting() and not self._retries
        others_are_free = all(other.is_free for other in self._lanes if other is not lane)
        return is_alone and others_are_free and self._wide_runs.start(batch, now_s=lane.started_s)

    def _num_free(self) -> int:
        return sum(lane.is_free for lane in self._lanes) if len(self._lanes) > 1 else 1

    def _num_waiting(self) -> int:
        return len(self._queue) + (len(self._line) if self._line is not None else 0)

    def _await_again(self, lane: _Lane, batch: Batch, num_answered: int) -> None:
        """Wait a moment for those that a worker has just answered, where that is likely to pay."""
        if lane.expected_s < LEAST_BATCH_S:
            return
        if self._wait is not None:
            self._wait = self._regathering.longer(self._wait, batch, num_answered=num_answered)
            return
        self._wait = self._regathering.wait_after(
            batch,
            num_answered=num_answered,
            num_waiting=self._num_waiting(),
            num_running=sum(len(other.line_batch or other.batch) for other in self._lanes),
        )
        if self._wait is not None:
            self._wait_alarm = call_at(self._loop, self._now_s() + self._wait.seconds, self._give_up_waiting)

    def _is_waiting(self) -> bool:
        if self._wait is not None and (self._num_waiting() >= self._wait.num_wanted or self._retries):
            self._end_wait(self._wait)
        return self._wait is not None

    def _give_up_waiting(self) -> None:
        if self._wait is not None:
            self._end_wait(self._wait)
            self._pump()

    def _end_wait(self, wait: Wait) -> None:
        _cancel(self._wait_alarm)
        self._wait = self._wait_alarm = None
        self._regathering.learn(wait, self._num_waiting())

    def _feed(self, lane: _Lane) -> bool:
        """Give a free worker the next batch; return whether there was one."""
        while self._retries and (self._retries[0].is_abandoned or self._retries[0].is_answered):
            self._retries.popleft()
        if self._line is None or self._retries or not len(self._line):
            return self._feed_from_queue(lane)
        self._is_turn_of_line = not (self._is_turn_of_line and len(self._queue))
        if self._is_turn_of_line:
            return self._feed_from_line(lane, self._line) or self._feed_from_queue(lane)
        return self._feed_from_queue(lane) or self._feed_from_line(lane, self._line)

    def _feed_from_queue(self, lane: _Lane) -> bool:
        batch = self._next_batch()
        if not batch.tickets:
            return False
        lane.batch = batch.tickets  # type: ignore[assignment]  # only requests are submitted
        self._start(lane, batch, lambda: lane.worker.arena.place(self._padding.stack(lane.batch, batch.num_rows)))
        return True

    def _feed_from_line(self, lane: _Lane, line: Line) -> bool:
        taken = line.next_batch(self._now_s(), self._num_free())
        if taken is None:
            return False
        batch = Batch(closed=Closed(taken.closed), num_rows=taken.num_padded, row_size=line.row_size)
        self._metrics.closed(batch.closed)
        lane.line_batch = taken
        self._start(lane, batch, lambda: line.place(taken, lane.worker.arena))
        return True

    def _tell_line(self) -> None:
        """Tell the line whether it may take requests in, and what it cannot see."""
        assert self._line is not None, "there is a line"
        self._line.note(
            is_open=not (self._quarantine and self._quarantine.is_closed_to_some),
            busy_until_s=self._busy_until_s(self._now_s()),
            rows_ahead=self._queue.num_rows_ahead(NORMAL_PRIORITY),
            rows_elsewhere=self._queue.num_waiting_rows,
            max_batch_rows=self._queue.max_batch_rows,
        )

    def _next_batch(self) -> Batch:
        while self._retries:
            request = self._retries.popleft()
            if not request.is_abandoned and not request.is_answered:
                batch = self._queue.batch_of(request)
                self._metrics.closed(batch.closed)
                return batch
        if not len(self._queue):
            return NO_BATCH
        batch = self._queue.pop_batch(now_s=self._now_s(), num_free=self._num_free())
        for late in batch.expired:
            self._expire(late)
        if batch.tickets:
            self._metrics.closed(batch.closed)
        return batch

    def _start(self, lane: _Lane, batch: Batch, place: Callable[[], tuple[Placed, ...]]) -> None:
        lane.running = batch
        try:
            placed = place()
        except (MemoryError, OSError) as error:
            self._divide(lane, Failed(OUT_OF_MEMORY, str(error)))
            return
        lane.started_s = self._now_s()
        lane.is_wide = self._starts_wide(lane, batch)
        predictor = self._wide_runs if lane.is_wide and self._wide_runs is not None else self._queue
        lane.expected_s = predictor.predict_s(batch)
        lane.hang_due_s = lane.started_s + max(self._hang_s, HANG_FACTOR * lane.expected_s)
        if lane.hang_alarm is None or lane.hang_due_s < lane.hang_alarm.when():
            _cancel(lane.hang_alarm)
            lane.hang_alarm = call_at(self._loop, lane.hang_due_s, self._check_hang, lane)
        lane.worker.run(placed, is_wide=lane.is_wide)

    def _check_hang(self, lane: _Lane) -> None:
        """Replace the worker if its batch is overdue; one timer is moved along, none made per batch."""
        lane.hang_alarm = None
        if not lane.is_busy:
            return
        if self._now_s() >= lane.hang_due_s:
            lane.worker.replace()
        else:
            lane.hang_alarm = call_at(self._loop, lane.hang_due_s, self._check_hang, lane)

    # --- what came of it

    def _on_done(self, lane: _Lane, message: Done) -> None:
        if not lane.is_busy:
            return  # this has been closed, and everybody was told
        # Until the worker was done, not until this loop got to it: a loop that is busy refusing would believe that the
        # model had become slow, and go on refusing what the idle worker could answer.
        running, lane.running = lane.running, NO_BATCH  # an idle worker keeps no tensors and no client
        self._learn(lane, running, max(message.ended_s - lane.started_s, 0.0))
        if self._line is not None and (len(self._line) or message.ended_s > self._relearn_s):
            self._relearn_s = message.ended_s + RELEARN_S
            self._line.learn(self._queue.curve(self._line.row_size))
        if lane.line_batch is not None:
            num_answered = len(lane.line_batch)
            self._answer_line(lane, message)
            self._await_again(lane, running, num_answered)
            self._pump()
            return
        batch, lane.batch = lane.batch, ()
        self._metrics.batch(sum(request.num_rows for request in batch), message.compute_s)
        outputs = {placed.name: lane.worker.arena.view(placed) for placed in message.outputs}
        start = 0
        for request in batch:
            self._metrics.queued(lane.started_s - request.arrived_s)
            if request.is_accused:
                self._quarantine.acquit((request.whole or request).tensors)
            is_whole = len(batch) == 1 and request.num_rows == running.num_rows
            self._finish(request, outputs if is_whole else self._padding.part(outputs, start, request, running))
            start += request.num_rows
        self._await_again(lane, running, len(batch))
        self._pump()

    def _learn(self, lane: _Lane, batch: Batch, seconds: float) -> None:
        """Take note of how long a batch has run; what it took on all cores says nothing of the workers."""
        if not lane.is_wide:
            self._queue.observe(batch, seconds)
        if self._wide_runs is not None:
            self._wide_runs.ended(batch, seconds, was_wide=lane.is_wide)
            self._metrics.num_wide_batches += lane.is_wide
            lane.is_wide = False

    def _answer_line(self, lane: _Lane, message: Done) -> None:
        batch = lane.line_batch
        assert self._line is not None, "the batch is of a line"
        assert batch is not None, "a batch of it was running"
        self._metrics.batch(batch.num_rows, message.compute_s)
        if self._line.answer(batch, lane.worker.arena, message, started_s=lane.started_s):
            lane.line_batch = None
        else:
            self._retries.extend(self._take_running(lane))

    def _on_failed(self, lane: _Lane, message: Failed) -> None:
        if lane.is_busy:
            self._divide(lane, message)
            self._pump()

    def _take_running(self, lane: _Lane) -> Sequence[Request]:
        """Take the batch from a worker that will not answer it; of a line, those who still wait."""
        lane.is_wide = False
        batch, lane.batch = lane.batch, ()
        line_batch, lane.line_batch = lane.line_batch, None
        if line_batch is None:
            return batch
        assert self._line is not None, "the batch is of a line"
        return self._line.release(line_batch)

    def _divide(self, lane: _Lane, failure: Failed) -> None:
        """One request is at fault, or all are too much: run each alone, so that only that one hears of it."""
        is_of_line = lane.line_batch is not None
        batch = self._take_running(lane)
        if len(batch) > 1 or is_of_line:
            self._retries.extend(batch)
        elif failure.slug == OUT_OF_MEMORY:
            self._finish(batch[0], OutOfMemory(model=self._model))
        else:
            self._finish(batch[0], InputRejected(model=self._model, kind=failure.message))

    def _on_lost(self, lane: _Lane) -> None:
        """Nothing has been answered, so nothing is lost: run each again, alone, unless it was there twice."""
        self._metrics.worker_lost()
        batch = self._take_running(lane)
        tensors = [(request.whole or request).tensors for request in batch]
        for request, seconds in zip(batch, self._quarantine.accuse(tensors, now_s=self._now_s()), strict=True):
            request.is_accused = True
            if seconds:
                log.warning("a request has ended two workers of %s; the like is refused for %g s", self._model, seconds)
                self._finish(request, RequestQuarantined(seconds=seconds))
            else:
                self._retries.append(request)
        self._pump()

    def _finish(self, request: Request, result: Result) -> None:
        """Answer, unless that has happened or nobody listens any more."""
        if request.is_answered or request.is_abandoned:
            return
        request.is_answered = True
        seconds = self._now_s() - request.arrived_s
        try:
            request.answer(result)
        except Exception as error:  # its batch-mates, and everybody who waits, must not pay for it
            log.exception("an answer could not be given")
            result = OutOfMemory(model=self._model) if isinstance(error, MemoryError) else RequestError(INTERNAL)
            request.answer(result)
        if request.whole is None:
            self._metrics.finished(result, seconds, request.num_rows)

    # --- deadlines

    def _expire(self, ticket: Ticket) -> None:
        assert isinstance(ticket, Request), "only requests are submitted"
        self._finish(ticket, DeadlineExceeded(deadline_s=ticket.timeout_s))

    def _set_alarm(self, deadline_s: float) -> None:
        """Wake at the earliest deadline; most requests are answered long before, so one timer serves all."""
        if self._alarm is None or deadline_s < self._alarm.when():
            _cancel(self._alarm)
            self._alarm = call_at(self._loop, deadline_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now_s = self._now_s()
        for late in self._queue.drop_expired(now_s=now_s):
            self._expire(late)
        running = [request for lane in self._lanes for request in (*lane.batch, *self._retries)]
        for request in running:
            if request.deadline_s <= now_s:
                self._expire(request)
        deadlines = [request.deadline_s for request in running if not request.is_answered]
        if (waiting := self._queue.earliest_deadline_s) is not None:
            deadlines.append(waiting)
        if self._line is not None:
            batches = [lane.line_batch for lane in self._lanes if lane.line_batch is not None]
            if (in_line := self._line.expire(now_s, batches)) is not None:
                deadlines.append(in_line)
        if deadlines:
            self._set_alarm(min(deadlines))


def _cancel(alarm: asyncio.TimerHandle | None) -> None:
    if alarm is not None:
        alarm.cancel()
