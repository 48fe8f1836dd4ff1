"""What a load test found, ready to be shown or written as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from forwardpass.core.measurement import Machine
from forwardpass.loadtest.search import Capacity
from forwardpass.loadtest.summary import Failure, LoadSummary

__all__ = ["CapacityReport", "GoodputPoint", "LoadResult", "Recovery"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodputPoint:
    """What comes out at one offered rate."""

    load: float
    """As a multiple of the capacity."""
    offered_per_s: float
    throughput_per_s: float
    goodput_per_s: float
    share_in_time: float
    p50_s: float | None
    p99_s: float | None
    failures: tuple[Failure, ...]
    lag_p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How long an overload is felt after it is over."""

    overload: float
    """As a multiple of the capacity."""
    overload_s: float
    load_after: float
    seconds: float | None
    """Until latencies are back to normal; None if they were not while it was watched."""
    watched_s: float
    normal_s: float
    """What counts as normal: a half more than the p99 at half the capacity, or the limit if that is less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityReport:
    """The largest rate that the server keeps within the target, and what happens beyond."""

    capacity: Capacity
    lone_p50_s: float | None
    """Of one request at a time."""
    trial_s: float
    at_capacity: LoadSummary | None
    """The last trial at the capacity that was kept."""
    goodput: tuple[GoodputPoint, ...]
    recovery: Recovery | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """A load test: one run (`summary`) or a search (`capacity`)."""

    target: str
    load: str
    """In words."""
    slo: str | None
    is_met: bool | None
    """None without a target."""
    summary: LoadSummary | None
    capacity: CapacityReport | None
    took_s: float
    machine: Machine
