"""How much is measured, and how long that may take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from forwardpass.runtimes.options import num_available_cores

__all__ = ["FULL_AUDIT_S", "ProfileSettings"]

FULL_AUDIT_S = 120.0
"""Enough for every batch size of a model of MiniLM's size, and for everything of one that answers in a millisecond."""


LEAST_DECIDING_ROUNDS = 9
LEAST_TABLE_ROUNDS = 3
"""Of a cell that decides nothing: enough for an interval."""


def _doubling_thread_counts() -> tuple[int, ...]:
    """Return 1, 2, 4, … and the number of cores itself."""
    num_cores = num_available_cores()
    powers = [2**exponent for exponent in range(num_cores.bit_length()) if 2**exponent < num_cores]
    return (*powers, num_cores)


def _extreme_thread_counts() -> tuple[int, ...]:
    return tuple(sorted({1, num_available_cores()}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings:
    """What is measured for every variant. A cell is one variant at one thread count and one batch size.

    A round runs the same calls for every variant and aims at `round_s`; a slow model gets fewer and shorter rounds,
    and a batch size that cannot have a few calls within `cell_budget_s` is skipped, which the result says.
    """

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    thread_counts: tuple[int, ...] = field(default_factory=_doubling_thread_counts)
    num_rounds: int = 9
    round_s: float = 0.2
    cell_budget_s: float = 4.0
    num_cold_starts: int = 5
    cold_start_budget_s: float = 20.0
    """A variant that has spent this starts no further process, but it is started twice at least."""
    audit_budget_s: float = 3.0
    """For the batch-invariance audit of one variant. It ends earlier when everything was compared."""
    audit_thread_counts: tuple[int, ...] = ()
    """Numbers of threads whose answers are compared though nothing else is measured with them."""
    ship_audit_s: float = FULL_AUDIT_S
    """For the full audit of each variant that goes into a bundle; with 0, the verdict of the search stays."""
    trace_s: float = 0.0
    """For finding out in which operators of a variant the time goes; 0 to leave that out."""
    num_start_trials: int = 0
    """How often each way to cut the cold start is tried, in turns with the variant as it is; 0 to leave that out."""
    start_trials_budget_s: float = 45.0
    """For the trials of one variant; each is done five times at least."""
    max_wait_s: float = 300.0
    """A child that gives no answer for so long has failed."""
    is_lean_in_processes: bool = False
    """Whether a variant for ONNX Runtime is measured with all numbers of threads in one process, whose own start is
    its first cold start, and answers are compared in several processes at once, as many as there are cores for."""
    num_table_rounds: int = 0
    """Rounds of the batch sizes beyond the smallest, where these decide nothing; 0 for as many as of the smallest."""
    table_round_s: float = 0.04
    """What such a round aims at."""

    def at(self, batch_size: int, smallest: int) -> ProfileSettings:
        """Return the settings for the rounds of a batch size."""
        if not self.num_table_rounds or batch_size == smallest:
            return self
        return replace(
            self,
            num_rounds=min(self.num_table_rounds, self.num_rounds),
            round_s=min(self.table_round_s, self.round_s),
        )

    def in_fewer_processes(self, num_cold_starts: int, *, one_row_decides: bool) -> ProfileSettings:
        """Return the same settings with fewer starts and, if one row decides, short rounds of the larger batches.

        What is compared stays interleaved, and every number of threads and batch size is still measured. The same time
        goes into more rounds, each shorter: one that something else disturbs then moves the interval less.
        """
        num_rounds = max(self.num_rounds, LEAST_DECIDING_ROUNDS)
        return replace(
            self,
            num_rounds=num_rounds,
            round_s=self.round_s * self.num_rounds / num_rounds,
            is_lean_in_processes=True,
            num_cold_starts=min(num_cold_starts, self.num_cold_starts),
            num_table_rounds=LEAST_TABLE_ROUNDS if one_row_decides else 0,
        )

    def with_full_audit(self, budget_s: float = FULL_AUDIT_S) -> ProfileSettings:
        """Return the same settings with time to compare everything, and every number of threads up to the cores."""
        return replace(self, audit_budget_s=budget_s, audit_thread_counts=tuple(range(1, num_available_cores() + 1)))

    def with_operators(self, trace_s: float = 1.0) -> ProfileSettings:
        """Return the same settings with time to see where the time goes."""
        return replace(self, trace_s=trace_s)

    def with_start_trials(self, num_start_trials: int = 7) -> ProfileSettings:
        """Return the same settings with trials of how to cut the cold start."""
        return replace(self, num_start_trials=num_start_trials)

    @classmethod
    def quick(cls) -> ProfileSettings:
        """Return settings that take a few seconds per variant and still give intervals."""
        return cls(
            batch_sizes=(1, 4, 16),
            thread_counts=_extreme_thread_counts(),
            num_rounds=5,
            round_s=0.08,
            cell_budget_s=0.8,
            num_cold_starts=3,
            cold_start_budget_s=5.0,
            audit_budget_s=0.5,
            ship_audit_s=0.0,
        )
