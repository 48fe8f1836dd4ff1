"""Where the time goes, as a section of the profile's page."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from forwardpass.core.operators import NodeCost, OperatorBreakdown
from forwardpass.profile.profiles import VariantProfile
from forwardpass.report.charts import Bar, BarPart, stacked_bars
from forwardpass.report.format import format_bytes, format_number_of, format_seconds
from forwardpass.report.page import Column, Figure, RowGroup, Section, render_figures, render_notes, render_table

__all__ = ["MAX_SHOWN_NODES", "operators_section"]

MAX_SHOWN_NODES = 12
MAX_SHOWN_OPERATORS = 4
"""Beside these, one part for all others: more tones than that nobody tells apart."""


def operators_section(profiles: Sequence[VariantProfile]) -> Section | None:
    """Return the section, or None if no variant was asked or could say."""
    traced = [(profile.variant, found) for profile in profiles for found in profile.operators]
    if not traced:
        return None
    columns = [
        Column(title="Node"),
        Column(title="Operator"),
        Column(title="Output"),
        Column(title="p50", kind="number"),
        Column(title="Share", kind="number"),
        Column(title="Operations", kind="number"),
        Column(title="Bytes", kind="number"),
        Column(title="Of the roof", kind="number"),
    ]
    groups = [RowGroup(title=_heading(variant, found), rows=_rows(found)) for variant, found in traced]
    return Section(
        title="Where the time goes",
        lead="The nodes of the graph as the runtime runs it, after its own fusions, and how near each comes to what "
        "this machine was seen to do: a large matrix product, or copying memory, whichever takes longer for its work.",
        parts=(
            render_figures(_figures(traced)),
            render_table(columns, groups),
            render_notes([_roof_note(variant, found) for variant, found in traced]),
        ),
    )


def _heading(variant: str, found: OperatorBreakdown) -> str:
    return f"{variant} · batch size {found.batch_size}, {format_number_of(found.num_threads, 'thread')}"


def _rows(found: OperatorBreakdown) -> list[list[str | Markup]]:
    shown = [_row(node) for node in found.nodes[:MAX_SHOWN_NODES]]
    rest = found.nodes[MAX_SHOWN_NODES:]
    if rest:
        seconds, share = sum(node.p50_s for node in rest), sum(node.share for node in rest)
        shown.append(
            [format_number_of(len(rest), "other node"), "", "", format_seconds(seconds), f"{share:.0%}", "", "", ""]
        )
    return shown


def _row(node: NodeCost) -> list[str | Markup]:
    return [
        node.name,
        node.operator,
        "×".join(map(str, node.output_shape)) or "one value",
        format_seconds(node.p50_s),
        f"{node.share:.0%}",
        _large(node.flops) if node.flops else "–",
        format_bytes(node.num_bytes),
        f"{node.share_of_roof:.0%}",
    ]


def _figures(traced: Sequence[tuple[str, OperatorBreakdown]]) -> list[Figure]:
    """Return a figure for the smallest batch and one for the largest."""
    small = [item for item in traced if item[1].batch_size == min(found.batch_size for _, found in traced)]
    large = [item for item in traced if item not in small]
    return [_figure(part, title) for part, title in ((small, "smallest"), (large, "largest")) if part]


def _figure(traced: Sequence[tuple[str, OperatorBreakdown]], which: str) -> Figure:
    bars = [
        Bar(name=f"{variant}, batch {found.batch_size}", parts=_parts(found), note=format_seconds(found.total_s))
        for variant, found in traced
    ]
    return Figure(
        title=f"Time of a call by operator, {which} batch",
        note="Medians, summed over the nodes of an operator",
        svg=stacked_bars(bars, title=f"Time by operator, {which} batch", value_format=format_seconds),
    )


def _parts(found: OperatorBreakdown) -> tuple[BarPart, ...]:
    shown = found.operators[:MAX_SHOWN_OPERATORS]
    parts = [BarPart(label=cost.operator, value=cost.total_s, tone=tone) for tone, cost in enumerate(shown)]
    rest_s = sum(cost.total_s for cost in found.operators[MAX_SHOWN_OPERATORS:])
    if rest_s:
        parts.append(BarPart(label="others", value=rest_s, tone=MAX_SHOWN_OPERATORS))
    return tuple(parts)


def _roof_note(variant: str, found: OperatorBreakdown) -> str:
    achieved = found.flops / found.total_s if found.total_s else 0.0
    return (
        f"{_heading(variant, found)}: {_large(found.flops)} operations in matrix products and convolutions at "
        f"{_large(achieved)}/s over the whole call; the roof is {_large(found.roof.flops_per_s)}/s in "
        f"float32, and {format_bytes(found.roof.bytes_per_s)}/s of memory."
    )


def _large(number: float) -> str:
    """Write a number of operations with three digits."""
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
