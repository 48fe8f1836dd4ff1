"""Where a value stands on an axis, and which values get a tick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Axis", "fit_axis", "ticks_of"]

_STEPS = (1.0, 2.0, 5.0, 10.0)
_NUM_TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Maps values from `low` to `high` to positions from `start` to `end`; values outside stand at the ends."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return the position of a value.

        >>> Axis(low=1, high=100, start=0, end=200, is_log=True).place(10)
        100.0
        """
        if not value >= self.low:  # not a number, too, stands at the low end
            return self.start
        share = self._warp(min(value, self.high)) - self._warp(self.low)
        return self.start + share / (self._warp(self.high) - self._warp(self.low)) * (self.end - self.start)

    def _warp(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def fit_axis(
    values: Sequence[float], *, start: float, end: float, is_log: bool = False, from_zero: bool = False
) -> Axis:
    """Return an axis that holds all values with a little room; a logarithmic one passes over what is not positive."""
    usable = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)]
    if not usable:
        return Axis(low=1.0, high=10.0, start=start, end=end, is_log=is_log)
    low, high = min(usable), max(usable)
    if is_log:
        room = max((high / low) ** 0.06, 1.05)
        return Axis(low=low / room, high=high * room, start=start, end=end, is_log=True)
    if from_zero:
        low = min(low, 0.0)
    pad = (high - low) * 0.06 or max(abs(high) * 0.1, 1e-12)
    return Axis(low=low if from_zero and low == 0 else low - pad, high=high + pad, start=start, end=end)


def ticks_of(axis: Axis) -> list[float]:
    """Return round values on the axis, about five.

    >>> ticks_of(Axis(low=0, high=23, start=0, end=1))
    [0.0, 5.0, 10.0, 15.0, 20.0]
    >>> ticks_of(Axis(low=0.9, high=1100, start=0, end=1, is_log=True))
    [1.0, 10.0, 100.0, 1000.0]
    """
    return _log_ticks(axis) if axis.is_log else _linear_ticks(axis)


def _linear_ticks(axis: Axis) -> list[float]:
    rough = (axis.high - axis.low) / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in _STEPS if factor * power >= rough * 0.9)
    first = math.ceil(axis.low / step - 1e-9)
    last = math.floor(axis.high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _log_ticks(axis: Axis) -> list[float]:
    """Take powers of ten; over fewer than two decades also their doubles and fives, within a narrow range linear."""
    decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    span = math.log10(axis.high / axis.low)
    if span < 0.7:
        return _linear_ticks(axis)
    factors = (1.0,) if span >= 2.2 else (1.0, 2.0, 5.0) if span >= 0.9 else (1.0, 2.0, 3.0, 5.0, 7.0)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [tick for tick in ticks if axis.low <= tick <= axis.high]
