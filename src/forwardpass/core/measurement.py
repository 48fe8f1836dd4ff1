"""Measured numbers with their spread, and the machine that they were taken on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Interval", "Machine", "Measurement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A number with its unit, its 95 % confidence interval and how many repetitions stand behind it."""

    value: float
    unit: str
    interval: Interval
    num_repetitions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The hardware and software that a measurement belongs to."""

    cpu: str
    instruction_sets: tuple[str, ...]
    num_cores: int
    memory_bytes: int
    os: str
    python: str
    runtimes: tuple[tuple[str, str], ...]
    """Name and version of each model library that took part, for example `("onnxruntime", "1.32.0")`."""
