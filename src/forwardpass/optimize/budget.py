"""A search's time: how much is left, and how much measuring fits into it."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field, replace

from forwardpass.errors import InvalidOption
from forwardpass.profile import ProfileSettings
from forwardpass.profile.pacing import MIN_CALLS_PER_ROUND, MIN_ROUNDS

__all__ = ["Budget", "Pace", "fit_profile", "least_profile", "parse_duration_s", "profile_s"]

_DURATION = re.compile(r"(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>s|m|h)", re.ASCII)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
START_S = 0.7
"""Of a process that loads a runtime; each sweep and each cold start begins so, and then loads the model."""
NUM_EXTRA_STARTS = 4
SAFETY = 1.25
"""Of the estimate: other processes on the machine, and calls that are longer than a round was meant to be."""
LEAST_CALLS = MIN_ROUNDS * (MIN_CALLS_PER_ROUND + 1) + 3
"""Of the smallest batch, however long a call takes: the rounds with the call that each begins with, and warming up."""
WRITTEN_BYTES_PER_S = 40e6
"""Of a float file, by the quantiser: 430 MB took 8 s on a processor of its own and 30 s on one that four share."""
LEAST_STARTS = 2
"""Cold starts of a variant, however long one takes."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How slow the float model is here: the seconds of loading it, and of a call with one row; and its size."""

    load_s: float = 0.0
    call_s: float = 0.0
    num_bytes: int = 0

    def making_s(self, *, num_writes: float, num_calls: int) -> float:
        """Estimate the seconds of making a variant."""
        return 2 * self.load_s + num_writes * self.num_bytes / WRITTEN_BYTES_PER_S + num_calls * self.call_s


def profile_s(settings: ProfileSettings, pace: Pace) -> float:
    """Estimate the seconds that measuring one variant takes, on the side of too many."""
    start_s = START_S + pace.load_s + pace.call_s
    cell_s = min(settings.cell_budget_s, 1.5 * settings.num_rounds * settings.round_s)
    num_threads, num_sizes = len(settings.thread_counts), len(settings.batch_sizes)
    cells_s = num_threads * (max(cell_s, LEAST_CALLS * pace.call_s) + (num_sizes - 1) * cell_s)
    cold_s = min(settings.cold_start_budget_s + start_s, settings.num_cold_starts * 2 * start_s)
    cold_s = max(cold_s, min(LEAST_STARTS, settings.num_cold_starts) * start_s)
    starts_s = (num_threads + NUM_EXTRA_STARTS) * START_S + num_threads * pace.load_s
    return SAFETY * (cells_s + cold_s + settings.audit_budget_s + 3 * pace.call_s + starts_s)


def fit_profile(settings: ProfileSettings, num_variants: int, left_s: float, pace: Pace) -> tuple[ProfileSettings, int]:
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
    least = least_profile(settings)
    for candidate in (settings, quick, short, least):
        if num_variants * profile_s(candidate, pace) <= left_s:
            return candidate, num_variants
    return least, min(num_variants, max(int(left_s / profile_s(least, pace)), 0))


def least_profile(settings: ProfileSettings) -> ProfileSettings:
    """Return the least that can be measured: one row, one number of threads, one cold start."""
    quick = _no_longer(ProfileSettings.quick(), settings)
    return replace(
        quick,
        batch_sizes=(min(settings.batch_sizes),),
        thread_counts=settings.thread_counts[:1],
        num_cold_starts=1,
        audit_budget_s=min(0.2, settings.audit_budget_s),
    )


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
        is_lean_in_processes=wanted.is_lean_in_processes,
        num_table_rounds=wanted.num_table_rounds,
    )
