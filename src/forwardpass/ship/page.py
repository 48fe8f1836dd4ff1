"""The report: the checklist, what was tried and why one was chosen, and every number behind it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from forwardpass.convert import Conversion
from forwardpass.core.checklist import CheckLine
from forwardpass.core.checklist import Verdict as CheckVerdict
from forwardpass.optimize import Candidate, Optimization, Verdict
from forwardpass.profile.page import machine_section, profile_sections
from forwardpass.report.charts import Emphasis, ScatterPoint, scatter_chart
from forwardpass.report.format import format_bytes, format_ratio, format_seconds
from forwardpass.report.page import (
    Column,
    Figure,
    RowGroup,
    Section,
    State,
    render_figures,
    render_measurement,
    render_notes,
    render_page,
    render_paragraph,
    render_state,
    render_table,
    render_verdicts,
)
from forwardpass.report.page import Verdict as PageVerdict

__all__ = ["render_report"]

_STATES = {CheckVerdict.MET: State.GOOD, CheckVerdict.MISSED: State.BAD, CheckVerdict.STATED: State.PLAIN}
_VERDICT_STATES = {
    Verdict.CHOSEN: State.GOOD,
    Verdict.KEPT: State.PLAIN,
    Verdict.SOURCE: State.PLAIN,
    Verdict.REJECTED: State.WARN,
    Verdict.FAILED: State.BAD,
}


def render_report(name: str, conversion: Conversion, optimization: Optimization, lines: Sequence[CheckLine]) -> str:
    """Return the page as one HTML document that loads nothing."""
    profiles = [candidate.profile for candidate in optimization.candidates if candidate.profile is not None]
    machine = optimization.machine
    return render_page(
        title=name,
        subtitle=f"From trained model to bundle, measured on {machine.cpu}, {machine.num_cores} cores",
        sections=[
            Section(parts=(render_verdicts(_headlines(optimization, lines)),)),
            _checklist_section(lines),
            _choice_section(optimization),
            _recipes_section(conversion, optimization),
            *profile_sections(profiles),
            machine_section(machine),
        ],
        footer="Made by forwardpass ship. This page loads nothing from the network.",
    )


def _headlines(optimization: Optimization, lines: Sequence[CheckLine]) -> list[PageVerdict]:
    chosen = optimization.find(optimization.chosen)
    missed = [line for line in lines if line.verdict is CheckVerdict.MISSED]
    assert chosen.test is not None, "what is chosen was scored"
    assert chosen.gain is not None, "what is chosen was measured"
    low, high = format_ratio(chosen.gain.interval.low), format_ratio(chosen.gain.interval.high)
    return [
        PageVerdict(
            label="Checklist",
            value=f"{sum(line.verdict is CheckVerdict.MET for line in lines)} limits met",
            note="; ".join(f"{line.what}: {line.number}, limit {line.limit}" for line in missed),
            word="NOT READY" if missed else "READY",
            state=State.BAD if missed else State.GOOD,
        ),
        PageVerdict(label="Chosen variant", value=chosen.variant.name, note=optimization.reason),
        PageVerdict(
            label=f"Gain in {optimization.target.value}",
            value=format_ratio(chosen.gain.value),
            note=f"Against the float ONNX model ({low} to {high}).",
        ),
        PageVerdict(
            label=f"{optimization.metric} on the test split",
            value=f"{chosen.test.value:.4f}",
            note=f"Floor {optimization.floor_score:.4g}; {optimization.num_test} samples that the search never saw.",
        ),
    ]


def _checklist_section(lines: Sequence[CheckLine]) -> Section:
    wide = {"What", "Number", "Limit", "Note"}
    titles = ("Step", "What", "Number", "Limit", "Verdict", "Note")
    columns = [Column(title=title, kind="wrap" if title in wide else "") for title in titles]
    rows: list[list[str | Markup]] = []
    step = ""
    for line in lines:
        verdict = render_state(line.verdict.value, _STATES[line.verdict])
        rows.append([line.step if line.step != step else "", line.what, line.number, line.limit, verdict, line.note])
        step = line.step
    table = render_table(columns, [RowGroup(rows=rows)])
    return Section(title="Checklist", lead="Every line carries its number, its limit and a verdict.", parts=(table,))


def _choice_section(optimization: Optimization) -> Section:
    measured = [candidate for candidate in optimization.candidates if candidate.profile is not None]
    figures = [
        Figure(
            title=f"Latency against {optimization.metric}",
            svg=_trade_off(measured, optimization),
            note="Further left is faster. The dashed line is the floor; the bars are 95 % intervals on the test split.",
        ),
        Figure(
            title="Latency against size",
            svg=_footprint(measured),
            note="Further left is faster, lower is smaller. A source without a file of its own is not shown.",
        ),
    ]
    parts = [render_paragraph(f"{optimization.reason}."), render_figures(figures), _candidates_table(optimization)]
    if optimization.warnings:
        parts.append(render_notes(list(optimization.warnings)))
    not_tried = [f"Not tried: {item.what}, because {item.reason}." for item in optimization.not_tried]
    lead = (
        f"The search saw {optimization.num_calibration} calibration and {optimization.num_validation} validation "
        f"samples; scores are quoted on {optimization.num_test} test samples."
    )
    return Section(title="Variants and the choice", lead=lead, parts=(*parts, render_notes(not_tried)))


def _candidates_table(optimization: Optimization) -> Markup:
    numbers = ("p50, batch 1", "Gain", optimization.metric, "Against source", "Size", "Peak memory")
    columns = [Column(title="Variant"), Column(title="Verdict")]
    columns += [Column(title=title, kind="number") for title in numbers]
    rows = [_candidate_row(candidate) for candidate in optimization.candidates]
    return render_table([*columns, Column(title="Why", kind="wrap")], [RowGroup(rows=rows)])


def _candidate_row(candidate: Candidate) -> list[str | Markup]:
    verdict = render_state(candidate.verdict.value, _VERDICT_STATES[candidate.verdict])
    profile = candidate.profile
    if profile is None or candidate.test is None or candidate.gain is None or candidate.test_difference is None:
        return [candidate.variant.name, verdict, "", "", "", "", "", "", candidate.reason]
    return [
        candidate.variant.name,
        verdict,
        render_measurement(profile.best_latency.p50_s),
        format_ratio(candidate.gain.value),
        f"{candidate.test.value:.4f}",
        f"{candidate.test_difference.value:+.4f}",
        format_bytes(profile.file_bytes) if profile.file_bytes is not None else "",
        format_bytes(profile.memory.peak_bytes.value),
        candidate.reason,
    ]


def _recipes_section(conversion: Conversion, optimization: Optimization) -> Section:
    notes = [
        f"{candidate.variant.name}: {' → '.join(map(str, candidate.variant.recipe.steps))}."
        for candidate in optimization.candidates
        if candidate.variant.recipe.steps
    ]
    lead = (
        f"Converted by the {conversion.exporter} exporter to opset {conversion.opset} and compared with the source at "
        f"{len(conversion.parity)} shapes; the worst relative difference is {conversion.worst_difference:.1e}."
    )
    return Section(title="Recipes", lead=lead, parts=(render_notes([*conversion.notes, *notes]),))


def _trade_off(measured: Sequence[Candidate], optimization: Optimization) -> str:
    points = []
    for candidate in measured:
        assert candidate.profile is not None, "only measured candidates are drawn"
        assert candidate.test is not None, "what was measured was scored"
        latency = candidate.profile.best_latency.p50_s
        points.append(
            ScatterPoint(
                name=candidate.variant.name,
                x=latency.value,
                x_low=latency.interval.low,
                x_high=latency.interval.high,
                y=candidate.test.value,
                y_low=candidate.test.interval.low,
                y_high=candidate.test.interval.high,
                title=f"{candidate.variant.name}: {format_seconds(latency.value)}, {candidate.test.value:.4f}",
                emphasis=_emphasis(candidate),
            )
        )
    return scatter_chart(
        points,
        title=f"Latency against {optimization.metric}",
        x_label="latency p50 at batch 1",
        y_label=f"{optimization.metric} on the test split",
        x_format=format_seconds,
        y_format=lambda value: f"{value:.4g}",
        y_limit=optimization.floor_score,
    )


def _footprint(measured: Sequence[Candidate]) -> str:
    points = []
    for candidate in measured:
        profile = candidate.profile
        if profile is None or profile.file_bytes is None:
            continue
        latency, size = profile.best_latency.p50_s, float(profile.file_bytes)
        points.append(
            ScatterPoint(
                name=candidate.variant.name,
                x=latency.value,
                x_low=latency.interval.low,
                x_high=latency.interval.high,
                y=size,
                y_low=size,
                y_high=size,
                title=f"{candidate.variant.name}: {format_seconds(latency.value)}, {format_bytes(size)}",
                emphasis=_emphasis(candidate),
            )
        )
    return scatter_chart(
        points,
        title="Latency against size",
        x_label="latency p50 at batch 1",
        y_label="size on disk",
        x_format=format_seconds,
        y_format=format_bytes,
    )


def _emphasis(candidate: Candidate) -> Emphasis:
    if candidate.verdict is Verdict.CHOSEN:
        return Emphasis.CHOSEN
    return Emphasis.FRONT if candidate.verdict is Verdict.KEPT else Emphasis.PLAIN
