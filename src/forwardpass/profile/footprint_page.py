"""Cold start and memory, as a section of the profile's page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from forwardpass.profile.profiles import VariantProfile
from forwardpass.profile.starts import StartAdvice, StartTrial
from forwardpass.report.charts import Bar, BarPart, Point, Series, line_chart, stacked_bars
from forwardpass.report.format import format_bytes, format_measurement, format_ratio, format_seconds
from forwardpass.report.page import (
    Column,
    Figure,
    RowGroup,
    Section,
    State,
    render_figures,
    render_measurement,
    render_notes,
    render_state,
    render_table,
)

__all__ = ["footprint_section"]

_ADVICE_STATES = {
    StartAdvice.TAKE: State.GOOD,
    StartAdvice.OTHER_ANSWERS: State.BAD,
    StartAdvice.FAILED: State.BAD,
    StartAdvice.SLOWER_CALLS: State.WARN,
    StartAdvice.LOSS: State.WARN,
}
_STARTS_METHOD = (
    "Each way ran in fresh processes in turns with the variant as it is; what it saves is the median over pairs. To be "
    "taken is what surely saves, answers the same bytes, and has calls that are not surely a tenth longer."
)


def footprint_section(profiles: Sequence[VariantProfile]) -> Section:
    """Return what a new replica costs: the phases of its start, and its memory."""
    over_time = [_memory_over_time_figure(profiles)] if any(_rss_of(profile) for profile in profiles) else []
    return Section(
        title="Cold start and memory",
        lead="What a new replica costs before it earns anything: the model's own share is blue.",
        parts=(
            render_figures([_cold_start_figure(profiles), _memory_figure(profiles), *over_time]),
            *_starts_parts(profiles),
        ),
    )


def _starts_parts(profiles: Sequence[VariantProfile]) -> Iterator[Markup]:
    """Yield what shortens the cold start, where that was tried."""
    groups, notes = [], []
    for profile in profiles:
        if profile.starts is None:
            continue
        as_it_is = format_measurement(profile.starts.as_it_is_s)
        rows = [_start_row(trial) for trial in profile.starts.ordered]
        groups.append(RowGroup(title=f"{profile.variant} · first import to first answer {as_it_is}", rows=rows))
        notes += [f"{trial.what}: {trial.failure or trial.how}." for trial in profile.starts.ordered]
        if profile.starts.note:
            notes.append(f"{profile.variant}: {profile.starts.note}")
    if not groups:
        return
    numbers = ("Saves", "Takes", "A call afterwards")
    columns = [Column(title="How to cut the cold start", kind="wrap"), Column(title="Advice")]
    columns += [*(Column(title=it, kind="number") for it in numbers), Column(title="Answers")]
    yield render_table(columns, groups, name="How to cut the cold start")
    yield render_notes([*dict.fromkeys(notes), _STARTS_METHOD])


def _start_row(trial: StartTrial) -> list[str | Markup]:
    advice = render_state(trial.advice.value, _ADVICE_STATES.get(trial.advice, State.PLAIN))
    if trial.own_s is None or trial.saved_s is None or trial.slowdown is None:
        return [trial.what, advice, "", "", "", ""]
    same = "same bytes" if trial.is_same_answer else "other bytes"
    slowdown = f"{format_ratio(trial.slowdown.value)} as long"
    return [
        trial.what,
        advice,
        render_measurement(trial.saved_s),
        render_measurement(trial.own_s),
        slowdown,
        same,
    ]


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
