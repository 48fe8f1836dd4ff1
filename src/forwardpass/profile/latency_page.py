"""Latency and throughput, as sections of the profile's page: the curves, and every number behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from forwardpass.core.measurement import Measurement
from forwardpass.profile.profiles import Cell, VariantProfile
from forwardpass.report.charts import Point, Series, line_chart
from forwardpass.report.format import format_count, format_number_of, format_seconds
from forwardpass.report.page import (
    Column,
    Figure,
    RowGroup,
    Section,
    render_figures,
    render_key,
    render_measurement,
    render_notes,
    render_table,
)

__all__ = ["latency_section", "numbers_section"]

_LOG_FROM_RANGE = 12.0
"""An axis over a wider range than this is logarithmic: on a linear one the fast variants would lie on the floor."""


def latency_section(profiles: Sequence[VariantProfile]) -> Section:
    """Return the curves over the batch size, two for each number of threads."""
    figures = [
        figure
        for num_threads in _thread_counts(profiles)
        for figure in (_latency_figure(profiles, num_threads), _throughput_figure(profiles, num_threads))
    ]
    parts = (render_key([profile.variant for profile in profiles]), render_figures(figures))
    skipped = [line for profile in profiles for line in _skipped_lines(profile)]
    notes = (render_notes(skipped),) if skipped else ()
    return Section(
        title="Latency and throughput",
        lead="One call against the number of rows in it. The shaded bands are 95 % intervals.",
        parts=(*parts, *notes),
    )


def _latency_figure(profiles: Sequence[VariantProfile], num_threads: int) -> Figure:
    title = f"Latency (p50), {format_number_of(num_threads, 'thread')}"
    values = [cell.p50_s.value for profile in profiles for cell in profile.cells]
    svg = line_chart(
        [
            _series(profile, tone, num_threads, lambda cell: cell.p50_s, format_seconds)
            for tone, profile in enumerate(profiles)
        ],
        title=title,
        x_label="rows in a call (batch size)",
        y_label="latency",
        y_format=_short_seconds,
        x_ticks=_batch_sizes(profiles),
        log_x=True,
        log_y=max(values) > _LOG_FROM_RANGE * min(values),
    )
    return Figure(title=title, svg=svg)


def _throughput_figure(profiles: Sequence[VariantProfile], num_threads: int) -> Figure:
    title = f"Throughput, {format_number_of(num_threads, 'thread')}"
    values = [cell.rows_per_s.value for profile in profiles for cell in profile.cells]
    svg = line_chart(
        [
            _series(profile, tone, num_threads, lambda cell: cell.rows_per_s, format_count)
            for tone, profile in enumerate(profiles)
        ],
        title=title,
        x_label="rows in a call (batch size)",
        y_label="rows per second",
        y_format=_short_count,
        x_ticks=_batch_sizes(profiles),
        log_x=True,
        log_y=max(values) > _LOG_FROM_RANGE * min(values),
    )
    return Figure(title=title, svg=svg)


def _series(
    profile: VariantProfile,
    tone: int,
    num_threads: int,
    measure: Callable[[Cell], Measurement],
    write: Callable[[float], str],
) -> Series:
    points = []
    for cell in sorted(profile.cells, key=lambda cell: cell.batch_size):
        if cell.num_threads != num_threads:
            continue
        measured = measure(cell)
        low, high = measured.interval.low, measured.interval.high
        title = f"batch size {cell.batch_size}, {write(measured.value)} ({write(low)} to {write(high)})"
        points.append(Point(x=cell.batch_size, y=measured.value, low=low, high=high, title=title))
    return Series(name=profile.variant, points=tuple(points), tone=tone)


def _skipped_lines(profile: VariantProfile) -> list[str]:
    """Say what was not measured, in one line for each number of threads."""
    lines = []
    for num_threads in sorted({it.num_threads for it in profile.skipped}):
        skipped = [it for it in profile.skipped if it.num_threads == num_threads]
        sizes = ", ".join(str(it.batch_size) for it in skipped)
        where = f"{profile.variant}, {format_number_of(num_threads, 'thread')}, batch size {sizes}"
        lines.append(f"{where}: not measured; {skipped[0].reason}.")
    return lines


def numbers_section(profiles: Sequence[VariantProfile]) -> Section:
    """Return the table of every measured cell."""
    columns = [
        Column(title="Threads", kind="number"),
        Column(title="Batch size", kind="number"),
        Column(title="p50", kind="number"),
        Column(title="p95", kind="number"),
        Column(title="p99", kind="number"),
        Column(title="CPU time p50", kind="number"),
        Column(title="Rows/s", kind="number"),
        Column(title="Calls", kind="number"),
    ]
    groups = [
        RowGroup(title=_heading(profile), rows=[_number_row(cell) for cell in _sorted_cells(profile)])
        for profile in profiles
    ]
    return Section(title="All numbers", lead="Each with its 95 % interval.", parts=(render_table(columns, groups),))


def _heading(profile: VariantProfile) -> str:
    return f"{profile.variant} · {profile.runtime} {profile.runtime_version}"


def _number_row(cell: Cell) -> list[str | Markup]:
    return [
        str(cell.num_threads),
        str(cell.batch_size),
        render_measurement(cell.p50_s),
        render_measurement(cell.p95_s),
        render_measurement(cell.p99_s),
        render_measurement(cell.cpu_p50_s),
        render_measurement(cell.rows_per_s),
        f"{cell.num_calls:,}",
    ]


def _sorted_cells(profile: VariantProfile) -> list[Cell]:
    return sorted(profile.cells, key=lambda cell: (cell.num_threads, cell.batch_size))


def _thread_counts(profiles: Sequence[VariantProfile]) -> list[int]:
    return sorted({count for profile in profiles for count in profile.thread_counts})


def _batch_sizes(profiles: Sequence[VariantProfile]) -> list[int]:
    return sorted({size for profile in profiles for size in profile.batch_sizes})


def _short_seconds(seconds: float) -> str:
    """Write a tick: the value is round, so that no decimals are needed for its own sake."""
    if seconds >= 1 or seconds == 0:
        return f"{seconds:g} s"
    return f"{seconds * 1e3:g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.4g} µs"


def _short_count(number: float) -> str:
    if number >= 1e6:
        return f"{number / 1e6:g} M"
    return f"{number / 1e3:g} k" if number >= 1e4 else f"{number:,.6g}"
