"""Percentiles and bootstrap confidence intervals.

Latencies are neither normal nor independent of what else the machine does, so every interval here comes from
resampling whole rounds (or whole samples), never from a normal approximation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from forwardpass.core.measurement import Interval, Measurement
from forwardpass.core.tensors import Array

__all__ = ["bootstrap_interval", "measure_median", "measure_ratio", "percentile"]

NUM_RESAMPLES = 1000
SEED = 20261101
"""Intervals are reproducible: the same numbers give the same interval."""


def percentile(values: Array, percent: float) -> float:
    """Return the smallest value that at least `percent` % of `values` do not exceed (nearest rank).

    >>> percentile(np.array([4.0, 1.0, 3.0, 2.0]), 50)
    2.0
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    rank = int(np.ceil(percent / 100 * len(ordered)))
    return float(ordered[max(rank, 1) - 1])


def bootstrap_interval(
    items: Array, statistic: Callable[[Array], float], *, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """Return the 95 % percentile-bootstrap interval of `statistic` over the first axis of `items`."""
    generator = np.random.default_rng(SEED)
    num_items = len(items)
    draws = generator.integers(0, num_items, size=(num_resamples, num_items))
    estimates = np.array([statistic(items[draw]) for draw in draws])
    low, high = np.quantile(estimates, (0.025, 0.975))
    return Interval(low=float(low), high=float(high))


def measure_median(values: Array, *, unit: str) -> Measurement:
    """Summarise repeated rounds by their median and its interval."""
    values = np.asarray(values, dtype=np.float64)
    return Measurement(
        value=float(np.median(values)),
        unit=unit,
        interval=_median_interval(values),
        num_repetitions=len(values),
    )


def measure_ratio(numerator: Array, denominator: Array) -> Measurement:
    """Summarise paired rounds by the median of their ratios; pairing cancels what both rounds suffered."""
    ratios = np.asarray(numerator, dtype=np.float64) / np.asarray(denominator, dtype=np.float64)
    return measure_median(ratios, unit="ratio")


def _median_interval(values: NDArray[np.float64]) -> Interval:
    generator = np.random.default_rng(SEED)
    draws = generator.integers(0, len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), (0.025, 0.975))
    return Interval(low=float(low), high=float(high))
