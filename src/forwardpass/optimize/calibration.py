"""Ranges of activations, found in two passes over the samples with bounded memory.

The first pass finds the least and the greatest value of every tensor, the second counts its values in a histogram
between them. Neither keeps a sample. From these a range is chosen: all values (`minmax`), all but the rarest
(`percentile`), or the one whose clipping and rounding together cost least (`mse`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from forwardpass.core.tensors import Array

__all__ = ["CalibrationMethod", "Range", "TensorHistogram", "calibrate", "choose_range"]

NUM_BINS = 2048
NUM_LEVELS = 255
PERCENTILE = 99.99
SHRINK_FACTORS = np.linspace(1.0, 0.3, 36)


class CalibrationMethod(StrEnum):
    """How a range is chosen from the values that were seen."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The values that the ends of the 8-bit scale stand for; it always holds zero."""

    low: float
    high: float


@dataclass(slots=True, kw_only=True)
class TensorHistogram:
    """What is known of one tensor's values, updated call by call."""

    low: float = np.inf
    high: float = -np.inf
    counts: Array | None = None

    def widen(self, values: Array) -> None:
        """First pass: take note of the least and the greatest value."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    def count(self, values: Array) -> None:
        """Second pass: count the values between the ends found in the first."""
        if self.counts is None:
            self.counts = np.zeros(NUM_BINS, dtype=np.int64)
        width = (self.high - self.low) or 1.0
        bins = ((values.reshape(-1).astype(np.float64) - self.low) * (NUM_BINS / width)).astype(np.int64)
        self.counts += np.bincount(np.clip(bins, 0, NUM_BINS - 1), minlength=NUM_BINS)

    @property
    def centres(self) -> Array:
        """The middle of every bin."""
        width = (self.high - self.low) or 1.0
        return self.low + (np.arange(NUM_BINS) + 0.5) * (width / NUM_BINS)


def calibrate(
    calls: Callable[[], Iterable[Mapping[str, Array]]],
) -> dict[str, TensorHistogram]:
    """Return the histogram of every tensor; `calls` yields the tensors of each call and is iterated twice."""
    histograms: dict[str, TensorHistogram] = {}
    for tensors in calls():
        for name, values in tensors.items():
            histograms.setdefault(name, TensorHistogram()).widen(values)
    for tensors in calls():
        for name, values in tensors.items():
            histograms[name].count(values)
    return histograms


def choose_range(histogram: TensorHistogram, method: CalibrationMethod) -> Range:
    """Choose the range of one tensor."""
    if method is CalibrationMethod.MINMAX:
        return _with_zero(histogram.low, histogram.high)
    if method is CalibrationMethod.PERCENTILE:
        return _percentile_range(histogram)
    return _least_error_range(histogram)


def _with_zero(low: float, high: float) -> Range:
    """Padding and ReLU produce exact zeros, so zero must be representable."""
    return Range(low=min(low, 0.0), high=max(high, 0.0))


def _percentile_range(histogram: TensorHistogram) -> Range:
    assert histogram.counts is not None, "the second pass comes before the choice"
    shares = np.cumsum(histogram.counts) / histogram.counts.sum()
    rare = (100 - PERCENTILE) / 200
    centres = histogram.centres
    low = centres[int(np.searchsorted(shares, rare))]
    high = centres[min(int(np.searchsorted(shares, 1 - rare)), NUM_BINS - 1)]
    return _with_zero(max(float(low), histogram.low), min(float(high), histogram.high))


def _least_error_range(histogram: TensorHistogram) -> Range:
    """Pull in the upper end, then the lower one, each to where the squared error over the histogram is least."""
    full = _with_zero(histogram.low, histogram.high)
    highs = [Range(low=full.low, high=full.high * factor) for factor in SHRINK_FACTORS]
    best = min(highs, key=lambda candidate: _squared_error(histogram, candidate))
    lows = [Range(low=full.low * factor, high=best.high) for factor in SHRINK_FACTORS]
    return min(lows, key=lambda candidate: _squared_error(histogram, candidate))


def _squared_error(histogram: TensorHistogram, candidate: Range) -> float:
    scale = (candidate.high - candidate.low) / NUM_LEVELS or 1.0
    zero_point = np.round(-candidate.low / scale)
    values = histogram.centres
    steps = np.clip(np.round(values / scale) + zero_point, 0, NUM_LEVELS) - zero_point
    return float((histogram.counts * (values - steps * scale) ** 2).sum())
