"""The latency of a model by batch size: measured when a bundle is built, used by the batcher and the planner."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

__all__ = ["LatencyPoint", "LatencyTable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPoint:
    """How long one call with `batch_size` rows takes."""

    batch_size: int
    p50_s: float
    p95_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """Latencies at a few measured batch sizes, in increasing order, and the model that fills the gaps.

    Between two measured sizes the latency is interpolated; beyond the last one it grows by the cost per row there.

    >>> table = LatencyTable(num_threads=1, points=(
    ...     LatencyPoint(batch_size=1, p50_s=0.002, p95_s=0.003),
    ...     LatencyPoint(batch_size=8, p50_s=0.009, p95_s=0.010)))
    >>> round(table.predict_s(4), 6)
    0.006
    """

    num_threads: int
    points: tuple[LatencyPoint, ...]

    def predict_s(self, num_rows: int) -> float:
        """Predict the tail latency (p95) of a call with `num_rows` rows."""
        return self._interpolate([point.p95_s for point in self.points], num_rows)

    def predict_median_s(self, num_rows: int) -> float:
        """Predict the median latency of a call with `num_rows` rows."""
        return self._interpolate([point.p50_s for point in self.points], num_rows)

    @property
    def best_batch_size(self) -> int:
        """The measured batch size with the highest throughput; the smaller one where the gain is under 5 %."""
        best = self.points[0]
        for point in self.points[1:]:
            if point.batch_size / point.p50_s > 1.05 * best.batch_size / best.p50_s:
                best = point
        return best.batch_size

    def _interpolate(self, latencies_s: list[float], num_rows: int) -> float:
        sizes = [point.batch_size for point in self.points]
        at = bisect_left(sizes, num_rows)
        if at < len(sizes) and sizes[at] == num_rows:
            return latencies_s[at]
        if at == 0:
            return latencies_s[0]
        if at == len(sizes):
            return latencies_s[-1] / sizes[-1] * num_rows
        share = (num_rows - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
        return latencies_s[at - 1] + share * (latencies_s[at] - latencies_s[at - 1])
