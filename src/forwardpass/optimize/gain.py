"""How many times better than the float model a variant is, at each target."""

from __future__ import annotations

import numpy as np

from forwardpass.core.measurement import Interval, Measurement
from forwardpass.core.statistics import measure_ratio
from forwardpass.optimize.prices import Prices
from forwardpass.optimize.values import Target
from forwardpass.profile import Cell, ColdStart, VariantProfile

__all__ = ["cell_row_usd", "gain_at"]

MIN_PAIRS = 3
"""With fewer cold starts, an interval from their pairs says nothing."""


def gain_at(target: Target, ours: VariantProfile, theirs: VariantProfile, *, prices: Prices) -> Measurement:
    """Return the gain of one profile over another, both measured in the same rounds."""
    if target is Target.SIZE:
        # A module that is code of the user's has no size; it is neither better nor worse.
        ratio = (theirs.file_bytes or 0) / ours.file_bytes if ours.file_bytes else 1.0
        return Measurement(value=ratio, unit="ratio", interval=Interval(low=ratio, high=ratio), num_repetitions=1)
    if target is Target.COLD_START:
        return _of_starts(theirs.cold_start, ours.cold_start)
    if target is Target.LATENCY:
        return _paired(theirs.best_latency, ours.best_latency)
    if target is Target.THROUGHPUT:
        return _paired(theirs.best_throughput, ours.best_throughput)
    their_usd, our_usd = (_round_usd(profile, _cheapest(profile, prices), prices) for profile in (theirs, ours))
    num_pairs = min(len(their_usd), len(our_usd))
    return measure_ratio(their_usd[:num_pairs], our_usd[:num_pairs])


def cell_row_usd(profile: VariantProfile, prices: Prices) -> float:
    """Return the price of a row at the batch size and number of threads that are cheapest for the variant."""
    return _row_usd(profile, _cheapest(profile, prices), prices)


def _cheapest(profile: VariantProfile, prices: Prices) -> Cell:
    """Return the cheapest of the cells that requests may use: the sizes among which rows do not change each other."""
    sizes = {profile.batch_sizes[0]}
    if not prices.one_request_at_a_time:
        sizes.add(profile.best_throughput.batch_size)
    cells = [cell for cell in profile.cells if cell.batch_size in sizes]
    return min(cells, key=lambda cell: _row_usd(profile, cell, prices))


def _row_usd(profile: VariantProfile, cell: Cell, prices: Prices) -> float:
    return prices.row_usd(
        row_s=cell.p50_s.value / cell.batch_size,
        num_threads=cell.num_threads,
        memory_bytes=profile.memory.peak_bytes.value,
    )


def _round_usd(profile: VariantProfile, cell: Cell, prices: Prices) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return what a row cost in each round."""
    memory_bytes = profile.memory.peak_bytes.value
    return np.array(
        [
            prices.row_usd(row_s=float(seconds), num_threads=cell.num_threads, memory_bytes=memory_bytes)
            for seconds in _seconds_per_row(cell)
        ]
    )


def _paired(theirs: Cell, ours: Cell) -> Measurement:
    num_pairs = min(len(ours.round_p50_s), len(theirs.round_p50_s))
    return measure_ratio(_seconds_per_row(theirs)[:num_pairs], _seconds_per_row(ours)[:num_pairs])


def _of_starts(theirs: ColdStart, ours: ColdStart) -> Measurement:
    num_pairs = min(len(theirs.round_total_s), len(ours.round_total_s))
    if num_pairs < MIN_PAIRS:
        return _unpaired(theirs.total_s, ours.total_s)
    return measure_ratio(np.array(theirs.round_total_s[:num_pairs]), np.array(ours.round_total_s[:num_pairs]))


def _unpaired(theirs: Measurement, ours: Measurement) -> Measurement:
    """Divide two medians; the interval takes both at their worst."""
    interval = Interval(
        low=theirs.interval.low / ours.interval.high,
        high=theirs.interval.high / ours.interval.low,
    )
    return Measurement(
        value=theirs.value / ours.value, unit="ratio", interval=interval, num_repetitions=ours.num_repetitions
    )


def _seconds_per_row(cell: Cell) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(cell.round_p50_s) / cell.batch_size
