"""Numbers as people read them, in pages and in terminal tables alike."""

from __future__ import annotations

from dataclasses import dataclass

from forwardpass.core.measurement import Measurement

__all__ = [
    "format_bytes",
    "format_count",
    "format_measurement",
    "format_number_of",
    "format_ratio",
    "format_seconds",
    "format_share",
    "format_usd",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    factor: float
    unit: str


_SECONDS = (_Scale(factor=1, unit="s"), _Scale(factor=1e-3, unit="ms"), _Scale(factor=1e-6, unit="µs"))
_BYTES = (
    _Scale(factor=1e9, unit="GB"),
    _Scale(factor=1e6, unit="MB"),
    _Scale(factor=1e3, unit="kB"),
    _Scale(factor=1, unit="B"),
)
_ONE = _Scale(factor=1, unit="")


def format_seconds(seconds: float) -> str:
    """Write a duration with three significant digits.

    >>> format_seconds(0.00413), format_seconds(12.3e-6), format_seconds(75)
    ('4.13 ms', '12.3 µs', '75.0 s')
    """
    return _write(seconds, _fit(seconds, _SECONDS))


def format_bytes(num_bytes: float) -> str:
    """Write a size in decimal units.

    >>> format_bytes(4_130_000), format_bytes(12), format_bytes(0)
    ('4.13 MB', '12.0 B', '0 B')
    """
    return _write(num_bytes, _fit(num_bytes, _BYTES) if num_bytes else _BYTES[-1])


def format_count(number: float) -> str:
    """Write a count or a rate with three significant digits or thousands separators.

    >>> format_count(1234.5), format_count(0.5)
    ('1,234', '0.500')
    """
    return f"{number:,.{_decimals(number)}f}"


def format_number_of(number: int, noun: str) -> str:
    """Write a number of things.

    >>> format_number_of(1, "thread"), format_number_of(2, "thread")
    ('1 thread', '2 threads')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_ratio(ratio: float) -> str:
    """Write how many times something is.

    >>> format_ratio(1.834)
    '1.83×'
    """
    return f"{ratio:.{_decimals(ratio)}f}×"


def format_share(share: float) -> str:
    """Write a share as a percentage.

    >>> format_share(0.0123)
    '1.23 %'
    """
    return f"{share * 100:.{_decimals(share * 100)}f} %"


def format_usd(amount: float) -> str:
    """Write an amount of money with three significant digits.

    >>> format_usd(0.01234), format_usd(1234.5)
    ('$0.0123', '$1,234')
    """
    return f"${amount:,.{_decimals(amount)}f}"


def format_measurement(measured: Measurement) -> str:
    """Write a measurement with its spread: the distance to the further end of its 95 % interval.

    >>> from forwardpass.core.measurement import Interval
    >>> format_measurement(Measurement(
    ...     value=0.0041, unit="s", interval=Interval(low=0.0040, high=0.0043), num_repetitions=9))
    '4.10 ms ±0.20'
    """
    scale = _scale_for(measured)
    decimals = _decimals(measured.value / scale.factor)
    spread = max(measured.interval.high - measured.value, measured.value - measured.interval.low, 0.0)
    unit = f" {scale.unit}" if scale.unit else ""
    return f"{measured.value / scale.factor:,.{decimals}f}{unit} ±{spread / scale.factor:,.{decimals}f}"


def _scale_for(measured: Measurement) -> _Scale:
    if measured.unit == "s":
        return _fit(measured.value, _SECONDS)
    if measured.unit == "bytes":
        return _fit(measured.value, _BYTES)
    return _ONE


def _fit(value: float, scales: tuple[_Scale, ...]) -> _Scale:
    """Return the largest scale in which the value is at least 1, or the smallest one; zero is in the first."""
    if value == 0:
        return scales[0]
    return next((scale for scale in scales if abs(value) >= scale.factor * 0.9995), scales[-1])


def _write(value: float, scale: _Scale) -> str:
    return f"{value / scale.factor:,.{_decimals(value / scale.factor)}f} {scale.unit}"


def _decimals(value: float) -> int:
    """Return how many decimals show three significant digits; next to nothing is shown as 0.

    >>> [_decimals(value) for value in (0.05, 0.5, 5, 50, 500, 0, 1e-300)]
    [4, 3, 2, 1, 0, 0, 0]
    """
    size = abs(value)
    if size == 0 or size >= 99.95:
        return 0
    return next((decimals for decimals in range(1, 20) if size * 10**decimals >= 99.95), 0)
