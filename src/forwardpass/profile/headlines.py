"""What a reader of a profile should take home, in one line each."""

from __future__ import annotations

from collections.abc import Sequence

from forwardpass.core.variants import BatchInvariance
from forwardpass.profile.profiles import Cell, VariantProfile, speedup
from forwardpass.report.format import format_bytes, format_count, format_number_of, format_ratio, format_seconds
from forwardpass.report.page import State, Verdict

__all__ = ["summarise"]


def summarise(profiles: Sequence[VariantProfile]) -> list[Verdict]:
    """Return the findings that a reader should take home."""
    return [
        _fastest(profiles),
        _most_rows(profiles),
        _shortest_start(profiles),
        _least_memory(profiles),
        _same_answer(profiles),
    ]


def _fastest(profiles: Sequence[VariantProfile]) -> Verdict:
    def first(profile: VariantProfile) -> Cell:
        return min(_cells_of(profile, profile.batch_sizes[0]), key=lambda cell: cell.p50_s.value)

    best = min(profiles, key=lambda profile: first(profile).p50_s.value)
    cell = first(best)
    where = f"{best.variant}, batch size {cell.batch_size}, {format_number_of(cell.num_threads, 'thread')}"
    note = f"{where}; p95 {format_seconds(cell.p95_s.value)}."
    return Verdict(
        label="Lowest latency (p50)",
        value=format_seconds(cell.p50_s.value),
        note=f"{note} {_compare(best, profiles[0], cell)}".strip(),
    )


def _compare(profile: VariantProfile, baseline: VariantProfile, cell: Cell) -> str:
    """Say how many times faster a variant is than the first one, if it is another and was measured there."""
    if profile is baseline or baseline.find(cell.num_threads, cell.batch_size) is None:
        return ""
    ratio = speedup(profile, baseline, num_threads=cell.num_threads, batch_size=cell.batch_size)
    low, high = format_ratio(ratio.interval.low), format_ratio(ratio.interval.high)
    return f"{format_ratio(ratio.value)} as fast as {baseline.variant} ({low} to {high})."


def _most_rows(profiles: Sequence[VariantProfile]) -> Verdict:
    pairs = [(profile, cell) for profile in profiles for cell in profile.cells]
    best, cell = max(pairs, key=lambda pair: pair[1].rows_per_s.value)
    return Verdict(
        label="Highest throughput",
        value=f"{format_count(cell.rows_per_s.value)} rows/s",
        note=f"{best.variant}, batch size {cell.batch_size}, {format_number_of(cell.num_threads, 'thread')}.",
    )


def _shortest_start(profiles: Sequence[VariantProfile]) -> Verdict:
    best = min(profiles, key=lambda profile: profile.cold_start.total_s.value)
    own_s = best.cold_start.load_s.value + best.cold_start.first_run_s.value
    return Verdict(
        label="Shortest cold start",
        value=format_seconds(best.cold_start.total_s.value),
        note=f"{best.variant}; the model itself takes {format_seconds(own_s)} of it.",
    )


def _least_memory(profiles: Sequence[VariantProfile]) -> Verdict:
    best = min(profiles, key=lambda profile: profile.memory.peak_bytes.value)
    added = format_bytes(best.memory.added_bytes.value)
    return Verdict(
        label="Least memory (peak)",
        value=format_bytes(best.memory.peak_bytes.value),
        note=f"{best.variant}; the model adds {added} of it.",
    )


def _same_answer(profiles: Sequence[VariantProfile]) -> Verdict:
    guilty = [profile for profile in profiles if profile.invariance.verdict is BatchInvariance.INTERFERENCE]
    if guilty:
        names = ", ".join(profile.variant for profile in guilty)
        return Verdict(
            label="Same answer",
            value=f"{len(profiles) - len(guilty)} of {len(profiles)}",
            note=f"Requests change each other's answers in {names}. Do not batch across requests there.",
            word="INTERFERENCE",
            state=State.BAD,
        )
    restless = [profile.variant for profile in profiles if profile.invariance.is_same_in_fresh_processes is False]
    if restless:
        return Verdict(
            label="Same answer",
            value=f"{len(profiles) - len(restless)} of {len(profiles)}",
            note=f"A newly started process answers otherwise in {', '.join(restless)}.",
            word="DIFFERS",
            state=State.WARN,
        )
    verdicts = [profile.invariance.verdict for profile in profiles]
    fixed = verdicts.count(BatchInvariance.FIXED_SHAPES)
    at_fixed = f", {fixed} more at fixed batch sizes" if fixed else ""
    return Verdict(
        label="Same answer",
        value=f"{len(profiles)} of {len(profiles)}",
        note=f"{format_number_of(verdicts.count(BatchInvariance.BITWISE), 'variant')} to the last bit{at_fixed}.",
        word="KEPT",
        state=State.GOOD,
    )


def _cells_of(profile: VariantProfile, batch_size: int) -> list[Cell]:
    return [cell for cell in profile.cells if cell.batch_size == batch_size]
