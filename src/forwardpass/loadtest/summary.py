"""What a run says: pure statistics over what was written down about each request.

Latency is counted from the time at which a request was *due*. A server that stalls for a second is charged with all
requests that were due meanwhile, also with those that could not even be sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus

import numpy as np
from numpy.typing import NDArray

from forwardpass.core.measurement import Interval, Measurement
from forwardpass.core.slo import Slo
from forwardpass.core.statistics import bootstrap_interval, percentile
from forwardpass.loadtest.messages import Fate, Ran

__all__ = ["Failure", "GeneratorReport", "LoadSummary", "Requests", "TailPoint", "Window", "recovery_s", "summarise"]

NUM_WINDOWS = 30
NUM_RESAMPLES = 200
MAX_RESAMPLED = 200_000
"""Beyond, every second, third … answer stands for its neighbours when intervals are computed."""
BUSY_SHARE = 0.9
"""Of a core: a generator that uses more is itself a queue."""
LAG_SHARE = 0.1
"""Of the latency's p99: with more lag than that, the numbers describe the generator, too."""
LAG_FLOOR_S = 1e-3
"""Less lag than this is what any scheduler does."""
ONE_IN = (1, 2, 4, 10, 20, 40, 100, 200, 400, 1000, 2000, 4000, 10_000, 100_000)
"""Where a distribution is stated: the latency that one request in so many exceeds."""

_FATE_WORDS = {
    Fate.TIMED_OUT: "no answer in time",
    Fate.REFUSED: "connection refused",
    Fate.HUNG_UP: "connection closed before the answer",
    Fate.GARBAGE: "answer is not HTTP",
}

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requests:
    """What was written down about each request: arrays of the same length, times in seconds from the start."""

    scheduled_s: Floats
    released_s: Floats
    """When the generator came to it."""
    sent_s: Floats
    """When it had a connection; not a number if never."""
    done_s: Floats
    fates: NDArray[np.uint8]
    statuses: NDArray[np.uint16]

    @classmethod
    def from_run(cls, ran: Ran) -> Requests:
        """Unpack what the generator's process sent."""
        return cls(
            scheduled_s=np.frombuffer(ran.scheduled_s),
            released_s=np.frombuffer(ran.released_s),
            sent_s=np.frombuffer(ran.sent_s),
            done_s=np.frombuffer(ran.done_s),
            fates=np.frombuffer(ran.fates, np.uint8),
            statuses=np.frombuffer(ran.statuses, np.uint16),
        )

    def __len__(self) -> int:
        return len(self.scheduled_s)

    @property
    def latency_s(self) -> Floats:
        """From the time when a request was due to its end."""
        return self.done_s - self.scheduled_s

    @property
    def are_answered(self) -> NDArray[np.bool_]:
        """Which of them were answered as expected."""
        return self.fates == Fate.ANSWERED

    def are_in_time(self, limit_s: float) -> NDArray[np.bool_]:
        """Which of them were answered as expected and within the limit."""
        return self.are_answered & (self.latency_s <= limit_s)

    def shifted(self, by_s: float) -> Requests:
        """Return the same requests with another zero of time."""
        return replace(
            self,
            scheduled_s=self.scheduled_s + by_s,
            released_s=self.released_s + by_s,
            sent_s=self.sent_s + by_s,
            done_s=self.done_s + by_s,
        )

    def between(self, begin_s: float, end_s: float) -> Requests:
        """Return those that were due in `[begin_s, end_s)`."""
        chosen = (self.scheduled_s >= begin_s) & (self.scheduled_s < end_s)
        return Requests(
            scheduled_s=self.scheduled_s[chosen],
            released_s=self.released_s[chosen],
            sent_s=self.sent_s[chosen],
            done_s=self.done_s[chosen],
            fates=self.fates[chosen],
            statuses=self.statuses[chosen],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A way to fail, and how many requests did."""

    what: str
    num_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of the run: the requests that were due in it. Percentiles are of good answers; None without any."""

    start_s: float
    num_offered: int
    num_failed: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TailPoint:
    """One request in `one_in` takes longer than `seconds`."""

    one_in: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorReport:
    """How well the generator did its own work."""

    has_schedule: bool
    """Whether requests were due at given times; where answers said when, there is no lag."""
    lag_p50_s: float
    lag_p99_s: float
    lag_max_s: float
    """How late it came to a request that was due. It is part of the latency."""
    lag_tail: tuple[TailPoint, ...]
    num_waited: int
    """Requests that waited for a connection."""
    num_connections: int
    most_connections: int
    cpu_share: float
    """Of one core."""
    limit_per_s: float | None
    """About what it could send with a whole core; None if it did too little to tell."""
    warnings: tuple[str, ...]
    """Where the generator may have been the limit, in sentences; empty if it was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSummary:
    """A run in numbers. Latencies are those of good answers, counted from when each request was due."""

    duration_s: float
    num_offered: int
    offered_per_s: float
    num_succeeded: int
    throughput_per_s: float
    """Good answers per second."""
    p50_s: Measurement | None
    p90_s: Measurement | None
    p95_s: Measurement | None
    p99_s: Measurement | None
    max_s: float | None
    share_in_time: float | None
    """Of all that were offered; None without a target."""
    goodput_per_s: float | None
    """Good answers in time per second; None without a target."""
    failures: tuple[Failure, ...]
    windows: tuple[Window, ...]
    tail: tuple[TailPoint, ...]
    generator: GeneratorReport


def summarise(
    requests: Requests,
    *,
    begin_s: float,
    duration_s: float,
    slo: Slo | None,
    ran: Ran,
    max_connections: int | None,
    with_intervals: bool = True,
) -> LoadSummary:
    """Reduce requests that were due within `duration_s` from `begin_s` to numbers.

    `max_connections` is the bound of an open loop's pool, None for a closed loop.
    """
    requests = requests.shifted(-begin_s)
    good = requests.are_answered
    latency_s = requests.latency_s[good]
    in_time = requests.are_in_time(slo.limit_s) if slo is not None else None
    num_resamples = NUM_RESAMPLES if with_intervals else 0
    p50_s, p90_s, p95_s, p99_s = (
        _measured(requests.scheduled_s[good], latency_s, percent, duration_s, num_resamples)
        for percent in (50, 90, 95, 99)
    )
    return LoadSummary(
        duration_s=duration_s,
        num_offered=len(requests),
        offered_per_s=len(requests) / duration_s,
        num_succeeded=int(good.sum()),
        throughput_per_s=int(good.sum()) / duration_s,
        p50_s=p50_s,
        p90_s=p90_s,
        p95_s=p95_s,
        p99_s=p99_s,
        max_s=float(latency_s.max()) if len(latency_s) else None,
        share_in_time=float(in_time.mean()) if in_time is not None and len(in_time) else None,
        goodput_per_s=int(in_time.sum()) / duration_s if in_time is not None else None,
        failures=_failures(requests),
        windows=_windows(requests, duration_s),
        tail=_tail(latency_s),
        generator=_generator(requests, ran, max_connections, latency_s),
    )


def recovery_s(
    requests: Requests, *, overload_end_s: float, normal_s: float, run_length: int, required_share: float
) -> float | None:
    """Return how long after the end of an overload the latencies are normal again; None if they never are.

    That is when the first request is due from which on, of `run_length` requests in a row, at least `required_share`
    were answered within `normal_s`.
    """
    after = requests.between(overload_end_s, np.inf)
    normal = after.are_in_time(normal_s).astype(np.int64)
    if len(normal) < run_length:
        return None
    sums = np.concatenate(([0], np.cumsum(normal)))
    in_a_row = sums[run_length:] - sums[:-run_length]
    starts = np.flatnonzero((in_a_row >= required_share * run_length - 1e-9) & (normal[: len(in_a_row)] == 1))
    return float(after.scheduled_s[starts[0]]) - overload_end_s if len(starts) else None


def _measured(
    scheduled_s: Floats, latency_s: Floats, percent: float, duration_s: float, num_resamples: int
) -> Measurement | None:
    """Return a percentile with an interval from resampling whole stretches of the run: neighbours share their fate."""
    if not len(latency_s):
        return None
    value = percentile(latency_s, percent)
    interval = Interval(low=value, high=value)
    if num_resamples:
        interval = _block_interval(scheduled_s, latency_s, percent, duration_s, num_resamples)
    return Measurement(
        value=value,
        unit="s",
        interval=Interval(low=min(interval.low, value), high=max(interval.high, value)),
        num_repetitions=len(latency_s),
    )


def _block_interval(
    scheduled_s: Floats, latency_s: Floats, percent: float, duration_s: float, num_resamples: int
) -> Interval:
    step = -(-len(latency_s) // MAX_RESAMPLED)
    order = np.argsort(latency_s[::step])
    ordered = latency_s[::step][order]
    blocks = _window_of(scheduled_s[::step][order], duration_s)

    def resampled(drawn: NDArray[np.int64]) -> float:
        weights = np.cumsum(np.bincount(drawn, minlength=NUM_WINDOWS)[blocks])
        rank = np.searchsorted(weights, percent / 100 * weights[-1]) if weights[-1] else len(ordered) - 1
        return float(ordered[rank])

    return bootstrap_interval(np.arange(NUM_WINDOWS), resampled, num_resamples=num_resamples)


def _window_of(scheduled_s: Floats, duration_s: float) -> NDArray[np.int64]:
    return np.clip((scheduled_s / duration_s * NUM_WINDOWS).astype(np.int64), 0, NUM_WINDOWS - 1)


def _windows(requests: Requests, duration_s: float) -> tuple[Window, ...]:
    window_of = _window_of(requests.scheduled_s, duration_s)
    latency_s, good = requests.latency_s, requests.are_answered
    windows = []
    for number in range(NUM_WINDOWS):
        inside = window_of == number
        answered = latency_s[inside & good]
        p50_s, p95_s, p99_s = (percentile(answered, p) if len(answered) else None for p in (50, 95, 99))
        windows.append(
            Window(
                start_s=number * duration_s / NUM_WINDOWS,
                num_offered=int(inside.sum()),
                num_failed=int(inside.sum()) - len(answered),
                p50_s=p50_s,
                p95_s=p95_s,
                p99_s=p99_s,
            )
        )
    return tuple(windows)


def _failures(requests: Requests) -> tuple[Failure, ...]:
    """Count the ways to fail, the most frequent first."""
    counts: Counter[str] = Counter()
    for fate, words in _FATE_WORDS.items():
        counts[words] = int((requests.fates == fate).sum())
    wrong = requests.statuses[requests.fates == Fate.WRONG_STATUS]
    for status, number in zip(*np.unique(wrong, return_counts=True), strict=True):
        counts[_status_words(int(status))] = int(number)
    return tuple(Failure(what=what, num_requests=number) for what, number in counts.most_common() if number)


def _status_words(status: int) -> str:
    try:
        return f"status {status} ({HTTPStatus(status).phrase.lower()})"
    except ValueError:
        return f"status {status}"


def _tail(seconds: Floats) -> tuple[TailPoint, ...]:
    """State a distribution by how many requests exceed what, as far as there are enough of them."""
    known = [one_in for one_in in ONE_IN if one_in <= len(seconds)]
    return tuple(TailPoint(one_in=n, seconds=percentile(seconds, 100 * (1 - 1 / n))) for n in known)


def _generator(requests: Requests, ran: Ran, max_connections: int | None, latency_s: Floats) -> GeneratorReport:
    lag_s = np.nan_to_num(requests.released_s - requests.scheduled_s)
    lag_p50_s, lag_p99_s = (percentile(lag_s, percent) if len(lag_s) else 0.0 for percent in (50, 99))
    with np.errstate(invalid="ignore"):
        waited = ~(requests.sent_s - requests.released_s < LAG_FLOOR_S)
    cpu_share = ran.cpu_s / ran.wall_s
    rate_per_s = len(ran.fates) / ran.wall_s
    p99_s = percentile(latency_s, 99) if len(latency_s) else None
    return GeneratorReport(
        has_schedule=max_connections is not None,
        lag_p50_s=lag_p50_s,
        lag_p99_s=lag_p99_s,
        lag_max_s=float(lag_s.max()) if len(lag_s) else 0.0,
        lag_tail=_tail(lag_s),
        num_waited=int(waited.sum()),
        num_connections=ran.num_connections,
        most_connections=ran.most_connections,
        cpu_share=cpu_share,
        limit_per_s=rate_per_s / cpu_share if ran.cpu_s > 0.05 else None,
        warnings=tuple(
            _warnings(
                lag_p99_s=lag_p99_s,
                p99_s=p99_s,
                cpu_share=cpu_share,
                waited_share=float(waited.mean()) if len(waited) else 0.0,
                is_at_bound=max_connections is not None and ran.most_connections >= max_connections,
                max_connections=max_connections,
            )
        ),
    )


def _warnings(
    *,
    lag_p99_s: float,
    p99_s: float | None,
    cpu_share: float,
    waited_share: float,
    is_at_bound: bool,
    max_connections: int | None,
) -> Sequence[str]:
    found = []
    if p99_s is not None and lag_p99_s > max(LAG_SHARE * p99_s, LAG_FLOOR_S):
        found.append(
            f"The generator was late: one request in a hundred was sent {lag_p99_s * 1e3:.3g} ms or more after it was "
            f"due, and the latency's p99 of {p99_s * 1e3:.3g} ms holds that, too. Give it a core of its own."
        )
    if cpu_share > BUSY_SHARE:
        found.append(
            f"The generator used {cpu_share:.0%} of a core: it was the limit. Lower the rate, or run several on other "
            "machines."
        )
    if is_at_bound and waited_share > 0.01:
        found.append(
            f"All {max_connections} connections were in use and {waited_share:.0%} of the requests waited for one, as "
            "they would in a client with such a pool. --max-connections raises the bound."
        )
    return found
