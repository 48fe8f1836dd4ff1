"""Between the routes and the worker: does what the queue decides, and gives every request exactly one answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forwardpass.core.tensors import Array, Signature
from forwardpass.errors import DeadlineExceeded, InputRejected, NotReady, RequestError, WorkerLost
from forwardpass.serve.batching import BatchQueue, LatencyEstimate, Ticket
from forwardpass.serve.channel import Done, Failed
from forwardpass.serve.process import WorkerListener, WorkerProcess, WorkerState

__all__ = ["Dispatcher", "Request"]

Answer = Callable[[dict[str, Array] | RequestError], None]
HANG_FACTOR = 20


@dataclass(slots=True, eq=False, kw_only=True)
class Request(Ticket):
    """A ticket with its tensors, and whom to tell.

    `answer` is called once, on the event loop, with the outputs or an error. The outputs are views that are valid
    during the call only.
    """

    tensors: dict[str, Array]
    answer: Answer
    timeout_s: float
    is_answered: bool = False

    def finish(self, result: dict[str, Array] | RequestError) -> None:
        """Answer, unless that has happened or nobody listens any more."""
        if not self.is_answered and not self.is_abandoned:
            self.is_answered = True
            self.answer(result)


class Dispatcher:
    """Feeds one worker from one queue."""

    def __init__(
        self, *, model: str, signature: Signature, queue: BatchQueue, latency: LatencyEstimate, hang_s: float
    ) -> None:
        self._model = model
        self._input_names = [spec.name for spec in signature.inputs]
        self._queue = queue
        self._latency = latency
        self._hang_s = hang_s
        self._loop = asyncio.get_running_loop()
        self._running: Sequence[Request] = ()
        self._retries: deque[Request] = deque()
        self._started_s = self._expected_s = self._hang_due_s = 0.0
        self._num_rows = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._hang_alarm: asyncio.TimerHandle | None = None
        self._worker: WorkerProcess | None = None
        self.listener = WorkerListener(
            on_idle=self._pump, on_done=self._on_done, on_failed=self._on_failed, on_lost=self._on_lost
        )

    def attach(self, worker: WorkerProcess) -> None:
        """Take the worker that was made with this dispatcher's listener."""
        self._worker = worker

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._running and not self._retries and not len(self._queue)

    def submit(self, request: Request) -> None:
        """Queue a request and run it as soon as the worker is free.

        Raises:
            Overloaded: it would come too late.
        """
        now_s = self._loop.time()
        busy_until_s = self._started_s + self._expected_s if self._running else now_s
        self._queue.push(request, now_s=now_s, busy_until_s=busy_until_s)
        self._set_alarm(request.deadline_s)
        self._pump()

    def close(self) -> None:
        """Answer whatever is left, with regret."""
        for request in (*self._running, *self._retries, *self._queue.drain()):
            assert isinstance(request, Request), "only requests are submitted"
            request.finish(NotReady(reason="it was stopped before the request could be answered"))
        self._running = ()
        for alarm in (self._alarm, self._hang_alarm):
            if alarm is not None:
                alarm.cancel()

    def _pump(self) -> None:
        """Give the worker something to do if it is free."""
        while self._worker is not None and self._worker.state is WorkerState.IDLE and not self._running:
            batch = self._next_batch()
            if not batch:
                return
            self._start(batch)

    def _next_batch(self) -> Sequence[Request]:
        while self._retries:
            request = self._retries.popleft()
            if not request.is_abandoned and not request.is_answered:
                return (request,)
        if not len(self._queue):
            return ()
        batch = self._queue.pop_batch(now_s=self._loop.time())
        for late in batch.expired:
            self._expire(late)
        return batch.tickets  # type: ignore[return-value]  # only requests are submitted

    def _start(self, batch: Sequence[Request]) -> None:
        assert self._worker is not None, "_pump checked it"
        parts = ((name, [request.tensors[name] for request in batch]) for name in self._input_names)
        placed = self._worker.arena.place(parts)
        self._running = batch
        self._started_s = self._loop.time()
        self._num_rows = sum(request.num_rows for request in batch)
        self._expected_s = self._latency.predict_s(self._num_rows)
        self._hang_due_s = self._started_s + max(self._hang_s, HANG_FACTOR * self._expected_s)
        if self._hang_alarm is None or self._hang_due_s < self._hang_alarm.when():
            if self._hang_alarm is not None:
                self._hang_alarm.cancel()
            self._hang_alarm = self._loop.call_at(self._hang_due_s, self._check_hang)
        self._worker.run(placed)

    def _finish_run(self) -> Sequence[Request]:
        batch, self._running = self._running, ()
        return batch

    def _check_hang(self) -> None:
        """Replace the worker if its batch is overdue; one timer is moved along, none made per batch."""
        self._hang_alarm = None
        if not self._running or self._worker is None:
            return
        if self._loop.time() >= self._hang_due_s:
            self._worker.replace()
        else:
            self._hang_alarm = self._loop.call_at(self._hang_due_s, self._check_hang)

    def _on_done(self, message: Done) -> None:
        assert self._worker is not None, "only a worker answers"
        batch = self._finish_run()
        self._latency.observe(self._num_rows, self._loop.time() - self._started_s)
        outputs = {placed.name: self._worker.arena.view(placed) for placed in message.outputs}
        if len(batch) == 1:
            batch[0].finish(outputs)
        else:
            start = 0
            for request in batch:
                end = start + request.num_rows
                request.finish({name: array[start:end] for name, array in outputs.items()})
                start = end
        self._pump()

    def _on_failed(self, message: Failed) -> None:
        """One request of the batch is at fault: run each alone, so that only that one hears of it."""
        batch = self._finish_run()
        if len(batch) == 1:
            batch[0].finish(InputRejected(model=self._model, kind=message.message))
        else:
            self._retries.extend(batch)
        self._pump()

    def _on_lost(self) -> None:
        for request in self._finish_run():
            request.finish(WorkerLost(model=self._model))

    def _expire(self, ticket: Ticket) -> None:
        assert isinstance(ticket, Request), "only requests are submitted"
        ticket.finish(DeadlineExceeded(deadline_s=ticket.timeout_s))

    def _set_alarm(self, deadline_s: float) -> None:
        """Wake at the earliest deadline; most requests are answered long before, so one timer serves all."""
        if self._alarm is None or deadline_s < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(deadline_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now_s = self._loop.time()
        for late in self._queue.drop_expired(now_s=now_s):
            self._expire(late)
        for request in (*self._running, *self._retries):
            if request.deadline_s <= now_s:
                self._expire(request)
        deadlines = [request.deadline_s for request in (*self._running, *self._retries) if not request.is_answered]
        if (waiting := self._queue.earliest_deadline_s) is not None:
            deadlines.append(waiting)
        if deadlines:
            self._set_alarm(min(deadlines))
