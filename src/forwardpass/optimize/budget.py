"""A search's time: how much is left, and how much measuring fits into it."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field, replace

from forwardpass.errors import InvalidOption
from forwardpass.profile import ProfileSettings

__all__ = ["Budget", "fit_profile", "parse_duration_s", "profile_s"]

_DURATION = re.compile(r"(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>s|m|h)", re.ASCII)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
START_S = 0.7
"""Of a process that loads a runtime and a small model; each sweep and each cold start begins so."""
NUM_EXTRA_STARTS = 4
SAFETY = 1.25
"""Of the estimate: other processes on the machine, and calls that are longer than a round was meant to be."""


def parse_duration_s(text: str, *, option: str = "--budget") -> float:
    """Read `90s`, `10m` or `1h`.

    >>> parse_duration_s("10m")
    600.0

    Raises:
        InvalidOption: the text has another form, or is zero.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or float(match["value"]) == 0:
        raise InvalidOption(option=option, value=text, expected="a time, such as 90s, 10m or 1h")
    return float(match["value"]) * _SECONDS[match["unit"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The time of a search, from when it was made; without a total there is no end."""

    total_s: float | None
    start_s: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return math.inf if self.total_s is None else self.total_s - (time.monotonic() - self.start_s)

    def has_time(self, share: float) -> bool:
        """Tell whether less than this share of the time has gone."""
        return self.total_s is None or self.left_s > (1 - share) * self.total_s

    def __str__(self) -> str:
        return f"the budget of {self.total_s:g} s had no time left for it"


def profile_s(settings: ProfileSettings) -> float:
    """Estimate the seconds that measuring one variant takes, on the side of too many."""
    cells = len(settings.thread_counts) * len(settings.batch_sizes)
    cell_s = min(settings.cell_budget_s, 1.5 * settings.num_rounds * settings.round_s)
    cold_s = min(settings.cold_start_budget_s, settings.num_cold_starts * 2 * START_S)
    starts_s = (len(settings.thread_counts) + NUM_EXTRA_STARTS) * START_S
    return SAFETY * (cells * cell_s + cold_s + settings.audit_budget_s + starts_s)


def fit_profile(settings: ProfileSettings, num_variants: int, left_s: float) -> tuple[ProfileSettings, int]:
    """Return settings for measuring that fit into the time, and how many of the variants can be measured with them.

    First measurements become shorter, then there are fewer batch sizes and numbers of threads, and only then fewer
    variants. What the user has asked for is never made longer.
    """
    quick = _no_longer(ProfileSettings.quick(), settings)
    short = replace(
        quick,
        batch_sizes=(min(settings.batch_sizes), max(settings.batch_sizes)),
        thread_counts=settings.thread_counts[:1],
        num_cold_starts=min(2, settings.num_cold_starts),
    )
    short = replace(short, batch_sizes=tuple(dict.fromkeys(short.batch_sizes)))
    for candidate in (settings, quick, short):
        if num_variants * profile_s(candidate) <= left_s:
            return candidate, num_variants
    return short, min(num_variants, max(int(left_s / profile_s(short)), 0))


def _no_longer(wanted: ProfileSettings, limit: ProfileSettings) -> ProfileSettings:
    """Return `limit` with every amount at most that of `wanted`, at the same batch sizes and numbers of threads."""
    return replace(
        limit,
        num_rounds=min(wanted.num_rounds, limit.num_rounds),
        round_s=min(wanted.round_s, limit.round_s),
        cell_budget_s=min(wanted.cell_budget_s, limit.cell_budget_s),
        num_cold_starts=min(wanted.num_cold_starts, limit.num_cold_starts),
        cold_start_budget_s=min(wanted.cold_start_budget_s, limit.cold_start_budget_s),
        audit_budget_s=min(wanted.audit_budget_s, limit.audit_budget_s),
    )
