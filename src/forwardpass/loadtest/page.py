"""A load test as a page: the findings on top, then the curves, then every number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from forwardpass.core.measurement import Machine
from forwardpass.loadtest.results import CapacityReport, GoodputPoint, LoadResult, Recovery
from forwardpass.loadtest.search import format_interval
from forwardpass.loadtest.summary import GeneratorReport, LoadSummary, TailPoint, Window
from forwardpass.report.charts import Point, Series, line_chart
from forwardpass.report.format import format_bytes, format_count, format_measurement, format_seconds, format_share
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
    render_notes,
    render_page,
    render_table,
    render_verdicts,
)

__all__ = ["render_load_page"]

_PERCENTILES = ("p50", "p95", "p99")
_TAIL_TICKS = (2, 10, 100, 1000, 10_000, 100_000)
_LOG_FROM_RANGE = 12.0
_METHOD = """\
Latency is counted from the time at which a request was due. If the server stalls, the requests that were due \
meanwhile are charged with the wait, whether they could be sent or not.
Offered are all requests that were due. Refusals, errors, broken connections and late answers are failures.
The generator runs in a process of its own; its lag is how late it came to a request that was due, and is part of the \
latencies."""


def render_load_page(result: LoadResult) -> str:
    """Return the page."""
    sections = [Section(parts=(render_verdicts(_verdicts(result)),))]
    if result.capacity is not None:
        sections += _capacity_sections(result.capacity)
    summary = result.summary
    if result.capacity is not None:
        summary = result.capacity.at_capacity
    if summary is not None:
        sections += _run_sections(summary, result.capacity is not None)
    sections.append(_method_section(result))
    return render_page(
        title=f"Load test: {result.target.split(', ')[1]}",
        subtitle=f"{result.target}; {result.load}",
        sections=sections,
        footer="Made by forwardpass load. This page loads nothing from the network.",
    )


# --- findings ------------------------------------------------------------------------------------------------------


def _verdicts(result: LoadResult) -> list[Verdict]:
    if result.capacity is not None:
        return _capacity_verdicts(result.capacity, result)
    assert result.summary is not None, "there is a summary or a capacity"
    return _run_verdicts(result.summary, result)


def _run_verdicts(summary: LoadSummary, result: LoadResult) -> list[Verdict]:
    num_failed = summary.num_offered - summary.num_succeeded
    p50 = format_measurement(summary.p50_s) if summary.p50_s is not None else "–"
    p99 = format_measurement(summary.p99_s) if summary.p99_s is not None else "–"
    verdicts = [
        Verdict(label="Latency p50", value=p50),
        Verdict(label="Latency p99", value=p99),
        Verdict(
            label="Good answers",
            value=f"{format_count(summary.throughput_per_s)}/s",
            note=f"of {format_count(summary.offered_per_s)}/s; {num_failed:,} of {summary.num_offered:,} failed.",
        ),
    ]
    if summary.share_in_time is not None:
        verdicts.append(
            Verdict(
                label=f"Within {result.slo}",
                value=format_share(summary.share_in_time),
                note=f"of all offered requests; goodput {format_count(summary.goodput_per_s or 0.0)}/s.",
                word="MET" if result.is_met else "MISSED",
                state=State.GOOD if result.is_met else State.BAD,
            )
        )
    verdicts.append(_generator_verdict(summary.generator))
    return verdicts


def _capacity_verdicts(report: CapacityReport, result: LoadResult) -> list[Verdict]:
    found = report.capacity
    is_found = found.rate_per_s > 0
    verdicts = [
        Verdict(
            label=f"Capacity within {result.slo}",
            value=f"{'≥ ' if found.is_lower_bound else ''}{format_count(found.rate_per_s)}/s" if is_found else "none",
            note=f"Interval: {format_interval(found)}." if is_found else " ".join(report.notes),
            word="FOUND" if is_found else "MISSED",
            state=State.GOOD if is_found else State.BAD,
        )
    ]
    if report.goodput:
        worst = report.goodput[-1]
        share = worst.goodput_per_s / found.rate_per_s
        verdicts.append(
            Verdict(
                label=f"Goodput at {worst.load:g} times the capacity",
                value=f"{format_count(worst.goodput_per_s)}/s",
                note=f"{format_share(share)} of the capacity.",
            )
        )
    if report.recovery is not None:
        verdicts.append(_recovery_verdict(report.recovery))
    if report.lone_p50_s is not None:
        verdicts.append(Verdict(label="Alone (p50)", value=format_seconds(report.lone_p50_s)))
    if report.at_capacity is not None:
        verdicts.append(_generator_verdict(report.at_capacity.generator))
    return verdicts


def _recovery_verdict(recovery: Recovery) -> Verdict:
    is_back = recovery.seconds is not None
    return Verdict(
        label="Back to normal",
        value=format_seconds(recovery.seconds) if recovery.seconds is not None else f"> {recovery.watched_s:g} s",
        note=f"after {recovery.overload_s:g} s at {recovery.overload:g} times the capacity; normal is "
        f"{format_seconds(recovery.normal_s)} or less.",
        word="" if is_back else "STUCK",
        state=State.PLAIN if is_back else State.BAD,
    )


def _generator_verdict(report: GeneratorReport) -> Verdict:
    return Verdict(
        label="Generator's lag (p99)",
        value=format_seconds(report.lag_p99_s),
        note=f"{format_share(report.cpu_share)} of a core.",
        word="LIMIT" if report.warnings else "FREE",
        state=State.WARN if report.warnings else State.GOOD,
    )


# --- the search ----------------------------------------------------------------------------------------------------


def _capacity_sections(report: CapacityReport) -> list[Section]:
    sections = []
    if report.goodput:
        sections.append(
            Section(
                title="Goodput against offered rate",
                lead="Good answers in time, for less and more than the capacity. A server that refuses early what it "
                "cannot do keeps the curve up; one that queues lets it fall.",
                parts=(
                    render_key(["goodput", "good answers, late ones too", "all that is offered"]),
                    render_figures([_goodput_figure(report), _goodput_latency_figure(report)]),
                    _goodput_table(report.goodput),
                ),
            )
        )
    rows = [
        [
            str(number),
            f"{format_count(trial.rate_per_s)}/s",
            format_share(trial.share_in_time),
            "the generator may be to blame" if trial.is_generator_limited else "",
        ]
        for number, trial in enumerate(report.capacity.trials, start=1)
    ]
    columns = [
        Column(title="Trial", kind="number"),
        Column(title="Offered", kind="number"),
        Column(title="In time", kind="number"),
        Column(title=""),
    ]
    lead = "The rate was doubled until it was missed, then the gap was halved, then the edge was tried again."
    notes = (render_notes(report.notes),) if report.notes else ()
    table = render_table(columns, [RowGroup(rows=rows)])
    sections.append(Section(title="The search", lead=lead, parts=(table, *notes)))
    return sections


def _goodput_figure(report: CapacityReport) -> Figure:
    points = report.goodput
    series = [
        _rate_series("goodput", 0, points, lambda point: point.goodput_per_s),
        _rate_series("good answers, late ones too", 1, points, lambda point: point.throughput_per_s),
        _rate_series("all that is offered", 2, points, lambda point: point.offered_per_s),
    ]
    svg = line_chart(
        series,
        title="Goodput against offered rate",
        x_label="offered, as a multiple of the capacity",
        y_label="requests per second",
        y_format=_short_count,
        x_ticks=[point.load for point in points],
        limit=report.capacity.rate_per_s,
    )
    return Figure(title="Goodput", note="Dashed: the capacity", svg=svg)


def _goodput_latency_figure(report: CapacityReport) -> Figure:
    def series(name: str, tone: int, seconds: Callable[[GoodputPoint], float | None]) -> Series:
        values = [(point.load, seconds(point)) for point in report.goodput]
        known = [(load, value) for load, value in values if value is not None]
        return Series(name=name, tone=tone, points=tuple(_point(load, value, format_seconds) for load, value in known))

    lines = [series("p50", 0, lambda point: point.p50_s), series("p99", 2, lambda point: point.p99_s)]
    svg = line_chart(
        lines,
        title="Latency of good answers against offered rate",
        x_label="offered, as a multiple of the capacity",
        y_label="latency",
        y_format=_short_seconds,
        x_ticks=[point.load for point in report.goodput],
        log_y=_is_wide([point.y for line in lines for point in line.points]),
    )
    return Figure(title="Latency of good answers", note="p50 and p99", svg=svg)


def _goodput_table(points: Sequence[GoodputPoint]) -> Markup:
    titles = ("Load", "Offered", "Answered", "In time", "Share", "p50", "p99", "Generator's lag p99")
    columns = [*(Column(title=title, kind="number") for title in titles), Column(title="Failures", kind="wrap")]
    rows = [
        [
            f"{point.load:g}×",
            f"{format_count(point.offered_per_s)}/s",
            f"{format_count(point.throughput_per_s)}/s",
            f"{format_count(point.goodput_per_s)}/s",
            format_share(point.share_in_time),
            _seconds(point.p50_s),
            _seconds(point.p99_s),
            format_seconds(point.lag_p99_s),
            ", ".join(f"{failure.num_requests:,} {failure.what}" for failure in point.failures) or "none",
        ]
        for point in points
    ]
    return render_table(columns, [RowGroup(rows=rows)])


# --- one run -------------------------------------------------------------------------------------------------------


def _run_sections(summary: LoadSummary, is_at_capacity: bool) -> list[Section]:
    over_time = [_over_time_figure(summary), _outcome_figure(summary)]
    tails = [
        _tail_figure(summary.tail, "Latency", "How the latencies of good answers are spread"),
        _tail_figure(summary.generator.lag_tail, "Generator's lag", "How late requests were sent"),
    ]
    where = " at the capacity" if is_at_capacity else ""
    return [
        Section(
            title=f"Latency over time{where}",
            lead="Each point is a stretch of the run; requests count where they were due.",
            parts=(render_key([*_PERCENTILES]), render_figures(over_time)),
        ),
        Section(
            title=f"Distribution{where}",
            lead="Read it as: one request in a hundred takes longer than the curve at 100.",
            parts=(render_figures(tails),),
        ),
        Section(title=f"Numbers{where}", parts=(render_facts(_facts(summary)), *_warnings(summary))),
    ]


def _over_time_figure(summary: LoadSummary) -> Figure:
    getters: tuple[Callable[[Window], float | None], ...] = (
        lambda window: window.p50_s,
        lambda window: window.p95_s,
        lambda window: window.p99_s,
    )
    lines = []
    for tone, (name, get) in enumerate(zip(_PERCENTILES, getters, strict=True)):
        known = [(window.start_s, get(window)) for window in summary.windows]
        points = tuple(_point(start, value, format_seconds) for start, value in known if value is not None)
        lines.append(Series(name=name, points=points, tone=tone))
    svg = line_chart(
        lines,
        title="Latency over time",
        x_label="seconds into the run",
        y_label="latency",
        y_format=_short_seconds,
        x_ticks=_time_ticks(summary.duration_s),
        log_y=_is_wide([point.y for line in lines for point in line.points]),
    )
    return Figure(title="Latency", svg=svg)


def _outcome_figure(summary: LoadSummary) -> Figure:
    step_s = summary.duration_s / max(len(summary.windows), 1)
    offered = tuple(_point(it.start_s, it.num_offered / step_s, format_count) for it in summary.windows)
    good = tuple(_point(it.start_s, (it.num_offered - it.num_failed) / step_s, format_count) for it in summary.windows)
    svg = line_chart(
        [Series(name="offered", points=offered, tone=7), Series(name="good answers", points=good, tone=0)],
        title="Requests over time",
        x_label="seconds into the run",
        y_label="requests per second",
        y_format=_short_count,
        x_ticks=_time_ticks(summary.duration_s),
    )
    return Figure(title="Requests", note="Grey: offered; blue: good answers", svg=svg)


def _tail_figure(tail: Sequence[TailPoint], title: str, note: str) -> Figure:
    points = tuple(_point(float(it.one_in), it.seconds, format_seconds) for it in tail if it.one_in > 1)
    last = max((it.one_in for it in tail), default=2)
    svg = line_chart(
        [Series(name=title, points=points, tone=0)],
        title=f"{title}: distribution",
        x_label="one request in … takes longer",
        y_label=title.lower(),
        y_format=_short_seconds,
        x_ticks=[tick for tick in _TAIL_TICKS if tick <= last] or [2],
        log_x=True,
        log_y=_is_wide([point.y for point in points]),
    )
    return Figure(title=title, note=note, svg=svg)


def _facts(summary: LoadSummary) -> list[Fact]:
    measured = (("p50", summary.p50_s), ("p90", summary.p90_s), ("p95", summary.p95_s), ("p99", summary.p99_s))
    report = summary.generator
    failures = ", ".join(f"{failure.num_requests:,} {failure.what}" for failure in summary.failures)
    limit = f"{report.limit_per_s:,.0f}/s" if report.limit_per_s is not None else "it did too little to tell"
    return [
        *(Fact(name=f"Latency {name}", value=format_measurement(it)) for name, it in measured if it is not None),
        Fact(name="Latency, greatest", value=_seconds(summary.max_s)),
        Fact(name="Offered", value=f"{summary.num_offered:,} in {summary.duration_s:.3g} s"),
        Fact(name="Good answers", value=f"{summary.num_succeeded:,}"),
        Fact(name="Failures", value=failures or "none"),
        Fact(name="Generator's lag p50", value=format_seconds(report.lag_p50_s)),
        Fact(name="Generator's lag, greatest", value=format_seconds(report.lag_max_s)),
        Fact(name="Generator's processor time", value=f"{format_share(report.cpu_share)} of a core"),
        Fact(name="Generator's limit, about", value=limit),
        Fact(name="Connections", value=f"{report.num_connections:,} opened, {report.most_connections:,} at once"),
    ]


def _warnings(summary: LoadSummary) -> tuple[Markup, ...]:
    return (render_notes(summary.generator.warnings),) if summary.generator.warnings else ()


def _method_section(result: LoadResult) -> Section:
    machine: Machine = result.machine
    facts = [
        Fact(name="Sent from", value=f"{machine.cpu}, {machine.num_cores} cores, {format_bytes(machine.memory_bytes)}"),
        Fact(name="System", value=machine.os),
        Fact(name="Took", value=f"{result.took_s:.1f} s"),
    ]
    parts = (render_facts(facts), render_notes(_METHOD.splitlines()))
    return Section(title="How it was measured", parts=parts)


# --- numbers and axes ----------------------------------------------------------------------------------------------


def _rate_series(name: str, tone: int, points: Sequence[GoodputPoint], rate: Callable[[GoodputPoint], float]) -> Series:
    return Series(name=name, tone=tone, points=tuple(_point(it.load, rate(it), _per_second) for it in points))


def _point(x: float, y: float, write: Callable[[float], str]) -> Point:
    return Point(x=x, y=y, low=y, high=y, title=f"{x:.4g}: {write(y)}")


def _time_ticks(duration_s: float) -> list[float]:
    """Return about six round numbers of seconds."""
    steps = [factor * 10.0**power for power in range(-2, 6) for factor in (1, 2, 5)]
    step = next(step for step in steps if duration_s / step <= 6)
    return [round(number * step, 3) for number in range(int(duration_s / step) + 1)]


def _is_wide(values: Sequence[float]) -> bool:
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) > _LOG_FROM_RANGE * min(positive)


def _seconds(value: float | None) -> str:
    return format_seconds(value) if value is not None else "–"


def _per_second(value: float) -> str:
    return f"{format_count(value)}/s"


def _short_seconds(value: float) -> str:
    """Write a tick: without needless zeros.

    >>> _short_seconds(0.02), _short_seconds(2.0), _short_seconds(5e-05)
    ('20 ms', '2 s', '50 µs')
    """
    if value >= 1 or value == 0:
        return f"{value:g} s"
    return f"{value * 1e3:g} ms" if value >= 1e-3 else f"{value * 1e6:g} µs"


def _short_count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:g}"
