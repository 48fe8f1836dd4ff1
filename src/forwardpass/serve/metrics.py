"""What happened, counted: events come in on the way of a request, numbers go out when somebody asks.

Counting is on the hot path, so it is plain additions; the text that Prometheus reads is made by its own library.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

from forwardpass.core.batching import Closed
from forwardpass.core.tensors import Array
from forwardpass.errors import RequestError

__all__ = ["BATCH_EDGES", "Histogram", "ModelMetrics", "SizeStatistics", "latency_edges"]

LATENCY_EDGES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_EDGES = tuple(float(2**power) for power in range(11))
DIFFERENCE_EDGES = tuple(10.0**power for power in range(-8, 2))


class Histogram:
    """Counts by buckets; a value on an edge belongs to the bucket below it, as in Prometheus."""

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(edges)
        self.counts = [0] * (len(self.edges) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.edges, value)] += 1
        self.total += value

    @property
    def num_values(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Return how many values are at most each edge, the last one for all."""
        running, rows = 0, []
        for edge, count in zip((*map(str, self.edges), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((edge, float(running)))
        return rows


class SizeStatistics:
    """How often a batch size ran, and for how long altogether."""

    __slots__ = ("compute_s", "num_batches")

    def __init__(self) -> None:
        self.num_batches = 0
        self.compute_s = 0.0


class ModelMetrics:
    """Everything counted for one version of one model."""

    def __init__(self, *, slo_s: float | None) -> None:
        self.total = Histogram(latency_edges(slo_s))
        self.queue = Histogram(latency_edges(slo_s))
        self.compute = Histogram(latency_edges(slo_s))
        self.batch_rows = Histogram(BATCH_EDGES)
        self.shadow_difference = Histogram(DIFFERENCE_EDGES)
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[Closed] = Counter()
        self.by_size: dict[int, SizeStatistics] = {}
        self.num_rows = 0
        self.num_workers_lost = 0
        self.num_wide_batches = 0
        """Batches that ran on all cores, of one request each."""
        self.withdrawals: Counter[str] = Counter()
        """How often the version was taken out of a split, by what was wrong with it."""
        self.failed_s = 0.0
        self.last_s = 0.0
        """When the last answer was given, in seconds since 1970."""
        self.latest_queue_s = self.latest_compute_s = 0.0
        self.latest_rows = 0
        """Of the request that is being answered, and of its batch; for traces."""

    def closed(self, reason: Closed) -> None:
        """A batch was closed."""
        self.reasons[reason] += 1

    def batch(self, num_rows: int, compute_s: float) -> None:
        """A batch has run."""
        self.latest_rows, self.latest_compute_s = num_rows, compute_s
        self.compute.observe(compute_s)
        self.batch_rows.observe(num_rows)
        size = self.by_size.get(num_rows)
        if size is None:
            size = self.by_size[num_rows] = SizeStatistics()
        size.num_batches += 1
        size.compute_s += compute_s

    def queued(self, seconds: float) -> None:
        """A request waited so long before it ran."""
        self.latest_queue_s = seconds
        self.queue.observe(seconds)

    def finished(self, result: Mapping[str, Array] | RequestError, seconds: float, num_rows: int) -> None:
        """A request got its answer."""
        if isinstance(result, RequestError):
            self.outcomes[result.slug] += 1
            self.failed_s += seconds
        else:
            self.outcomes["ok"] += 1
            self.num_rows += num_rows
            self.last_s = time.time()
            self.total.observe(seconds)

    def worker_lost(self) -> None:
        """A worker ended that nobody had stopped."""
        self.num_workers_lost += 1

    @property
    def num_failed(self) -> int:
        """Requests that got an error."""
        return sum(self.outcomes.values()) - self.outcomes["ok"]


def latency_edges(slo_s: float | None) -> tuple[float, ...]:
    """Return the edges of a latency histogram, one of them on the target: how many were in time is then exact."""
    return tuple(sorted({*LATENCY_EDGES, *([slo_s] if slo_s else [])}))
