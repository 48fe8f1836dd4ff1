"""The latency target and the quality floor that a variant has to keep."""

from __future__ import annotations

import re
from dataclasses import dataclass

from forwardpass.errors import InvalidOption

__all__ = ["QualityFloor", "Slo"]

_SLO = re.compile(r"p(?P<percent>\d{1,2}(?:\.\d+)?)\s*=\s*(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>us|ms|s)", re.ASCII)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """A latency percentile and its limit."""

    percent: float
    limit_s: float

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Read `p95=50ms`.

        >>> Slo.parse("p95=50ms")
        Slo(percent=95.0, limit_s=0.05)

        Raises:
            InvalidOption: the text has another form, or the limit is zero.
        """
        match = _SLO.fullmatch(text.strip())
        if match is None or float(match["value"]) == 0 or float(match["percent"]) == 0:
            raise InvalidOption(option="--slo", value=text, expected="a percentile and a limit, such as p95=50ms")
        return cls(percent=float(match["percent"]), limit_s=float(match["value"]) * _SECONDS[match["unit"]])

    def __str__(self) -> str:
        return f"p{self.percent:g}={self.limit_s * 1e3:g}ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityFloor:
    """How much of the source's score a variant may lose: a share of it (`1%`) or an absolute amount (`0.01`).

    With `absolute`, a variant must also score that well; an infinite `max_drop` leaves it to that alone.
    """

    max_drop: float
    is_relative: bool
    absolute: float | None = None

    def __post_init__(self) -> None:
        is_free = self.absolute is not None and self.max_drop == float("inf")
        if not (0 <= self.max_drop < float("inf") or is_free):
            raise InvalidOption(
                option="max_drop",
                value=str(self.max_drop),
                expected="0 or more: a negative one would ask for a better score than the source itself has",
            )

    @classmethod
    def parse(cls, text: str) -> QualityFloor:
        """Read `1%` (of the source's score) or `0.01` (in the metric's own unit).

        >>> QualityFloor.parse("1%").limit(0.98, higher_is_better=True)
        0.9702

        Raises:
            InvalidOption: the text is neither, or it is negative.
        """
        number, is_relative = (text[:-1], True) if text.endswith("%") else (text, False)
        try:
            max_drop = float(number) / (100 if is_relative else 1)
        except ValueError:
            max_drop = -1.0
        if not 0 <= max_drop < float("inf"):
            raise InvalidOption(
                option="--max-drop", value=text, expected="a share such as 1% or an amount such as 0.01"
            )
        return cls(max_drop=max_drop, is_relative=is_relative)

    def limit(self, source_score: float, *, higher_is_better: bool) -> float:
        """Return the worst score that is still acceptable: of a drop and an absolute floor, the stricter counts."""
        drop = self.drop(source_score)
        limit = source_score - drop if higher_is_better else source_score + drop
        if self.absolute is None:
            return limit
        return max(limit, self.absolute) if higher_is_better else min(limit, self.absolute)

    def drop(self, source_score: float) -> float:
        """Return how much of the source's score may be lost.

        A share of nothing would allow nothing: where the source scores 0 (its error against itself), a share of
        `1%` allows an error of 0.01.
        """
        return (abs(source_score) or 1.0) * self.max_drop if self.is_relative else self.max_drop
