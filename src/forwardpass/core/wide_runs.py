"""Whether a lone request runs on all cores, where a crowd is shared by several workers of few threads each.

Such workers answer most per second, and each of them slowly. So one of them holds the model a second time, with more
threads. A request that finds every worker free and nobody beside it runs there, sooner, and the other workers are held
back meanwhile: they would take the cores that it needs. Whoever comes during such a run waits for its end. How often
somebody comes is learned from all lone starts; where it is too often, everybody runs as in a crowd. No clock in here.
"""

from __future__ import annotations

import math

from forwardpass.core.batching import Batch
from forwardpass.core.latency import LatencyEstimate, LatencyTable

__all__ = ["WideRuns", "max_share_joined"]

SMOOTHING = 1 / 8
"""For the running mean of how often somebody comes during a lone run."""
STEP = 1 / 16
"""By which a running median moves: other processes hold up a run now and then, all cores more often than one."""
NUM_LEFT_OUT = 10
"""Where runs on all cores were no faster lately, one is tried again after so many lone starts."""
NUM_IN_DOUBT = 20
"""Where they are slower than a worker was in its profile, and still the faster way as far as is known, a worker is
tried after so many: what was learned of it may be old."""


class WideRuns:
    """Decides for one queue; the tables are those of a worker, and of all cores."""

    def __init__(self, *, narrow: LatencyTable, wide: LatencyTable) -> None:
        self._narrow = _Speed(narrow)
        self._wide = _Speed(wide)
        self._latency = LatencyEstimate(wide)
        self._share_joined = 0.0
        self._num_untried = 0
        self._lone: Batch | None = None
        self._was_joined = False
        self._until_s: float | None = None

    def start(self, batch: Batch, *, now_s: float) -> bool:
        """Tell whether a batch of one request that is alone runs on all cores; it starts now, there or not."""
        wide_s, narrow_s = self._wide.median_s(batch), self._narrow.median_s(batch)
        self._lone, self._until_s, self._was_joined = batch, now_s + wide_s, False
        if wide_s >= narrow_s:
            return self._is_time_to_try(NUM_LEFT_OUT)
        if self._share_joined > max_share_joined(narrow_s / wide_s):
            return False
        is_in_doubt = wide_s > self._narrow.by_table_s(batch)
        return not (is_in_doubt and self._is_time_to_try(NUM_IN_DOUBT))

    def joined(self, *, now_s: float) -> None:
        """Take note of a newcomer."""
        self._was_joined = True
        if self._until_s is not None:
            self._learn_share(was_joined=now_s < self._until_s)

    def ended(self, batch: Batch, seconds: float, *, was_wide: bool) -> None:
        """Take note of how long a batch has run; if it was the lone one, and on its own, nobody has come."""
        if was_wide:
            self._latency.observe(batch.num_rows, seconds, batch.row_size)
        if batch is not self._lone:
            return
        self._lone = None
        if was_wide:
            self._wide.learn(batch, seconds, than=self._narrow)
        elif not self._was_joined:  # beside another worker it takes longer
            self._narrow.learn(batch, seconds, than=self._wide)
        if self._until_s is not None:
            self._learn_share(was_joined=False)

    def predict_s(self, batch: Batch) -> float:
        """Predict how long a batch will run on all cores, on the safe side."""
        return self._latency.predict_s(batch.num_rows, batch.row_size)

    def _is_time_to_try(self, num_before: int) -> bool:
        self._num_untried = (self._num_untried + 1) % (num_before + 1)
        return self._num_untried == 0

    def _learn_share(self, *, was_joined: bool) -> None:
        self._until_s = None
        self._share_joined += SMOOTHING * (was_joined - self._share_joined)


class _Speed:
    """The median time of lone runs: that of a table, and how far off it is here and now."""

    def __init__(self, table: LatencyTable) -> None:
        self._table = table
        self._factor = 1.0

    def median_s(self, batch: Batch) -> float:
        return self._factor * self.by_table_s(batch)

    def learn(self, batch: Batch, seconds: float, *, than: _Speed) -> None:
        """Move the median; one run that was sooner `than` the other way is enough to try this one again."""
        is_more = seconds > self.median_s(batch)
        self._factor *= 1 + STEP if is_more else 1 / (1 + STEP)
        if seconds < (other_s := than.median_s(batch)):
            self._factor = min(self._factor, other_s / self.by_table_s(batch) / (1 + STEP))

    def by_table_s(self, batch: Batch) -> float:
        larger = max(1.0, batch.row_size / self._table.row_size) if self._table.row_size else 1.0
        return self._table.predict_median_s(batch.num_rows) * larger


def max_share_joined(speedup: float) -> float:
    """Return in how many lone runs somebody may come, so that running on all cores is the sooner way on average.

    Of those who come at random, ρ in a run, each waits for half of it. Together they lose less than the lone request
    gains, as long as ρ / 2 ≤ speedup - 1; and somebody comes during a run with the probability 1 - exp(-ρ).

    >>> [round(max_share_joined(speedup), 2) for speedup in (1.0, 1.25, 1.6, 2.0, 4.0)]
    [0.0, 0.39, 0.7, 0.86, 1.0]
    """
    return 1.0 - math.exp(-2.0 * (speedup - 1.0))
