"""Which rate to try next: the search for the capacity as a plain object. Results in, the next rate out.

A trial passes if enough of its *offered* requests succeeded in time. Near the capacity that is a matter of luck, so a
rate counts as kept or missed only by a majority of up to three trials, and the answer is an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forwardpass.report.format import format_count

__all__ = ["Capacity", "CapacitySearch", "Trial", "format_interval", "trial_duration_s"]

NUM_TO_DECIDE = 2
"""Trials with the same outcome that decide on a rate: a majority of three."""
RESOLUTION = 0.05
"""The search ends when a rate that is kept and one that is missed are this close: less than trials repeat."""
CLEARLY_MISSED_SHARE = 0.5
"""A trial with less in time was an overload and no bad luck: during the search it need not be repeated."""
MIN_RATE_PER_S = 0.05
MAX_TRIALS = 40
TRIAL_S = 3.0
LONGEST_TRIAL_S = 30.0
LIMITS_PER_TRIAL = 20
"""A queue that grows by a twentieth of the time passes the limit within so many times the limit: with a shorter trial a
rate 5 % above the capacity would look like a good one."""
REQUESTS_PER_TRIAL = 500
"""So that one in a hundred is a handful."""
REPETITION_FACTOR = 2.0
"""A repeated trial is longer: near the capacity late answers come in clusters, and a short trial can miss them all."""
MARGIN = 0.1
"""What luck can do beyond the rates that were tried. With it, the interval held the true capacity of simulated queues
in more than nine of ten searches; without it, in six."""


def trial_duration_s(rate_per_s: float, limit_s: float, *, is_repetition: bool = False) -> float:
    """Return how long a rate has to be offered to tell whether it is kept.

    >>> trial_duration_s(1000, 0.05), trial_duration_s(1000, 0.5), trial_duration_s(20, 0.05), trial_duration_s(1, 1)
    (3.0, 10.0, 25.0, 30.0)
    """
    duration_s = max(TRIAL_S, LIMITS_PER_TRIAL * limit_s, REQUESTS_PER_TRIAL / rate_per_s)
    return min(duration_s * (REPETITION_FACTOR if is_repetition else 1.0), LONGEST_TRIAL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What happened at one rate."""

    rate_per_s: float
    share_in_time: float
    """Of the offered requests, those that succeeded within the limit."""
    is_generator_limited: bool = False
    """Whether the generator, not the server, may be to blame for a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The largest rate that is kept, and how sure that is."""

    rate_per_s: float
    """Kept by a majority of its trials; 0 if no rate was."""
    kept_per_s: float
    """The largest rate up to there that was kept in all of several trials."""
    missed_per_s: float | None
    """The least rate above that was missed in all of several, or clearly; None if there is none."""
    low_per_s: float
    """Low end of the interval that holds the capacity, as far as luck can be bounded."""
    high_per_s: float | None
    """High end; None if nothing was too much."""
    is_lower_bound: bool
    """Whether the search was ended by something else than the server: the generator, the budget or the largest rate."""
    trials: tuple[Trial, ...]


def format_interval(capacity: Capacity) -> str:
    """Return the interval that holds the capacity; an end about which nothing is known yet is not a number.

    >>> search = CapacitySearch(start_per_s=10, max_per_s=1000, required_share=0.99)
    >>> search.record(Trial(rate_per_s=10, share_in_time=1.0))
    >>> format_interval(search.capacity())
    'unknown'
    """
    low, high = (f"{format_count(end)}/s" if end else "unknown" for end in (capacity.low_per_s, capacity.high_per_s))
    return "unknown" if low == high == "unknown" else f"{low} to {high}"


class CapacitySearch:
    """Doubles until a rate is missed, halves the gap, then repeats the two rates at the edge.

    >>> search = CapacitySearch(start_per_s=10, max_per_s=1000, required_share=0.99)
    >>> while (rate := search.next_rate()) is not None:
    ...     search.record(Trial(rate_per_s=rate, share_in_time=1.0 if rate <= 130 else 0.5))
    >>> found = search.capacity()
    >>> found.rate_per_s <= 130 <= found.missed_per_s
    True
    """

    def __init__(self, *, start_per_s: float, max_per_s: float, required_share: float) -> None:
        self._start_per_s = min(start_per_s, max_per_s)
        self._max_per_s = max_per_s
        self._required_share = required_share
        self._trials: list[Trial] = []

    def record(self, trial: Trial) -> None:
        """Take note of a trial."""
        self._trials.append(trial)

    def next_rate(self) -> float | None:
        """Return the rate to try now; None when there is nothing more to find out."""
        if len(self._trials) >= MAX_TRIALS:
            return None
        if not self._trials:
            return self._start_per_s
        doubtful = [rate for rate in self._rates() if self._is_doubtful(rate)]
        if doubtful:
            return doubtful[0]
        low, high = self._bracket()
        if high is None:
            return self._above(low)
        if low == 0.0:
            return high / 2 if high / 2 >= MIN_RATE_PER_S else None
        if high / low > 1 + RESOLUTION:
            return math.sqrt(low * high)
        return next((rate for rate in (low, high) if not self._is_decided(rate)), self._towards_the_ends(low, high))

    def capacity(self) -> Capacity:
        """Return what is known by now."""
        low, high = self._bracket()
        kept = [rate for rate in self._rates() if rate <= low and self._is_sure(rate)]
        missed = [rate for rate in self._rates() if rate > low and self._is_sure(rate)]
        kept_per_s, missed_per_s = max(kept, default=0.0), min(missed, default=None)
        at_edge = [trial for trial in self._trials if trial.rate_per_s == high]
        is_closed = high is not None and (low == 0.0 or high / low <= 1 + RESOLUTION + 1e-9)
        return Capacity(
            rate_per_s=low,
            kept_per_s=kept_per_s,
            missed_per_s=missed_per_s,
            low_per_s=kept_per_s / (1 + MARGIN),
            high_per_s=missed_per_s * (1 + MARGIN) if missed_per_s is not None else None,
            is_lower_bound=not is_closed or all(trial.is_generator_limited for trial in at_edge),
            trials=tuple(self._trials),
        )

    def was_tried(self, rate_per_s: float) -> bool:
        """Tell whether a trial at this rate would be a repetition."""
        return any(trial.rate_per_s == rate_per_s for trial in self._trials)

    def is_kept(self, trial: Trial) -> bool:
        """Tell whether a trial passed."""
        return trial.share_in_time >= self._required_share

    def _bracket(self) -> tuple[float, float | None]:
        """Return the largest rate that is kept below the least that is missed, and that one."""
        high = min((rate for rate in self._rates() if self._balance(rate) < 0), default=None)
        below = [rate for rate in self._rates() if self._balance(rate) > 0 and (high is None or rate < high)]
        return max(below, default=0.0), high

    def _towards_the_ends(self, low: float, high: float) -> float | None:
        """Return what to try until the interval has two ends, where luck had its hand in the rates at the edge."""
        if not any(self._is_sure(rate) for rate in self._rates() if rate >= high):
            return self._next_beyond(high, 1 + RESOLUTION)
        if not any(self._is_sure(rate) for rate in self._rates() if rate <= low):
            return self._next_beyond(low, 1 / (1 + RESOLUTION))
        return None

    def _next_beyond(self, rate: float, factor: float) -> float:
        """Step away from the edge, over rates that were kept at times and missed at others."""
        while self._num_kept(rate) and self._num_missed(rate):
            rate *= factor
        return rate

    def _above(self, low: float) -> float | None:
        if low < self._max_per_s:
            return min(low * 2, self._max_per_s)
        return None if self._is_decided(low) else low

    def _rates(self) -> Sequence[float]:
        return sorted({trial.rate_per_s for trial in self._trials})

    def _num_kept(self, rate: float) -> int:
        return sum(self.is_kept(trial) for trial in self._trials if trial.rate_per_s == rate)

    def _num_missed(self, rate: float) -> int:
        return sum(not self.is_kept(trial) for trial in self._trials if trial.rate_per_s == rate)

    def _balance(self, rate: float) -> int:
        return self._num_kept(rate) - self._num_missed(rate)

    def _is_sure(self, rate: float) -> bool:
        """Whether all trials of a rate had the same outcome, and were enough."""
        is_mixed = self._num_kept(rate) > 0 and self._num_missed(rate) > 0
        return not is_mixed and (self._is_decided(rate) or self._is_clearly_missed(rate))

    def _is_clearly_missed(self, rate: float) -> bool:
        trials = [trial for trial in self._trials if trial.rate_per_s == rate]
        return all(trial.share_in_time < CLEARLY_MISSED_SHARE for trial in trials)

    def _is_doubtful(self, rate: float) -> bool:
        """Whether a rate was missed once and not clearly, or was kept as often as missed."""
        return self._balance(rate) <= 0 and not self._is_decided(rate) and not self._is_clearly_missed(rate)

    def _is_decided(self, rate: float) -> bool:
        return max(self._num_kept(rate), self._num_missed(rate)) >= NUM_TO_DECIDE
