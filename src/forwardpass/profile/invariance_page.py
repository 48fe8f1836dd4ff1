"""Whether answers are reproducible, as a section of the profile's page."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from forwardpass.core.variants import BatchInvariance
from forwardpass.profile.audits import InvarianceVerdict
from forwardpass.profile.profiles import VariantProfile
from forwardpass.profile.words import (
    describe_batches,
    describe_comparisons,
    describe_padding,
    describe_processes,
    describe_threads,
)
from forwardpass.report.page import Column, RowGroup, Section, State, render_notes, render_state, render_table

__all__ = ["invariance_section"]

_INVARIANCE_WORDS = {
    BatchInvariance.BITWISE: ("SAME", State.GOOD),
    BatchInvariance.FIXED_SHAPES: ("SAME AT FIXED SIZES", State.GOOD),
    BatchInvariance.TOLERANCE: ("ROUNDING", State.GOOD),
    BatchInvariance.INTERFERENCE: ("INTERFERENCE", State.BAD),
    BatchInvariance.NOT_BATCHABLE: ("ONE ROW", State.PLAIN),
}


def invariance_section(profiles: Sequence[VariantProfile]) -> Section:
    """Return what the audit of each variant found."""
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
