"""What a user can say about a load test: where it goes, what is sent, and how."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from forwardpass.core.slo import Slo
from forwardpass.errors import InvalidOption
from forwardpass.loadtest.schedules import Arrivals

__all__ = ["MAX_BUDGET_S", "LoadSettings", "Scenario", "TargetSettings", "check_bounds"]

MAX_REQUESTS = 2_000_000
"""Of one run: some 40 bytes are kept of each until it is over."""
MAX_DURATION_S = 24 * 3600.0
MAX_BUDGET_S = 24 * 3600.0
MAX_CONNECTIONS = 20_000


class Scenario(StrEnum):
    """How requests follow each other, with the names of MLPerf."""

    SINGLE_STREAM = "single-stream"
    """One after another: what a lone user feels."""
    SERVER = "server"
    """An open loop: requests come when they come, whatever the server does."""
    OFFLINE = "offline"
    """As fast as possible over a number of connections: the greatest throughput."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """Where requests go and what is in them: an Open Inference Protocol server, or any endpoint that takes JSON."""

    url: str
    model: str | None = None
    """Of an Open Inference Protocol server; None for its only one."""
    data: str | None = None
    """Samples to send; without any, inputs are made up."""
    num_rows: int = 1
    """In one request."""
    template: Path | None = None
    """A JSON body with placeholders, for other endpoints."""
    path: str | None = None
    """Of the endpoint that the template is for; without a template it is asked with GET."""
    headers: tuple[tuple[str, str], ...] = ()
    deadline_s: float | None = None
    """Sent as `X-Request-Timeout-Ms`, if given."""
    statuses: tuple[int, ...] = ()
    """Those of a good answer; empty for 200 to 299."""
    certificates: Path | None = None
    """PEM file of authorities to trust beside the system's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """How a server is loaded, and for how long.

    Raises:
        InvalidOption: values that do not fit each other or are beyond the bounds.
    """

    scenario: Scenario = Scenario.SINGLE_STREAM
    rate_per_s: float | None = None
    """Mean rate of the server scenario."""
    arrivals: Arrivals = Arrivals.POISSON
    trace: Path | None = None
    """File of recorded times in seconds, one a line, instead of a rate."""
    duration_s: float = 10.0
    warm_up_s: float = 1.0
    """Before the measurement, with the same load; not counted."""
    max_requests: int = MAX_REQUESTS
    num_connections: int = 32
    """Of the offline scenario."""
    max_connections: int = 512
    """Of the server scenario: the pool grows as needed up to there."""
    timeout_s: float = 10.0
    """From when a request is due; then it has failed."""
    slo: Slo | None = None
    seed: int = 20261101

    def __post_init__(self) -> None:
        check_bounds("--duration", self.duration_s, 0.1, MAX_DURATION_S, "seconds")
        check_bounds("--warm-up", self.warm_up_s, 0.0, MAX_DURATION_S, "seconds")
        check_bounds("--timeout", self.timeout_s, 0.001, 3600.0, "seconds")
        check_bounds("--requests", self.max_requests, 1, MAX_REQUESTS, "requests")
        check_bounds("--connections", self.num_connections, 1, MAX_CONNECTIONS, "connections")
        check_bounds("--max-connections", self.max_connections, 1, MAX_CONNECTIONS, "connections")
        check_bounds("--seed", self.seed, 0, 2**63, "")
        if self.scenario is not Scenario.SERVER or self.trace is not None:
            return
        if self.rate_per_s is None:
            raise InvalidOption(option="--rate", value="", expected="requests per second, or --trace, or --capacity")
        check_bounds("--rate", self.rate_per_s, 0.001, 1e6, "requests per second")
        num_requests = self.rate_per_s * (self.duration_s + self.warm_up_s)
        if num_requests > MAX_REQUESTS:
            value = f"{self.rate_per_s:g}/s for {self.duration_s + self.warm_up_s:g} s"
            raise InvalidOption(option="--rate", value=value, expected=f"at most {MAX_REQUESTS:,} requests in one run")


def check_bounds(option: str, value: float, low: float, high: float, unit: str) -> None:
    """Raise `InvalidOption` unless a value, which may not be a number at all, is within its bounds."""
    if not low <= value <= high:
        raise InvalidOption(option=option, value=f"{value:g}", expected=f"{low:g} to {high:g} {unit}".rstrip())
