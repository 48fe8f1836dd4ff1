"""Cold start and memory, as a section of the profile's page."""

from __future__ import annotations

from collections.abc import Sequence

from forwardpass.profile.profiles import VariantProfile
from forwardpass.report.charts import Bar, BarPart, Point, Series, line_chart, stacked_bars
from forwardpass.report.format import format_bytes, format_measurement, format_seconds
from forwardpass.report.page import Figure, Section, render_figures

__all__ = ["footprint_section"]


def footprint_section(profiles: Sequence[VariantProfile]) -> Section:
    """Return what a new replica costs: the phases of its start, and its memory."""
    over_time = [_memory_over_time_figure(profiles)] if any(_rss_of(profile) for profile in profiles) else []
    return Section(
        title="Cold start and memory",
        lead="What a new replica costs before it earns anything: the model's own share is blue.",
        parts=(render_figures([_cold_start_figure(profiles), _memory_figure(profiles), *over_time]),),
    )


def _rss_of(profile: VariantProfile) -> list[int]:
    """Return the resident memory after each round of the process that measured the first number of threads."""
    first = profile.thread_counts[0]
    return [rss for cell in profile.cells if cell.num_threads == first for rss in cell.round_rss_bytes]


def _memory_over_time_figure(profiles: Sequence[VariantProfile]) -> Figure:
    series = [
        Series(
            name=profile.variant,
            tone=tone,
            points=tuple(
                Point(x=number, y=rss, low=rss, high=rss, title=f"round {number}, {format_bytes(rss)}")
                for number, rss in enumerate(_rss_of(profile), 1)
            ),
        )
        for tone, profile in enumerate(profiles)
    ]
    longest = max(len(line.points) for line in series)
    return Figure(
        title="Resident memory over time",
        note="After each round; batches grow on the way, and a line that goes on rising within one size is a leak",
        svg=line_chart(
            [line for line in series if line.points],
            title="Resident memory over time",
            x_label="round",
            y_label="memory",
            y_format=format_bytes,
            x_ticks=sorted({1, longest // 2 or 1, longest}),
            log_x=False,
            log_y=False,
        ),
    )


def _cold_start_figure(profiles: Sequence[VariantProfile]) -> Figure:
    bars = [
        Bar(
            name=profile.variant,
            parts=(
                BarPart(label="start", value=profile.cold_start.start_s.value, tone=0),
                BarPart(label="import", value=profile.cold_start.import_s.value, tone=1),
                BarPart(label="load", value=profile.cold_start.load_s.value, tone=2),
                BarPart(label="first run", value=profile.cold_start.first_run_s.value, tone=3),
            ),
            note=format_measurement(profile.cold_start.total_s),
        )
        for profile in profiles
    ]
    repetitions = [profile.cold_start.total_s.num_repetitions for profile in profiles]
    return Figure(
        title="From a fresh process to its first answer",
        note=f"Median of {_range_of(repetitions)} fresh processes",
        svg=stacked_bars(bars, title="Cold start by phase", value_format=format_seconds),
    )


def _memory_figure(profiles: Sequence[VariantProfile]) -> Figure:
    bars = [
        Bar(
            name=f"{profile.variant}{_file_note(profile)}",
            parts=(
                BarPart(label="Python and runtime", value=_runtime_bytes(profile), tone=1),
                BarPart(label="model", value=profile.memory.added_bytes.value, tone=2),
            ),
            note=format_bytes(profile.memory.peak_bytes.value),
        )
        for profile in profiles
    ]
    return Figure(
        title="Peak resident memory",
        note="A fresh process after loading the variant and running its smallest batch",
        svg=stacked_bars(bars, title="Peak memory", value_format=format_bytes),
    )


def _runtime_bytes(profile: VariantProfile) -> float:
    return max(profile.memory.peak_bytes.value - profile.memory.added_bytes.value, 0.0)


def _file_note(profile: VariantProfile) -> str:
    return f", file {format_bytes(profile.file_bytes)}" if profile.file_bytes is not None else ""


def _range_of(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
