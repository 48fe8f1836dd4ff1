"""The latency of a model by batch size: measured when a bundle is built, corrected by what a server observes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LatencyEstimate", "LatencyPoint", "LatencyTable"]

SMOOTHING = 1 / 8
DEVIATION_SMOOTHING = 1 / 4
NUM_SEEN_IN_TABLE = 4
"""For how many observations the word of a table counts, when the first real one comes in."""
NUM_DEVIATIONS = 2.0
"""As TCP estimates round trips (RFC 6298): a running mean and mean deviation need no history and forget old load."""
MAX_KNOWN = 4096
"""Sizes for which the word of the table is kept at hand."""


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
    row_size: int = 0
    """Elements of one row, over all inputs, in the calls that were measured; 0 where nobody noted it."""

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


class LatencyEstimate:
    """Predicts how long a batch takes: from the bundle's table at first, then from what was observed.

    What was observed is kept in buckets: the rows of a batch, and the elements of one row, in powers of two. Between
    buckets it is interpolated; a bucket that was never seen takes the table's word, times how far the table has been
    off elsewhere. A prediction never exceeds that of a larger batch, nor that of smaller batches run one after
    another: so one outlier cannot keep a size from ever being tried again.
    """

    def __init__(self, table: LatencyTable | None) -> None:
        self._seen: dict[int, dict[int, _Seen]] = {}
        self._curves: dict[int, _Curve] = {}
        self._adopt(table)

    def learn_table(self, table: LatencyTable) -> None:
        """Take over a table that was measured after the start."""
        self._adopt(table)
        self._curves.clear()

    def _adopt(self, table: LatencyTable | None) -> None:
        self._table, self._bias = table, 1.0
        self._from_table_s: dict[tuple[int, int], float] = {}
        points = table.points if table is not None else ()
        self._table_points = [(_bucket(point.batch_size), point.batch_size) for point in points]

    def predict_s(self, num_rows: int, row_size: int = 1) -> float:
        """Predict the time of a batch, on the safe side of the mean; 0 while nothing is known."""
        return self._known(row_size).at(num_rows)

    def curve(self, row_size: int = 1) -> tuple[Sequence[float], Sequence[float]]:
        """Return the points between which is interpolated: rows, and the seconds that as many take."""
        known = self._known(row_size)
        return known.rows, known.seconds

    def observe(self, num_rows: int, seconds: float, row_size: int = 1) -> None:
        """Take note of a batch that has run."""
        of_size = self._seen.setdefault(_bucket(row_size), {})
        bucket = _bucket(num_rows)
        table_s = self._by_table_s(num_rows, row_size)
        if bucket in of_size:
            of_size[bucket].add(num_rows, seconds)
        elif table_s is not None:
            expected_s = self._bias * table_s
            of_size[bucket] = _Seen(num_rows, expected_s, expected_s / 4, num_seen=NUM_SEEN_IN_TABLE)
            of_size[bucket].add(num_rows, seconds)
        else:
            of_size[bucket] = _Seen(num_rows, seconds)
        if table_s is not None:
            ratio = seconds / max(table_s, 1e-9)
            self._bias += SMOOTHING * (min(max(ratio, self._bias / 4), 4 * self._bias) - self._bias)
        self._curves.clear()

    def _by_table_s(self, num_rows: int, row_size: int) -> float | None:
        """Return what the table says, if there is one; the same sizes are asked for again and again."""
        if self._table is None:
            return None
        known = self._from_table_s.get((num_rows, row_size))
        if known is None:
            if len(self._from_table_s) >= MAX_KNOWN:
                self._from_table_s.clear()
            known = self._from_table_s[num_rows, row_size] = _from_table(self._table, num_rows, row_size)
        return known

    def _known(self, row_size: int) -> _Curve:
        size = _bucket(row_size)
        curve = self._curves.get(size)
        if curve is None:
            curve = self._curves[size] = self._curve(size)
        return curve

    def _curve(self, size: int) -> _Curve:
        seen = self._seen.get(size) or self._scaled(size)
        points = {bucket: (one.num_rows, one.safe_s) for bucket, one in seen.items()}
        for bucket, batch_size in self._table_points:
            if bucket not in points and (table_s := self._by_table_s(batch_size, size)) is not None:
                points[bucket] = (float(batch_size), self._bias * table_s)
        return _Curve(sorted(points.values()))

    def _scaled(self, size: int) -> dict[int, _Seen]:
        """Return what is known of other sizes of rows, as if a larger row took longer in proportion."""
        scaled: dict[int, _Seen] = {}
        for other, of_size in sorted(self._seen.items(), reverse=True):
            for bucket, one in of_size.items():
                guess = one.times(max(1.0, size / other))
                if bucket not in scaled or guess.safe_s < scaled[bucket].safe_s:
                    scaled[bucket] = guess
        return scaled


class _Seen:
    """Batches of about one size: running means of their rows and seconds, and of how far the seconds deviate."""

    __slots__ = ("deviation_s", "mean_s", "num_rows", "num_seen")

    def __init__(self, num_rows: float, mean_s: float, deviation_s: float | None = None, *, num_seen: int = 1) -> None:
        self.num_rows = float(num_rows)
        self.mean_s = mean_s
        self.deviation_s = mean_s / 2 if deviation_s is None else deviation_s
        self.num_seen = num_seen

    def add(self, num_rows: int, seconds: float) -> None:
        """Take note of one more; of the first few each counts alike, so that a slow first one is soon outweighed."""
        self.num_seen += 1
        share = max(SMOOTHING, 1 / self.num_seen)
        self.deviation_s += max(DEVIATION_SMOOTHING, share) * (abs(seconds - self.mean_s) - self.deviation_s)
        self.mean_s += share * (seconds - self.mean_s)
        self.num_rows += share * (num_rows - self.num_rows)

    def times(self, factor: float) -> _Seen:
        return _Seen(self.num_rows, factor * self.mean_s, factor * self.deviation_s, num_seen=self.num_seen)

    @property
    def safe_s(self) -> float:
        return self.mean_s + NUM_DEVIATIONS * self.deviation_s


class _Curve:
    """Seconds by rows: straight lines between points, and beyond the last one as many seconds per row as there."""

    __slots__ = ("rows", "seconds")

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self.rows = [rows for rows, _ in points]
        self.seconds = [seconds for _, seconds in points]
        for at in range(1, len(points)):  # not slower than smaller batches one after another
            ratio = self.rows[at] / self.rows[at - 1]
            self.seconds[at] = min(self.seconds[at], self.seconds[at - 1] * max(ratio, 1.0))
        for at in range(len(points) - 2, -1, -1):  # not slower than a larger batch
            self.seconds[at] = min(self.seconds[at], self.seconds[at + 1])

    def at(self, num_rows: int) -> float:
        rows, seconds = self.rows, self.seconds
        if not rows:
            return 0.0
        above = bisect_left(rows, num_rows)
        if above == len(rows):
            return seconds[-1] * num_rows / rows[-1]
        if above == 0:
            return seconds[0]
        share = (num_rows - rows[above - 1]) / (rows[above] - rows[above - 1])
        return seconds[above - 1] + share * (seconds[above] - seconds[above - 1])


def _from_table(table: LatencyTable, num_rows: int, row_size: int) -> float:
    larger = max(1.0, row_size / table.row_size) if table.row_size else 1.0
    return table.predict_s(num_rows) * larger


def _bucket(number: int) -> int:
    """Return the next power of two."""
    return 1 << (number - 1).bit_length()
