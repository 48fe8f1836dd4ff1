"""The report: the checklist, what was tried and why one was chosen, and every number behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from markupsafe import Markup

from forwardpass.convert import Conversion
from forwardpass.core.checklist import CheckLine
from forwardpass.core.checklist import Verdict as CheckVerdict
from forwardpass.core.measurement import Interval, Measurement
from forwardpass.optimize import Candidate, LayerEvidence, Optimization, Verdict
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
            *_search_sections(optimization),
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
    figures += [
        Figure(
            title=f"Size against {optimization.metric}",
            svg=_against_score(measured, optimization, _size, label="size on disk", write=format_bytes),
            note="Further left is smaller.",
        ),
        Figure(
            title=f"Cold start against {optimization.metric}",
            svg=_against_score(measured, optimization, _cold_start, label="cold start", write=format_seconds),
            note="From the start of a process to its first answer, with the files in the page cache.",
        ),
    ]
    parts = [render_paragraph(f"{optimization.reason}."), render_figures(figures), _candidates_table(optimization)]
    if optimization.warnings:
        parts.append(render_notes(list(optimization.warnings)))
    not_tried = [
        f"Not tried: {item.what}, because {item.reason}{f' ({item.evidence})' if item.evidence else ''}."
        for item in optimization.not_tried
    ]
    not_tried += [f"Left out: {sentence}." for sentence in optimization.left_out]
    lead = (
        f"The search saw {optimization.num_calibration} calibration and {optimization.num_validation} validation "
        f"samples; scores are quoted on {optimization.num_test} test samples."
    )
    return Section(title="Variants and the choice", lead=lead, parts=(*parts, render_notes(not_tried)))


def _search_sections(optimization: Optimization) -> Iterator[Section]:
    """Show the path of the search and what is known of each node, where there is any."""
    if optimization.path:
        columns = [Column(title="Tried"), Column(title=optimization.metric, kind="number")]
        columns.append(Column(title="Outcome", kind="wrap"))
        rows: list[list[str | Markup]] = [
            [step.what, f"{step.score:.4f}" if step.score is not None else "", step.outcome]
            for step in optimization.path
        ]
        lead = "In order; scores are those on the validation samples."
        table = render_table(columns, [RowGroup(rows=rows)])
        yield Section(title="The path of the search", lead=lead, parts=(table,))
    if optimization.layers:
        numbers = ("Error of 8 bits", "Float", "Static", "Static inside", "Dynamic")
        columns = [Column(title="Node"), Column(title="What"), *(Column(title=it, kind="number") for it in numbers)]
        columns += [Column(title="In 8 bits"), Column(title="Why", kind="wrap")]
        table = render_table(columns, [RowGroup(rows=[_layer_row(layer) for layer in optimization.layers])])
        lead = (
            "What 8 bits cost each node (squared error as a share of the squared output) and how many times as fast as "
            "in float it is on this machine, in one thread: with float at both ends, between convolutions in 8 bits, "
            "and quantised call by call."
        )
        yield Section(title="Error and gain of each node", lead=lead, parts=(table,))
    if any(layer.weights for layer in optimization.layers):
        yield _weights_section(optimization.layers)


def _weights_section(layers: Sequence[LayerEvidence]) -> Section:
    """Show what the nodes lose and gain with their weights alone in fewer bits."""
    columns = [Column(title="Node"), Column(title="What"), Column(title="Weights in")]
    columns += [
        Column(title="Error", kind="number"),
        Column(title="Times as fast", kind="number"),
        Column(title="Used"),
    ]
    rows: list[list[str | Markup]] = [
        [
            layer.name,
            layer.what,
            item.form,
            f"{item.error:.1e}" if item.error is not None else "",
            _gain(item.gain),
            f"int{item.form[0]}-weights" if item.is_used else "no",
        ]
        for layer in layers
        for item in layer.weights
    ]
    lead = (
        "Matrices in blocks that have a scale each, activations in float at both ends of the product. A node that is "
        "not faster so on this machine stays as it is where time counts."
    )
    return Section(
        title="Weights alone in fewer bits", lead=lead, parts=(render_table(columns, [RowGroup(rows=rows)]),)
    )


def _layer_row(layer: LayerEvidence) -> list[str | Markup]:
    return [
        layer.name,
        layer.what,
        f"{layer.error:.1e}" if layer.error is not None else "",
        format_seconds(layer.float_s.value) if layer.float_s is not None else "",
        *(_gain(gain) for gain in (layer.gain, layer.gain_inside, layer.gain_dynamic)),
        "yes" if layer.is_in_8_bits else "no",
        layer.reason,
    ]


def _gain(gain: Measurement | None) -> str:
    if gain is None:
        return ""
    return f"{gain.value:.2f} ({gain.interval.low:.2f} to {gain.interval.high:.2f})"


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


def _size(candidate: Candidate) -> Measurement | None:
    num_bytes = candidate.profile.file_bytes if candidate.profile is not None else None
    if num_bytes is None:
        return None
    exact = Interval(low=float(num_bytes), high=float(num_bytes))
    return Measurement(value=float(num_bytes), unit="bytes", interval=exact, num_repetitions=1)


def _cold_start(candidate: Candidate) -> Measurement | None:
    return candidate.profile.cold_start.total_s if candidate.profile is not None else None


def _against_score(
    measured: Sequence[Candidate],
    optimization: Optimization,
    quantity: Callable[[Candidate], Measurement | None],
    *,
    label: str,
    write: Callable[[float], str],
) -> str:
    points = []
    for candidate in measured:
        amount, score = quantity(candidate), candidate.test
        if amount is None or score is None:
            continue
        points.append(
            ScatterPoint(
                name=candidate.variant.name,
                x=amount.value,
                x_low=amount.interval.low,
                x_high=amount.interval.high,
                y=score.value,
                y_low=score.interval.low,
                y_high=score.interval.high,
                title=f"{candidate.variant.name}: {write(amount.value)}, {score.value:.4f}",
                emphasis=_emphasis(candidate),
            )
        )
    return scatter_chart(
        points,
        title=f"{label.capitalize()} against {optimization.metric}",
        x_label=label,
        y_label=f"{optimization.metric} on the test split",
        x_format=write,
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
