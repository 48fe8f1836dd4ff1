"""What was measured of a variant, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forwardpass.core.latency import LatencyPoint, LatencyTable
from forwardpass.core.measurement import Measurement
from forwardpass.core.operators import OperatorBreakdown
from forwardpass.core.statistics import bootstrap_interval, measure_median, measure_ratio, percentile
from forwardpass.core.variants import BatchInvariance
from forwardpass.errors import InvalidOption
from forwardpass.profile.audits import InvarianceVerdict
from forwardpass.profile.starts import StartStudy

__all__ = [
    "Cell",
    "ColdStart",
    "Memory",
    "RoundTimes",
    "SkippedCell",
    "VariantProfile",
    "speedup",
    "summarise_cell",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Calls of one batch size with one number of threads.

    `p50_s`, `p95_s` and `p99_s` are wall time, `cpu_p50_s` is the processor time of all threads together.
    `round_p50_s` holds the median of each round, in order: round by round, variants that were profiled together
    ran the same calls at nearly the same time.
    """

    num_threads: int
    batch_size: int
    p50_s: Measurement
    p95_s: Measurement
    p99_s: Measurement
    cpu_p50_s: Measurement
    rows_per_s: Measurement
    num_calls: int
    round_p50_s: tuple[float, ...]
    round_rss_bytes: tuple[int, ...] = ()
    """Resident memory after each round, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedCell:
    """What was not measured, and why."""

    num_threads: int
    batch_size: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """From the start of a fresh process to its first answer, with the files already in the page cache.

    `total_s` is seen from outside; `start_s` is what it holds beyond the other three: Python itself, reading the
    inputs, and the way of the answer.
    """

    start_s: Measurement
    import_s: Measurement
    load_s: Measurement
    first_run_s: Measurement
    total_s: Measurement
    round_total_s: tuple[float, ...] = ()
    """Start by start, in order: variants that were profiled together started in turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory of a fresh process that loads the variant and runs one call of the smallest batch size.

    `added_bytes` is the peak less what the process held before it loaded: the model's own share.
    """

    peak_bytes: Measurement
    added_bytes: Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantProfile:
    """Everything that was measured of one variant."""

    variant: str
    runtime: str
    runtime_version: str
    file_bytes: int | None
    """None for a source whose weights are not in a file of their own."""
    cells: tuple[Cell, ...]
    skipped: tuple[SkippedCell, ...]
    cold_start: ColdStart
    memory: Memory
    invariance: InvarianceVerdict
    row_size: int = 0
    """Elements of one row over all inputs, in the median call; 0 where nobody noted it."""
    operators: tuple[OperatorBreakdown, ...] = ()
    """Where the time goes, for the smallest and the largest batch size; empty if that was not asked, or not told."""
    starts: StartStudy | None = None
    """What shortens the cold start; None if that was not asked."""

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """The numbers of threads that were measured, in increasing order."""
        return tuple(sorted({cell.num_threads for cell in self.cells}))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that were measured with any number of threads, in increasing order."""
        return tuple(sorted({cell.batch_size for cell in self.cells}))

    @property
    def best_latency(self) -> Cell:
        """The cell of the smallest batch size at the number of threads that is fastest there."""
        smallest = self.batch_sizes[0]
        return min((cell for cell in self.cells if cell.batch_size == smallest), key=lambda cell: cell.p50_s.value)

    @property
    def best_throughput(self) -> Cell:
        """The cell with the most rows per second, among the batch sizes that requests may share.

        Where rows change each other's answers, that is only the smallest.
        """
        interferes = self.invariance.verdict is BatchInvariance.INTERFERENCE
        sizes = self.batch_sizes[:1] if interferes else self.batch_sizes
        return max((cell for cell in self.cells if cell.batch_size in sizes), key=lambda cell: cell.rows_per_s.value)

    def knee(self, num_threads: int) -> Cell | None:
        """Return the smallest batch size beyond which rows per second no longer grow by 5 %; None if not measured."""
        tables = {table.num_threads: table for table in self.latency_tables()}
        return self.find(num_threads, tables[num_threads].best_batch_size) if num_threads in tables else None

    @property
    def growth_bytes_per_call(self) -> float:
        """How much memory a call leaves behind, by the median over all cells: 0 where it settles, as it should.

        Of each cell the second half of the rounds counts: in the first, buffers still grow to the size of the batch.
        """
        rates = [
            (cell.round_rss_bytes[-1] - cell.round_rss_bytes[half])
            / (cell.num_calls * (1 - half / len(cell.round_rss_bytes)))
            for cell in self.cells
            if (half := len(cell.round_rss_bytes) // 2) and cell.num_calls
        ]
        return max(float(np.median(rates)), 0.0) if rates else 0.0

    def find(self, num_threads: int, batch_size: int) -> Cell | None:
        """Return what was measured there, or None."""
        for cell in self.cells:
            if (cell.num_threads, cell.batch_size) == (num_threads, batch_size):
                return cell
        return None

    def at(self, num_threads: int, batch_size: int) -> Cell:
        """Return what was measured there.

        Raises:
            InvalidOption: it was not measured.
        """
        cell = self.find(num_threads, batch_size)
        if cell is None:
            measured = ", ".join(f"{cell.num_threads}x{cell.batch_size}" for cell in self.cells)
            raise InvalidOption(
                option="threads x batch size",
                value=f"{num_threads}x{batch_size}",
                expected=f"one that was measured for '{self.variant}': {measured}",
            )
        return cell

    def latency_tables(self) -> tuple[LatencyTable, ...]:
        """Return one table for each number of threads."""
        return tuple(
            LatencyTable(
                num_threads=num_threads,
                row_size=self.row_size,
                points=tuple(
                    LatencyPoint(batch_size=cell.batch_size, p50_s=cell.p50_s.value, p95_s=cell.p95_s.value)
                    for cell in sorted(self.cells, key=lambda cell: cell.batch_size)
                    if cell.num_threads == num_threads
                ),
            )
            for num_threads in self.thread_counts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTimes:
    """Wall time and CPU time of the calls of one round, and the resident memory after it."""

    wall_s: Sequence[float]
    cpu_s: Sequence[float]
    rss_bytes: int = 0


def speedup(
    profile: VariantProfile, baseline: VariantProfile, *, num_threads: int | None = None, batch_size: int | None = None
) -> Measurement:
    """Return how many times faster `profile` is than `baseline`, from rounds that ran side by side.

    Without `num_threads` and `batch_size` the smallest measured ones are compared. The profiles must come from the
    same `profile_variants`; otherwise their rounds are no pairs.
    """
    threads = baseline.thread_counts[0] if num_threads is None else num_threads
    rows = baseline.batch_sizes[0] if batch_size is None else batch_size
    slow, fast = baseline.at(threads, rows).round_p50_s, profile.at(threads, rows).round_p50_s
    num_pairs = min(len(slow), len(fast))
    return measure_ratio(np.array(slow[:num_pairs]), np.array(fast[:num_pairs]))


def summarise_cell(*, num_threads: int, batch_size: int, rounds: Sequence[RoundTimes]) -> Cell:
    """Summarise interleaved rounds."""
    walls = [np.asarray(times.wall_s) for times in rounds]
    medians = tuple(float(np.median(wall)) for wall in walls)
    return Cell(
        num_threads=num_threads,
        batch_size=batch_size,
        p50_s=measure_percentile(walls, 50),
        p95_s=measure_percentile(walls, 95),
        p99_s=measure_percentile(walls, 99),
        cpu_p50_s=measure_percentile([np.asarray(times.cpu_s) for times in rounds], 50),
        rows_per_s=measure_median(np.array([batch_size * len(wall) / wall.sum() for wall in walls]), unit="rows/s"),
        num_calls=sum(len(wall) for wall in walls),
        round_p50_s=medians,
        round_rss_bytes=tuple(times.rss_bytes for times in rounds if times.rss_bytes),
    )


def measure_percentile(rounds: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]], percent: float) -> Measurement:
    """Measure a percentile over blocks of rounds that are long enough to contain it.

    Rounds are joined in order until a block has at least 1 / (1 - percent) calls: twenty for p95, a hundred for p99.
    With three blocks or more the median over the blocks is returned, which one disturbed round cannot move; with
    fewer, the percentile of all calls, and its interval is from resampling the calls.
    """
    blocks = _join(rounds, min_calls=round(100 / (100 - percent)))
    if len(blocks) >= 3:
        return measure_median(np.array([percentile(block, percent) for block in blocks]), unit="s")
    calls = np.concatenate(list(rounds))
    interval = bootstrap_interval(calls, lambda drawn: percentile(drawn, percent), num_resamples=200)
    value = percentile(calls, percent)
    return Measurement(value=value, unit="s", interval=interval, num_repetitions=len(calls))


def _join(
    rounds: Sequence[np.ndarray[tuple[int], np.dtype[np.float64]]], *, min_calls: int
) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Join consecutive rounds into blocks of at least `min_calls`; a shorter rest goes to the last block."""
    blocks: list[list[np.ndarray[tuple[int], np.dtype[np.float64]]]] = [[]]
    for times in rounds:
        if sum(map(len, blocks[-1])) >= min_calls:
            blocks.append([])
        blocks[-1].append(times)
    if len(blocks) > 1 and sum(map(len, blocks[-1])) < min_calls:
        rest = blocks.pop()
        blocks[-1].extend(rest)
    return [np.concatenate(block) for block in blocks]
