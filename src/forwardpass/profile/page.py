"""The profile as a page: what was found on top, then the curves, then every number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from forwardpass.core.measurement import Machine, Measurement
from forwardpass.core.variants import BatchInvariance
from forwardpass.profile.audits import InvarianceVerdict
from forwardpass.profile.operators_page import operators_section
from forwardpass.profile.profiles import Cell, VariantProfile, speedup
from forwardpass.profile.words import (
    describe_batches,
    describe_comparisons,
    describe_padding,
    describe_processes,
    describe_threads,
)
from forwardpass.report.charts import Bar, BarPart, Point, Series, line_chart, stacked_bars
from forwardpass.report.format import (
    format_bytes,
    format_count,
    format_measurement,
    format_ratio,
    format_seconds,
)
from forwardpass.report.page import (
    Column,
    Fact,
    Figure,
    RowGroup,
    Section,
    State,
    Verdict,
    render_facts,
    render_figures,
    render_key,
    render_measurement,
    render_notes,
    render_page,
    render_state,
    render_table,
    render_verdicts,
)

__all__ = ["machine_section", "profile_sections", "render_profile_page"]

_LOG_FROM_RANGE = 12.0
"""An axis over a wider range than this is logarithmic: on a linear one the fast variants would lie on the floor."""
_INVARIANCE_WORDS = {
    BatchInvariance.BITWISE: ("SAME", State.GOOD),
    BatchInvariance.FIXED_SHAPES: ("SAME AT FIXED SIZES", State.GOOD),
    BatchInvariance.TOLERANCE: ("ROUNDING", State.GOOD),
    BatchInvariance.INTERFERENCE: ("INTERFERENCE", State.BAD),
    BatchInvariance.NOT_BATCHABLE: ("ONE ROW", State.PLAIN),
}
_METHOD = """\
Every variant ran in fresh processes of its own, one for each number of threads; their rounds took turns in a random \
order, so that all of them saw the same minutes of this machine. All variants ran the same calls; the first call of a \
round is not counted.
A percentile is taken inside a round and the median over the rounds is shown; where rounds are too short to hold it \
(fewer than 20 calls for p95, 100 for p99), it is taken over several rounds or over all calls together.
± is the distance to the further end of the 95 % interval from resampling whole rounds.
A cold start is a fresh process to its first answer, with the files already in the page cache. 'Start' is Python \
itself and the way of the inputs and the answer.
Speed-ups are medians of ratios of paired rounds. Two processes that run the very same file can differ by a few \
percent for as long as they live; a smaller difference than that is no finding."""


def render_profile_page(profiles: Sequence[VariantProfile], machine: Machine, title: str) -> str:
    """Return the page; the first profile is what the others are compared with."""
    return render_page(
        title=title,
        subtitle=f"{_count(len(profiles), 'variant')} measured on {machine.cpu}, {_count(machine.num_cores, 'core')}",
        sections=[
            Section(parts=(render_verdicts(summarise(profiles)),)),
            *profile_sections(profiles),
            machine_section(machine),
        ],
        footer="Made by forwardpass profile. This page loads nothing from the network.",
    )


def profile_sections(profiles: Sequence[VariantProfile]) -> tuple[Section, ...]:
    """Return the curves and tables of a profile, for a page that holds more than this."""
    operators = operators_section(profiles)
    return (
        _latency_section(profiles),
        *([operators] if operators is not None else []),
        _footprint_section(profiles),
        _invariance_section(profiles),
        _numbers_section(profiles),
    )


def machine_section(machine: Machine) -> Section:
    """Return what the measurements were taken on and how."""
    facts = [
        Fact(name="Processor", value=f"{machine.cpu}, {_count(machine.num_cores, 'core')} available"),
        Fact(name="Instruction sets", value=", ".join(machine.instruction_sets) or "none that matter here"),
        Fact(name="Memory", value=format_bytes(machine.memory_bytes)),
        Fact(name="System", value=machine.os),
        Fact(name="Python", value=machine.python),
        *(Fact(name=name, value=version) for name, version in machine.runtimes),
    ]
    return Section(
        title="Where and how it was measured",
        lead="The numbers belong to this machine; measure again where the model will run.",
        parts=(render_facts(facts), render_notes(_METHOD.splitlines())),
    )


# --- summary -------------------------------------------------------------------------------------------------------


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
    where = f"{best.variant}, batch size {cell.batch_size}, {_count(cell.num_threads, 'thread')}"
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
        note=f"{best.variant}, batch size {cell.batch_size}, {_count(cell.num_threads, 'thread')}.",
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
        note=f"{_count(verdicts.count(BatchInvariance.BITWISE), 'variant')} to the last bit{at_fixed}.",
        word="KEPT",
        state=State.GOOD,
    )


# --- curves --------------------------------------------------------------------------------------------------------


def _latency_section(profiles: Sequence[VariantProfile]) -> Section:
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
    title = f"Latency (p50), {_count(num_threads, 'thread')}"
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
    title = f"Throughput, {_count(num_threads, 'thread')}"
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
        where = f"{profile.variant}, {_count(num_threads, 'thread')}, batch size {sizes}"
        lines.append(f"{where}: not measured; {skipped[0].reason}.")
    return lines


def _footprint_section(profiles: Sequence[VariantProfile]) -> Section:
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


def _invariance_section(profiles: Sequence[VariantProfile]) -> Section:
    columns = [
        Column(title="Variant"),
        Column(title="In any batch"),
        Column(title="Across threads"),
        Column(title="Fresh process"),
        Column(title="Greatest difference", kind="number"),
        Column(title="Decisions differ", kind="number"),
        Column(title="Comparisons", kind="number"),
    ]
    rows = [_invariance_row(profile) for profile in profiles]
    notes = [f"{profile.variant}: {note}" for profile in profiles for note in _invariance_notes(profile.invariance)]
    return Section(
        title="Same answer",
        lead="Rows were answered alone and again in batches of other sizes, at other positions, beside ordinary, "
        "outlying and zero neighbours; with other numbers of threads; and in newly started processes. Interference "
        "means that one request can change another's answer.",
        parts=(render_table(columns, [RowGroup(rows=rows)]), render_notes(notes)),
    )


def _invariance_row(profile: VariantProfile) -> list[str | Markup]:
    found = profile.invariance
    word, state = _INVARIANCE_WORDS[found.verdict]
    difference = f"{found.max_difference:.2g}" if found.worst_case else "0"
    is_audited = found.verdict is not BatchInvariance.NOT_BATCHABLE
    return [
        profile.variant,
        render_state(word, state),
        _sameness(found.is_same_across_threads, State.WARN),
        _sameness(found.is_same_in_fresh_processes, State.BAD),
        difference if is_audited else "–",
        f"{found.num_flips:,}" if is_audited else "–",
        f"{found.num_comparisons:,}",
    ]


def _sameness(is_same: bool | None, other: State) -> str | Markup:
    if is_same is None:
        return "one seen"
    return render_state("SAME", State.GOOD) if is_same else render_state("DIFFERS", other)


def _invariance_notes(found: InvarianceVerdict) -> list[str]:
    """Say in words what the row means, how hard it was looked for, and what was left out."""
    notes = [
        f"{describe_batches(found)}; {describe_comparisons(found)}.",
        f"{describe_threads(found)}; {describe_processes(found)}.",
    ]
    if found.padding is not None:
        notes.append(f"{describe_padding(found)}.")
    return [*notes, *found.gaps]


def _numbers_section(profiles: Sequence[VariantProfile]) -> Section:
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


# --- small things --------------------------------------------------------------------------------------------------


def _sorted_cells(profile: VariantProfile) -> list[Cell]:
    return sorted(profile.cells, key=lambda cell: (cell.num_threads, cell.batch_size))


def _cells_of(profile: VariantProfile, batch_size: int) -> list[Cell]:
    return [cell for cell in profile.cells if cell.batch_size == batch_size]


def _thread_counts(profiles: Sequence[VariantProfile]) -> list[int]:
    return sorted({count for profile in profiles for count in profile.thread_counts})


def _batch_sizes(profiles: Sequence[VariantProfile]) -> list[int]:
    return sorted({size for profile in profiles for size in profile.batch_sizes})


def _range_of(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _short_seconds(seconds: float) -> str:
    """Write a tick: the value is round, so that no decimals are needed for its own sake."""
    if seconds >= 1 or seconds == 0:
        return f"{seconds:g} s"
    return f"{seconds * 1e3:g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.4g} µs"


def _short_count(number: float) -> str:
    if number >= 1e6:
        return f"{number / 1e6:g} M"
    return f"{number / 1e3:g} k" if number >= 1e4 else f"{number:,.6g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
