"""Made-up profiles."""

from __future__ import annotations

import numpy as np

from forwardpass.core.measurement import Interval, Measurement
from forwardpass.core.variants import BatchInvariance
from forwardpass.profile import Cell, ColdStart, InvarianceVerdict, Memory, SkippedCell, VariantProfile

__all__ = ["example_profile"]


def exactly(value: float, unit: str = "s") -> Measurement:
    return Measurement(
        value=value, unit=unit, interval=Interval(low=value * 0.97, high=value * 1.05), num_repetitions=5
    )


def example_profile(
    name: str = "fp32",
    *,
    row_s: float = 2e-3,
    round_p50_s: tuple[float, ...] = (1e-3,) * 5,
    thread_counts: tuple[int, ...] = (1,),
    batch_sizes: tuple[int, ...] = (1,),
    verdict: BatchInvariance = BatchInvariance.BITWISE,
) -> VariantProfile:
    cells = [_cell(threads, size, row_s, round_p50_s) for threads in thread_counts for size in batch_sizes]
    return VariantProfile(
        variant=name,
        runtime="onnxruntime",
        runtime_version="1.0",
        file_bytes=4_000_000,
        cells=tuple(cells),
        skipped=(SkippedCell(num_threads=1, batch_size=64, reason="9 calls would take about 9 s"),),
        cold_start=ColdStart(
            start_s=exactly(0.05),
            import_s=exactly(0.15),
            load_s=exactly(30 * row_s),
            first_run_s=exactly(2 * row_s),
            total_s=exactly(0.2 + 32 * row_s),
        ),
        memory=Memory(peak_bytes=exactly(9e7, "bytes"), added_bytes=exactly(4e7, "bytes")),
        invariance=InvarianceVerdict(
            verdict=verdict, max_difference=0.0, worst_case="", num_comparisons=40, is_same_across_threads=True
        ),
    )


def _cell(num_threads: int, batch_size: int, row_s: float, round_p50_s: tuple[float, ...]) -> Cell:
    seconds = row_s * (0.3 + 0.7 * batch_size) / float(np.sqrt(num_threads))
    return Cell(
        num_threads=num_threads,
        batch_size=batch_size,
        p50_s=exactly(seconds),
        p95_s=exactly(seconds * 1.2),
        p99_s=exactly(seconds * 1.5),
        cpu_p50_s=exactly(seconds * num_threads),
        rows_per_s=exactly(batch_size / seconds, "rows/s"),
        num_calls=100,
        round_p50_s=round_p50_s,
    )
