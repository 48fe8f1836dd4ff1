"""The report: the checklist, what was tried and why one was chosen, and every number behind it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from forwardpass.convert import Conversion
from forwardpass.core.checklist import CheckLine
from forwardpass.core.checklist import Verdict as CheckVerdict
from forwardpass.optimize import Optimization
from forwardpass.optimize.page import evidence_sections, headlines
from forwardpass.report.page import (
    Column,
    RowGroup,
    Section,
    State,
    Verdict,
    render_page,
    render_state,
    render_table,
    render_verdicts,
)

__all__ = ["render_report"]

_STATES = {CheckVerdict.MET: State.GOOD, CheckVerdict.MISSED: State.BAD, CheckVerdict.STATED: State.PLAIN}


def render_report(name: str, conversion: Conversion, optimization: Optimization, lines: Sequence[CheckLine]) -> str:
    """Return the page as one HTML document that loads nothing."""
    machine = optimization.machine
    return render_page(
        title=name,
        subtitle=f"From trained model to bundle, measured on {machine.cpu}, {machine.num_cores} cores",
        sections=[
            Section(parts=(render_verdicts([_readiness(lines), *headlines(optimization)]),)),
            _checklist_section(lines),
            *evidence_sections(conversion, optimization),
        ],
        footer="Made by forwardpass ship. This page loads nothing from the network.",
    )


def _readiness(lines: Sequence[CheckLine]) -> Verdict:
    missed = [line for line in lines if line.verdict is CheckVerdict.MISSED]
    return Verdict(
        label="Checklist",
        value=f"{sum(line.verdict is CheckVerdict.MET for line in lines)} limits met",
        note="; ".join(f"{line.what}: {line.number}, limit {line.limit}" for line in missed),
        word="NOT READY" if missed else "READY",
        state=State.BAD if missed else State.GOOD,
    )


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
