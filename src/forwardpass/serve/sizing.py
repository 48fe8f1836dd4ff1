"""How many workers of how many threads, and how many rows in a batch: decided from the variant's profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from forwardpass.bundle import BundledVariant
from forwardpass.core.batch_sizes import allowed_rows, padded_rows
from forwardpass.core.latency import LatencyTable
from forwardpass.core.slo import Slo
from forwardpass.core.variants import BatchInvariance, Format
from forwardpass.predict import SameAnswer, exact_batch_sizes, max_batch_rows
from forwardpass.serve.settings import LowLoadThreads, ModelSettings
from forwardpass.serve.weights import may_share

__all__ = ["Sizing", "WideSizing", "choose_sizing", "paddable_axes"]

MIN_ROW_S = 0.2e-3
"""Where a row takes less, the front is the limit, and another worker would only take its core away.

Reading and answering a request takes native code about 10 µs of a core, and the front in Python 70 µs.
"""

MIN_GAIN = 1.15
"""Several slow workers have to promise so much more throughput than one fast one; each holds a copy of the model."""

MAX_COPIES_BYTES = 2**30
"""Up to so much for copies that are not shared, any gain will do where there is a target. The profile has the machine
to itself; beside a front and clients, several sessions of one thread keep what it promises, and threads that wait for
each other do not.
"""

SHARE_OF_TARGET = 1 / 2
"""A batch may take so much of the target: the next one waits for it."""


MAX_SHARE_OF_TIME = 0.8
"""A row on all cores may take so much of what it takes in a worker: less of a gain is not worth a copy of the model."""

OWN_THREADS = (Format.ONNX, Format.ORT)
"""Forms whose threads belong to a session, so that a process can hold two with different numbers of them, and which
leave the cores alone between runs. Those of PyTorch and ExecuTorch belong to the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WideSizing:
    """How a lone request is run on all cores; `table` holds the latencies measured so."""

    num_threads: int
    table: LatencyTable
    is_exact: bool
    """Whether its answers have to be those of the workers to the last bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """How a variant is run. `table` holds the measured latencies for this number of threads, if there are any."""

    num_threads: int
    num_workers: int
    max_batch_rows: int
    table: LatencyTable | None
    batch_sizes: tuple[int, ...] = ()
    """The only sizes that may run, where answers are the same for these alone; empty for any."""
    wide: WideSizing | None = None
    """None where a lone request has no more than the threads of a worker."""


def choose_sizing(
    variant: BundledVariant, settings: ModelSettings, *, slo: Slo | None, num_cores: int, variant_bytes: int = 0
) -> Sizing:
    """Decide what the operator has not.

    The number of threads is that with the lowest latency for one row, unless fewer threads in more workers promise
    more rows per second. A target says what latency is good enough: then only batches that leave time for the one
    before count, and a smaller gain will do, unless there are copies of the model, each of `variant_bytes`, that become
    large.
    """
    tables = [table for table in variant.latency if settings.num_threads in (None, table.num_threads)]
    if not tables:
        num_threads = settings.num_threads or num_cores
        return _sized(variant, settings, num_threads, settings.num_workers or 1, None)
    return _with_wide(
        _choose(variant, settings, tables, slo=slo, num_cores=num_cores, variant_bytes=variant_bytes),
        variant,
        settings,
        num_cores=num_cores,
        variant_bytes=variant_bytes,
    )


def _choose(
    variant: BundledVariant,
    settings: ModelSettings,
    tables: Sequence[LatencyTable],
    *,
    slo: Slo | None,
    num_cores: int,
    variant_bytes: int,
) -> Sizing:
    options = [(table, settings.num_workers or _num_workers(table, num_cores)) for table in tables]
    table, num_workers = min(options, key=lambda option: option[0].points[0].p50_s)
    for other, others_workers in options:
        is_small = _are_copies_small(variant, others_workers, variant_bytes)
        least = 1.0 if slo is not None and is_small else MIN_GAIN
        if _rate_in_time(other, slo) * others_workers > least * _rate_in_time(table, slo) * num_workers:
            table, num_workers = other, others_workers
    return _sized(variant, settings, table.num_threads, num_workers, table)


def paddable_axes(variant: BundledVariant, same_answer: SameAnswer) -> tuple[str, ...]:
    """Return the axes along which requests may be padded to share a batch.

    Padding has to keep what the variant keeps without it: where answers are the same to the last bit, rounding that
    depends on the neighbours is admitted only if the operator asks for no more than that.
    """
    if variant.padding is None:
        return ()
    is_rounding_anyway = variant.invariance is BatchInvariance.TOLERANCE or same_answer is SameAnswer.ROUNDING
    is_kept = variant.padding.invariance is BatchInvariance.BITWISE or is_rounding_anyway
    return (variant.padding.axis,) if is_kept else ()


def _sized(
    variant: BundledVariant, settings: ModelSettings, num_threads: int, num_workers: int, table: LatencyTable | None
) -> Sizing:
    wanted = settings.max_batch_rows or max_batch_rows(variant, table)
    batch_sizes = exact_batch_sizes(variant, settings.same_answer, wanted, table)
    return Sizing(
        num_threads=num_threads,
        num_workers=num_workers,
        max_batch_rows=allowed_rows(wanted, batch_sizes),
        table=table,
        batch_sizes=batch_sizes,
    )


def _with_wide(
    sizing: Sizing, variant: BundledVariant, settings: ModelSettings, *, num_cores: int, variant_bytes: int
) -> Sizing:
    """Let a lone request run on all cores, if that is wanted, safe, not too large, and by its profile clearly sooner.

    Only with a profile are there several workers that the operator has not asked for; where he has set the threads,
    they are those of every request.
    """
    is_wanted = settings.low_load_threads is LowLoadThreads.AUTO and settings.num_threads is None
    is_small = _are_copies_small(variant, sizing.num_workers + 1, variant_bytes)
    narrow = sizing.table
    if narrow is None or sizing.num_workers == 1 or not is_wanted or not is_small or variant.format not in OWN_THREADS:
        return sizing
    num_rows = padded_rows(1, sizing.batch_sizes)
    is_exact = _keeps_bits(variant, sizing, settings.same_answer)
    tables = [
        table
        for table in variant.latency
        if sizing.num_threads < table.num_threads <= num_cores
        and table.predict_median_s(num_rows) <= MAX_SHARE_OF_TIME * narrow.predict_median_s(num_rows)
        and not (is_exact and not {sizing.num_threads, table.num_threads} <= set(variant.exact_thread_counts))
    ]
    if not tables:
        return sizing
    table = min(tables, key=lambda table: table.predict_median_s(num_rows))
    return replace(sizing, wide=WideSizing(num_threads=table.num_threads, table=table, is_exact=is_exact))


def _are_copies_small(variant: BundledVariant, num_copies: int, variant_bytes: int) -> bool:
    """Tell whether so many sessions of a variant take little memory.

    Weights that they share are there once, however many they are: 400 MB of them took 470 MB in two sessions, in three,
    and, in a third process, 30 MB more. Each of its own took 400 MB more.
    """
    is_shared = may_share(variant, num_workers=num_copies, num_bytes=variant_bytes)
    return is_shared or num_copies * variant_bytes <= MAX_COPIES_BYTES


def _keeps_bits(variant: BundledVariant, sizing: Sizing, same_answer: SameAnswer) -> bool:
    """Tell whether answers are the same to the last bit as long as the number of threads is."""
    if same_answer is SameAnswer.AFFORDABLE:
        return bool(sizing.batch_sizes) or variant.invariance not in (
            BatchInvariance.FIXED_SHAPES,
            BatchInvariance.TOLERANCE,
        )
    return same_answer is SameAnswer.BITWISE


def _num_workers(table: LatencyTable, num_cores: int) -> int:
    return max(1, num_cores // table.num_threads) if 1 / _rows_per_s(table) >= MIN_ROW_S else 1


def _rows_per_s(table: LatencyTable) -> float:
    size = table.best_batch_size
    return size / table.predict_median_s(size)


def _rate_in_time(table: LatencyTable, slo: Slo | None) -> float:
    """Return the most rows per second of a worker whose batches leave time for the one before; 0 if none does."""
    if slo is None:
        return _rows_per_s(table)
    in_time = (point for point in table.points if point.p95_s <= SHARE_OF_TARGET * slo.limit_s)
    return max((point.batch_size / point.p50_s for point in in_time), default=0.0)
