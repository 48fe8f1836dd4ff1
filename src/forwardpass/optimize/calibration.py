"""Ranges of activations, found in two passes over the samples with bounded memory.

The first pass finds the least and the greatest value of every tensor, the second counts its values in a histogram
between them. Neither keeps a sample. From these a range is chosen: all values (`minmax`), all but the rarest
(`percentile`), or the one whose clipping and rounding together cost least (`mse`). The counts after 1, 2, 4, 8, … calls
are kept, too: they show when more samples stop moving the ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np

from forwardpass.core.tensors import Array

__all__ = [
    "CalibrationMethod",
    "ConvergencePoint",
    "Look",
    "Range",
    "TensorHistogram",
    "calibrate",
    "choose_range",
    "convergence",
    "describe_convergence",
    "distance_at_half",
    "read_convergence",
]

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
    marks: list[tuple[int, Array]] = field(default_factory=list)
    """The counts as they were after so many calls."""

    def widen(self, ends: tuple[float, float]) -> None:
        """First pass: take note of the least and the greatest value of a call."""
        self.low = min(self.low, ends[0])
        self.high = max(self.high, ends[1])

    def count(self, values: Array) -> Array:
        """Return how many of these values lie in each bin between the ends found in the first pass."""
        places = values.reshape(-1) - values.dtype.type(self.low)
        places /= values.dtype.type((self.high - self.low) or 1.0)
        places *= NUM_BINS
        bins = places.astype(np.intp)
        np.clip(bins, 0, NUM_BINS - 1, out=bins)
        return np.bincount(bins, minlength=NUM_BINS)

    def add(self, counts: Array) -> None:
        """Second pass: add what was counted in a call."""
        self.counts = counts if self.counts is None else self.counts + counts

    def mark(self, num_calls: int) -> None:
        """Remember the counts as they are now."""
        assert self.counts is not None, "a mark is set after something was counted"
        if not self.marks or self.marks[-1][0] != num_calls:
            self.marks.append((num_calls, self.counts))

    @property
    def centres(self) -> Array:
        """The middle of every bin."""
        width = (self.high - self.low) or 1.0
        return self.low + (np.arange(NUM_BINS) + 0.5) * (width / NUM_BINS)


Look: TypeAlias = Callable[[Mapping[str, Array]], dict[str, Any]]
"""Sums up the tensors of one call, by name; called in several threads."""


def calibrate(calls: Callable[[Look], Iterable[dict[str, Any]]]) -> dict[str, TensorHistogram]:
    """Return the histogram of every tensor; `calls(look)` yields what `look` makes of each call, and is asked twice."""
    histograms: dict[str, TensorHistogram] = {}
    for ends in calls(_ends):
        for name, found in ends.items():
            histograms.setdefault(name, TensorHistogram()).widen(found)

    def count(tensors: Mapping[str, Array]) -> dict[str, Array]:
        return {name: histograms[name].count(values) for name, values in tensors.items()}

    for number, counts in enumerate(calls(count), start=1):
        for name, counted in counts.items():
            histograms[name].add(counted)
            if number.bit_count() == 1:
                histograms[name].mark(number)
    for histogram in histograms.values():
        histogram.mark(number)
    return histograms


def _ends(tensors: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """Return the least and the greatest value of each tensor."""
    return {name: (float(values.min()), float(values.max())) for name, values in tensors.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvergencePoint:
    """How far the ranges after some calls are from those after all, as a share of these; the mean over the tensors."""

    num_calls: int
    distance: float


def convergence(histograms: Sequence[TensorHistogram], method: CalibrationMethod) -> tuple[ConvergencePoint, ...]:
    """Return how the ranges of a calibration settle as calls come in; the last point is 0."""
    distances = np.mean([_distances(histogram, method) for histogram in histograms], axis=0)
    return tuple(
        ConvergencePoint(num_calls=num_calls, distance=float(distance))
        for (num_calls, _), distance in zip(histograms[0].marks, distances, strict=True)
    )


def describe_convergence(points: Sequence[ConvergencePoint]) -> str:
    """Write a curve as one line.

    >>> describe_convergence([ConvergencePoint(num_calls=1, distance=0.4), ConvergencePoint(num_calls=2, distance=0.0)])
    '1: 40.0 %, 2: 0.0 %'
    """
    return ", ".join(f"{point.num_calls}: {point.distance:.1%}".replace("%", " %") for point in points)


def read_convergence(line: str) -> tuple[ConvergencePoint, ...]:
    """Read what `describe_convergence` writes.

    >>> [(point.num_calls, round(point.distance, 3)) for point in read_convergence("1: 40.0 %, 2: 0.0 %")]
    [(1, 0.4), (2, 0.0)]
    """
    pairs = (part.removesuffix(" %").split(": ") for part in line.split(", "))
    return tuple(ConvergencePoint(num_calls=int(number), distance=float(share) / 100) for number, share in pairs)


def distance_at_half(points: Sequence[ConvergencePoint]) -> float:
    """Return how far the ranges were when at most half of the calls had been seen; 1 where that was nothing.

    >>> distance_at_half([ConvergencePoint(num_calls=n, distance=1 / n) for n in (1, 2, 4, 7)])
    0.5
    """
    before = [point.distance for point in points if 2 * point.num_calls <= points[-1].num_calls]
    return before[-1] if before else 1.0


def _distances(histogram: TensorHistogram, method: CalibrationMethod) -> list[float]:
    """Return how far the ranges at the marks are from the last one."""
    *_, final = ranges = _ranges_of(histogram, [counts for _, counts in histogram.marks], method)
    width = (final.high - final.low) or 1.0
    return [(abs(now.low - final.low) + abs(now.high - final.high)) / width for now in ranges]


def _ranges_of(histogram: TensorHistogram, counts: Sequence[Array], method: CalibrationMethod) -> list[Range]:
    """Choose a range from each of these counts; the least and the greatest value are known up to a bin."""
    if method is CalibrationMethod.MINMAX:
        seen = [histogram.centres[some > 0] for some in counts]
        return [_with_zero(float(values[0]), float(values[-1])) for values in seen]
    if method is CalibrationMethod.PERCENTILE:
        return [_percentile_range(histogram, some) for some in counts]
    return _least_error_ranges(histogram, np.stack(counts))


def choose_range(histogram: TensorHistogram, method: CalibrationMethod) -> Range:
    """Choose the range of one tensor."""
    if method is CalibrationMethod.MINMAX:
        return _with_zero(histogram.low, histogram.high)
    assert histogram.counts is not None, "the second pass comes before the choice"
    return _ranges_of(histogram, [histogram.counts], method)[0]


def _with_zero(low: float, high: float) -> Range:
    """Padding and ReLU produce exact zeros, so zero must be representable."""
    return Range(low=min(low, 0.0), high=max(high, 0.0))


def _percentile_range(histogram: TensorHistogram, counts: Array) -> Range:
    shares = np.cumsum(counts) / counts.sum()
    rare = (100 - PERCENTILE) / 200
    centres = histogram.centres
    low = centres[int(np.searchsorted(shares, rare))]
    high = centres[min(int(np.searchsorted(shares, 1 - rare)), NUM_BINS - 1)]
    return _with_zero(max(float(low), histogram.low), min(float(high), histogram.high))


def _least_error_ranges(histogram: TensorHistogram, counts: Array) -> list[Range]:
    """Pull in the upper end, then the lower one, each to where the squared error over the histogram is least.

    `counts` has a row for every range that is asked for: what a value loses by rounding is the same in all of them.
    """
    full, centres = _with_zero(histogram.low, histogram.high), histogram.centres
    lows, highs = full.low * SHRINK_FACTORS, full.high * SHRINK_FACTORS
    errors = counts @ _squared_errors(centres, np.full_like(highs, full.low), highs).T
    best_highs = highs[errors.argmin(axis=1)]
    best_lows = np.empty_like(best_highs)
    for high in np.unique(best_highs):
        rows = best_highs == high
        errors = counts[rows] @ _squared_errors(centres, lows, np.full_like(lows, high)).T
        best_lows[rows] = lows[errors.argmin(axis=1)]
    return [Range(low=float(low), high=float(high)) for low, high in zip(best_lows, best_highs, strict=True)]


def _squared_errors(values: Array, lows: Array, highs: Array) -> Array:
    """Return the squared error of every value in every range, by range and value."""
    scales = ((highs - lows) / NUM_LEVELS)[:, None]
    scales[scales == 0] = 1.0
    zero_points = np.round(-lows[:, None] / scales)
    steps = np.clip(np.round(values / scales) + zero_points, 0, NUM_LEVELS) - zero_points
    return np.square(values - steps * scales)
