"""What the search tried, node by node and variant by variant, with one sentence each on what came of it."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from forwardpass.core.measurement import Measurement
from forwardpass.optimize.values import Candidate, LayerEvidence, Optimization, Verdict
from forwardpass.report.format import format_bytes, format_ratio, format_seconds, format_usd
from forwardpass.report.page import Column, RowGroup, Section, State, render_measurement, render_state, render_table

__all__ = ["candidates_table", "layers_section", "path_section", "reasons_table", "untried_notes", "weights_section"]

_VERDICT_STATES = {
    Verdict.CHOSEN: State.GOOD,
    Verdict.KEPT: State.PLAIN,
    Verdict.SOURCE: State.PLAIN,
    Verdict.REJECTED: State.WARN,
    Verdict.FAILED: State.BAD,
    Verdict.NEEDLESS: State.PLAIN,
}


def candidates_table(optimization: Optimization) -> Markup:
    """Return every variant with its numbers and its verdict."""
    numbers = ["p50, batch 1", "Gain", optimization.metric, "vs source", "Size", "Cold start", "Peak memory"]
    numbers.append("USD, million rows")
    columns = [Column(title="Variant"), Column(title="Verdict")]
    columns += [Column(title=title, kind="number") for title in numbers]
    rows = [_candidate_row(candidate) for candidate in optimization.candidates]
    return render_table(columns, [RowGroup(rows=rows)], name="Variants")


def reasons_table(optimization: Optimization) -> Markup:
    """Return what became of every variant and why, a sentence each, the chosen one first."""
    ordered = sorted(optimization.candidates, key=lambda candidate: list(_VERDICT_STATES).index(candidate.verdict))
    columns = [Column(title="Variant"), Column(title="Why", kind="wrap")]
    rows: list[list[str | Markup]] = [[_name_and_verdict(candidate), candidate.reason] for candidate in ordered]
    return render_table(columns, [RowGroup(rows=rows)], name="Why each variant was chosen, kept or rejected")


def _name_and_verdict(candidate: Candidate) -> Markup:
    """Return both in one narrow cell, so that a sentence has room beside them on a phone."""
    return Markup("{}<div>{}</div>").format(candidate.variant.name, _verdict(candidate))  # escapes the name


def _verdict(candidate: Candidate) -> Markup:
    return render_state(candidate.verdict.value, _VERDICT_STATES[candidate.verdict])


def untried_notes(optimization: Optimization) -> list[str]:
    """Say what was not tried at all, and what there was no time for."""
    notes = [
        f"Not tried: {item.what}, because {item.reason}{f' ({item.evidence})' if item.evidence else ''}."
        for item in optimization.not_tried
    ]
    return [*notes, *(f"Left out: {sentence}." for sentence in optimization.left_out)]


def path_section(optimization: Optimization) -> Iterator[Section]:
    """Yield the steps of the search in order, if any were noted."""
    if not optimization.path:
        return
    columns = [Column(title="Tried"), Column(title=optimization.metric, kind="number")]
    columns.append(Column(title="Outcome", kind="wrap"))
    rows: list[list[str | Markup]] = [
        [step.what, f"{step.score:.4f}" if step.score is not None else "", step.outcome] for step in optimization.path
    ]
    table = render_table(columns, [RowGroup(rows=rows)], name="The path of the search")
    lead = "In order; scores are those on the validation samples."
    yield Section(title="The path of the search", lead=lead, parts=(table,))


def layers_section(optimization: Optimization) -> Iterator[Section]:
    """Yield what 8 bits cost and gain in each node, if the search looked at nodes."""
    if not optimization.layers:
        return
    numbers = ("Error of 8 bits", "Float", "Static", "Static inside", "Dynamic")
    columns = [Column(title="Node"), Column(title="What"), *(Column(title=it, kind="number") for it in numbers)]
    columns += [Column(title="In 8 bits"), Column(title="Why", kind="wrap")]
    columns, rows = _filled(columns, [_layer_row(layer) for layer in optimization.layers])
    lead = (
        "What 8 bits cost each node (squared error as a share of the squared output) and how many times as fast as "
        "in float it is on this machine, in one thread: with float at both ends, between convolutions in 8 bits, "
        "and quantised call by call."
    )
    table = render_table(columns, [RowGroup(rows=rows)], name="Error and gain of each node")
    yield Section(title="Error and gain of each node", lead=lead, parts=(table,))


def weights_section(optimization: Optimization) -> Iterator[Section]:
    """Yield what nodes lose and gain with their weights alone in fewer bits, if the search looked at that."""
    rows: list[list[str | Markup]] = [
        [
            layer.name,
            layer.what,
            item.form,
            f"{item.error:.1e}" if item.error is not None else "",
            _gain(item.gain),
            f"int{item.form[0]}-weights" if item.is_used else "no",
        ]
        for layer in optimization.layers
        for item in layer.weights
    ]
    if not rows:
        return
    numbers = [Column(title="Error", kind="number"), Column(title="Times as fast", kind="number")]
    columns = [Column(title="Node"), Column(title="What"), Column(title="Weights in"), *numbers, Column(title="Used")]
    lead = (
        "Matrices in blocks that have a scale each, activations in float at both ends of the product. A node that is "
        "not faster so on this machine stays as it is where time counts."
    )
    title = "Weights alone in fewer bits"
    yield Section(title=title, lead=lead, parts=(render_table(columns, [RowGroup(rows=rows)], name=title),))


def _filled(columns: list[Column], rows: list[list[str | Markup]]) -> tuple[list[Column], list[list[str | Markup]]]:
    """Leave out the columns that no row has anything in."""
    places = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return [columns[place] for place in places], [[row[place] for place in places] for row in rows]


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


def _candidate_row(candidate: Candidate) -> list[str | Markup]:
    verdict = _verdict(candidate)
    profile = candidate.profile
    if profile is None or candidate.test is None or candidate.gain is None or candidate.test_difference is None:
        return [candidate.variant.name, verdict, *[""] * 8]
    return [
        candidate.variant.name,
        verdict,
        render_measurement(profile.best_latency.p50_s),
        format_ratio(candidate.gain.value),
        f"{candidate.test.value:.4f}",
        f"{candidate.test_difference.value:+.4f}",
        format_bytes(profile.file_bytes) if profile.file_bytes is not None else "",
        render_measurement(profile.cold_start.total_s),
        format_bytes(profile.memory.peak_bytes.value),
        format_usd(1e6 * candidate.row_usd) if candidate.row_usd is not None else "",
    ]
