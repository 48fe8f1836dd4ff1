"""When requests are due: pure and seeded, so that the same words give the same load again.

An open loop sends at these times whatever the server does, as strangers do. A schedule holds seconds from its start,
in increasing order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forwardpass.errors import InvalidOption

__all__ = ["Arrivals", "Phase", "Schedule", "arrival_times", "joined_phases", "parse_trace"]

Schedule: TypeAlias = NDArray[np.float64]

BURST_PERIOD_S = 1.0
BURST_SHARE = 0.2
"""Bursts: all requests of a second come within its first fifth, at five times the mean rate."""
MAX_TRACE_REQUESTS = 5_000_000


class Arrivals(StrEnum):
    """How the times between requests are drawn."""

    POISSON = "poisson"
    """Independent users: exponential gaps."""
    CONSTANT = "constant"
    """A clock: equal gaps."""
    BURSTS = "bursts"
    """Poisson within the first fifth of each second, silence in the rest; the mean rate is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of time with one rate."""

    rate_per_s: float
    duration_s: float
    arrivals: Arrivals = Arrivals.POISSON


def arrival_times(phase: Phase, *, seed: int) -> Schedule:
    """Return the times within `[0, duration_s)` at which requests are due.

    >>> arrival_times(Phase(rate_per_s=4, duration_s=1, arrivals=Arrivals.CONSTANT), seed=0)
    array([0.  , 0.25, 0.5 , 0.75])
    """
    if phase.arrivals is Arrivals.CONSTANT:
        return np.arange(math.ceil(phase.rate_per_s * phase.duration_s - 1e-9)) / phase.rate_per_s
    if phase.arrivals is Arrivals.BURSTS:
        busy = _poisson(phase.rate_per_s / BURST_SHARE, _busy_s(phase.duration_s), seed)
        periods = np.floor(busy / (BURST_PERIOD_S * BURST_SHARE))
        return busy + periods * BURST_PERIOD_S * (1 - BURST_SHARE)
    return _poisson(phase.rate_per_s, phase.duration_s, seed)


def joined_phases(phases: tuple[Phase, ...], *, seed: int) -> Schedule:
    """Return the schedules of `phases`, one after another."""
    starts = np.cumsum([0.0, *(phase.duration_s for phase in phases[:-1])])
    parts = [start + arrival_times(phase, seed=seed + at) for at, (start, phase) in enumerate(zip(starts, phases))]  # noqa: B905  # one start each
    return np.concatenate(parts)


def parse_trace(text: str, *, origin: str) -> Schedule:
    """Read recorded times in seconds, one a line, in any order; the first of them becomes 0.

    Empty lines and what follows a `#` are passed over.

    Raises:
        InvalidOption: a line is not a finite number, there are none, or too many.
    """
    times = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        try:
            times.append(float(words))
        except ValueError:
            times.append(math.nan)
        if not math.isfinite(times[-1]):
            where = f"{origin}, line {number}: {words[:40]}"
            raise InvalidOption(option="--trace", value=where, expected="one time in seconds a line")
    if not 0 < len(times) <= MAX_TRACE_REQUESTS:
        expected = f"1 to {MAX_TRACE_REQUESTS:,} times in seconds, one a line"
        raise InvalidOption(option="--trace", value=f"{origin} with {len(times):,} times", expected=expected)
    ordered = np.sort(np.array(times))
    return ordered - ordered[0]


def _busy_s(duration_s: float) -> float:
    """Return how much of the duration lies inside bursts."""
    whole, rest = divmod(duration_s, BURST_PERIOD_S)
    return whole * BURST_PERIOD_S * BURST_SHARE + min(rest, BURST_PERIOD_S * BURST_SHARE)


def _poisson(rate_per_s: float, duration_s: float, seed: int) -> Schedule:
    """Draw the number of arrivals, then their places: the same process as exponential gaps, without a loop."""
    generator = np.random.default_rng(seed)
    return np.sort(generator.random(generator.poisson(rate_per_s * duration_s))) * duration_s
