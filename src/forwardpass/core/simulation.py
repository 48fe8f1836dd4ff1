"""What the batcher would do: the same queue, in virtual time, in front of workers whose latency is a function.

An hour of traffic takes seconds. The planner asks it for the tail latency and the goodput of a setting that nobody has
deployed yet, and the server's own dispatcher is tested against it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from forwardpass.core.batching import NORMAL_PRIORITY, Batch, BatchQueue, Ticket
from forwardpass.core.regathering import LEAST_BATCH_S, Regathering, Wait
from forwardpass.core.statistics import percentile
from forwardpass.core.tensors import Array
from forwardpass.core.wide_runs import WideRuns
from forwardpass.errors import Overloaded

__all__ = ["AllCores", "Arrival", "Fate", "SimulatedBatch", "Simulation", "poisson_arrivals", "simulate"]

Service = Callable[[int, int], float]
"""Seconds that a batch of so many rows, each of so many elements, takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request of the traffic: when it comes, how many rows it has, and within how many seconds it is of use."""

    at_s: float
    timeout_s: float
    num_rows: int = 1
    row_size: int = 1
    shape_key: str = ""
    priority: int = NORMAL_PRIORITY


class Fate(StrEnum):
    """What became of a request."""

    ANSWERED = "answered"
    REFUSED = "refused"
    EXPIRED = "expired"
    """It was dropped before it ran, or its answer came too late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedBatch:
    """What ran together: the numbers of the arrivals, in order."""

    started_s: float
    ended_s: float
    arrivals: tuple[int, ...]
    is_wide: bool = False
    """Whether it ran on all cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllCores:
    """When a lone request runs on all cores, with the first worker, and how long it takes there."""

    runs: WideRuns
    service: Service


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulation:
    """What became of every arrival. `latencies_s` is NaN for those that were not answered in time."""

    fates: tuple[Fate, ...]
    latencies_s: Array
    batches: tuple[SimulatedBatch, ...]
    duration_s: float
    """From the first arrival to the last one."""

    @property
    def goodput(self) -> float:
        """Requests answered in time, per second."""
        return self.fates.count(Fate.ANSWERED) / self.duration_s if self.duration_s else 0.0

    @property
    def share_in_time(self) -> float:
        """How many of the offered requests were answered in time, from 0 to 1."""
        return self.fates.count(Fate.ANSWERED) / len(self.fates) if self.fates else 1.0

    def latency_s(self, percent: float) -> float:
        """Return a percentile of the latencies of those that were answered; NaN if there are none."""
        answered = self.latencies_s[np.isfinite(self.latencies_s)]
        return percentile(answered, percent) if len(answered) else float("nan")


def poisson_arrivals(
    rate_per_s: float, *, duration_s: float, timeout_s: float, generator: np.random.Generator
) -> list[Arrival]:
    """Return requests of one row that come independently of each other, `rate_per_s` on average."""
    num = generator.poisson(rate_per_s * duration_s)
    return [Arrival(at_s=float(at), timeout_s=timeout_s) for at in np.sort(generator.uniform(0, duration_s, num))]


def simulate(
    arrivals: Sequence[Arrival],
    queue: BatchQueue,
    *,
    service: Service,
    num_workers: int = 1,
    all_cores: AllCores | None = None,
) -> Simulation:
    """Run the traffic, which is in order of time, through the queue and `num_workers` equal workers."""
    run = _Run(arrivals, queue, service, num_workers, all_cores)
    run.play()
    return Simulation(
        fates=tuple(run.fates),
        latencies_s=np.array(run.latencies_s),
        batches=tuple(run.batches),
        duration_s=arrivals[-1].at_s - arrivals[0].at_s if arrivals else 0.0,
    )


@dataclass(slots=True, eq=False, kw_only=True)
class _Ticket(Ticket):
    arrival: int


@dataclass(order=True, slots=True)
class _Running:
    """A worker at work: when it is done, and what the queue expects."""

    ended_s: float
    worker: int
    expected_s: float = field(compare=False)
    started_s: float = field(compare=False)
    tickets: tuple[_Ticket, ...] = field(compare=False)
    batch: Batch = field(compare=False)
    is_wide: bool = field(compare=False)


class _Run:
    def __init__(
        self,
        arrivals: Sequence[Arrival],
        queue: BatchQueue,
        service: Service,
        num_workers: int,
        all_cores: AllCores | None,
    ) -> None:
        self._arrivals = arrivals
        self._queue = queue
        self._service = service
        self._regathering = Regathering(queue)
        self._num_workers = num_workers
        self._all_cores = all_cores
        self._free = set(range(num_workers))
        self._wait: Wait | None = None
        self._wait_until_s = float("inf")
        self._running: list[_Running] = []
        self._alarm_s = float("inf")
        self.fates: list[Fate] = [Fate.EXPIRED] * len(arrivals)
        self.latencies_s: list[float] = [float("nan")] * len(arrivals)
        self.batches: list[SimulatedBatch] = []

    def play(self) -> None:
        for number, arrival in enumerate(self._arrivals):
            self._run_until(arrival.at_s)
            self._arrive(number, arrival)
        self._run_until(float("inf"))

    def _run_until(self, now_s: float) -> None:
        while self._running or self._wait is not None:
            ended_s = self._running[0].ended_s if self._running else float("inf")
            if min(ended_s, self._wait_until_s) > now_s:
                return
            if self._wait is not None and self._wait_until_s < ended_s:
                over_s = self._wait_until_s
                self._drop_late(over_s)
                self._end_wait(self._wait)
                self._pump(over_s)
            else:
                self._finish(heapq.heappop(self._running))

    def _finish(self, done: _Running) -> None:
        self._drop_late(done.ended_s)
        self._free.add(done.worker)
        self._end(done)
        self._await_again(done)
        self._pump(done.ended_s)

    def _await_again(self, done: _Running) -> None:
        num_answered = len(done.tickets)
        if done.expected_s < LEAST_BATCH_S:
            return
        if self._wait is not None:
            self._wait = self._regathering.longer(self._wait, done.batch, num_answered=num_answered)
            return
        self._wait = self._regathering.wait_after(
            done.batch,
            num_answered=num_answered,
            num_waiting=len(self._queue),
            num_running=sum(len(running.tickets) for running in self._running),
        )
        if self._wait is not None:
            self._wait_until_s = done.ended_s + self._wait.seconds

    def _end_wait(self, wait: Wait) -> None:
        self._wait, self._wait_until_s = None, float("inf")
        self._regathering.learn(wait, len(self._queue))

    def _arrive(self, number: int, arrival: Arrival) -> None:
        now_s = arrival.at_s
        ticket = _Ticket(
            num_rows=arrival.num_rows,
            row_size=arrival.row_size,
            shape_key=arrival.shape_key,
            deadline_s=now_s + arrival.timeout_s,
            priority=arrival.priority,
            arrival=number,
        )
        self._drop_late(now_s)
        try:
            self._queue.admit(ticket, now_s=now_s, busy_until_s=self._busy_until_s(now_s))
        except Overloaded:
            self.fates[number] = Fate.REFUSED
            return
        self._queue.put(ticket)
        if self._all_cores is not None:
            self._all_cores.runs.joined(now_s=now_s)
        self._alarm_s = min(self._alarm_s, ticket.deadline_s)
        self._pump(now_s)

    def _drop_late(self, now_s: float) -> None:
        if now_s >= self._alarm_s:
            self._forget(self._queue.drop_expired(now_s=now_s))
            self._alarm_s = self._queue.earliest_deadline_s or float("inf")

    def _busy_until_s(self, now_s: float) -> float:
        if self._free and not self._is_held:
            return now_s
        return min(running.started_s + running.expected_s for running in self._running)

    def _pump(self, now_s: float) -> None:
        for worker in sorted(self._free):
            if self._wait is not None and len(self._queue) >= self._wait.num_wanted:
                self._end_wait(self._wait)
            if self._wait is None and not self._is_held and len(self._queue):
                self._feed(worker, now_s)

    @property
    def _is_held(self) -> bool:
        """Whether a lone request has all cores, so that no worker begins."""
        return any(running.is_wide for running in self._running)

    def _feed(self, worker: int, now_s: float) -> None:
        batch = self._queue.pop_batch(now_s=now_s, num_free=len(self._free))
        self._forget(batch.expired)
        if not batch.tickets:
            return
        tickets = tuple(ticket for ticket in batch.tickets if isinstance(ticket, _Ticket))
        is_alone = len(tickets) == 1 and not len(self._queue) and len(self._free) == self._num_workers
        is_wide = self._all_cores is not None and is_alone and self._all_cores.runs.start(batch, now_s=now_s)
        service, predict_s = self._service, self._queue.predict_s
        if is_wide and self._all_cores is not None:
            service, predict_s = self._all_cores.service, self._all_cores.runs.predict_s
        ended_s = now_s + service(batch.num_rows, batch.row_size)
        heapq.heappush(self._running, _Running(ended_s, worker, predict_s(batch), now_s, tickets, batch, is_wide))
        self._free.remove(worker)

    def _end(self, done: _Running) -> None:
        seconds = done.ended_s - done.started_s
        if not done.is_wide:
            self._queue.observe(done.batch, seconds)
        if self._all_cores is not None:
            self._all_cores.runs.ended(done.batch, seconds, was_wide=done.is_wide)
        arrivals = tuple(ticket.arrival for ticket in done.tickets)
        self.batches.append(
            SimulatedBatch(started_s=done.started_s, ended_s=done.ended_s, arrivals=arrivals, is_wide=done.is_wide)
        )
        for ticket in done.tickets:
            if done.ended_s <= ticket.deadline_s:
                self.fates[ticket.arrival] = Fate.ANSWERED
                self.latencies_s[ticket.arrival] = done.ended_s - self._arrivals[ticket.arrival].at_s

    def _forget(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            assert isinstance(ticket, _Ticket), "only arrivals are put in"
            self.fates[ticket.arrival] = Fate.EXPIRED
