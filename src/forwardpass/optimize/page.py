"""The search as a page: the choice on top, then what it rests on, down to every number and how to make it again."""

from __future__ import annotations

from collections.abc import Sequence

from forwardpass.convert import Conversion
from forwardpass.optimize.calibration_page import calibration_section
from forwardpass.optimize.reproduction_page import reproduction_section
from forwardpass.optimize.search_page import (
    candidates_table,
    layers_section,
    path_section,
    reasons_table,
    untried_notes,
    weights_section,
)
from forwardpass.optimize.trade_offs_page import trade_off_figures
from forwardpass.optimize.values import Optimization
from forwardpass.profile.page import machine_section, profile_sections
from forwardpass.report.format import format_bytes, format_number_of, format_ratio, format_seconds
from forwardpass.report.page import (
    Section,
    Verdict,
    render_figures,
    render_notes,
    render_page,
    render_paragraph,
    render_verdicts,
)

__all__ = ["evidence_sections", "headlines", "render_optimization_page"]


def render_optimization_page(name: str, conversion: Conversion, optimization: Optimization) -> str:
    """Return the page of a search as one HTML document that loads nothing."""
    machine = optimization.machine
    variants = format_number_of(len(optimization.candidates), "variant")
    return render_page(
        title=name,
        subtitle=f"{variants}, made and measured on {machine.cpu}, {format_number_of(machine.num_cores, 'core')}",
        sections=[
            Section(parts=(render_verdicts(headlines(optimization)),)),
            *evidence_sections(conversion, optimization),
        ],
        footer="Made by forwardpass optimize. This page loads nothing from the network.",
    )


def headlines(optimization: Optimization) -> list[Verdict]:
    """Return what a reader should take home of a search."""
    chosen = optimization.find(optimization.chosen)
    assert chosen.test is not None, "what is chosen was scored"
    assert chosen.gain is not None, "what is chosen was measured"
    assert chosen.profile is not None, "what is chosen was measured"
    low, high = format_ratio(chosen.gain.interval.low), format_ratio(chosen.gain.interval.high)
    latency, size = chosen.profile.best_latency.p50_s.value, chosen.profile.file_bytes or 0
    return [
        Verdict(
            label="Chosen variant",
            value=chosen.variant.name,
            note=f"{format_seconds(latency)} a row, {format_bytes(size)} on disk.",
        ),
        Verdict(
            label=f"Gain in {optimization.target.value}",
            value=format_ratio(chosen.gain.value),
            note=f"Against the float ONNX model ({low} to {high}).",
        ),
        Verdict(
            label=f"{optimization.metric} on the test split",
            value=f"{chosen.test.value:.4f}",
            note=f"On {optimization.num_test} samples that the search never saw; the floor of "
            f"{optimization.floor_score:.4g} was held on the validation samples.",
        ),
    ]


def evidence_sections(conversion: Conversion, optimization: Optimization) -> Sequence[Section]:
    """Return everything that a choice rests on, for a page that may begin with something else."""
    profiles = [candidate.profile for candidate in optimization.candidates if candidate.profile is not None]
    return [
        _choice_section(optimization),
        *path_section(optimization),
        *layers_section(optimization),
        *weights_section(optimization),
        *calibration_section(optimization),
        reproduction_section(conversion, optimization),
        *profile_sections(profiles),
        machine_section(optimization.machine),
    ]


def _choice_section(optimization: Optimization) -> Section:
    lead = (
        f"The search saw {optimization.num_calibration} calibration and {optimization.num_validation} validation "
        f"samples; scores are quoted on {optimization.num_test} test samples."
    )
    if optimization.course:
        lead += f" The chosen variant: {optimization.course}."
    parts = [
        render_paragraph(f"{optimization.reason}."),
        render_figures(trade_off_figures(optimization)),
        candidates_table(optimization),
        reasons_table(optimization),
    ]
    if optimization.warnings:
        parts.append(render_notes(optimization.warnings))
    notes = untried_notes(optimization)
    if optimization.prices is not None:
        notes.insert(0, f"Prices: {optimization.prices}; every processor busy, no free tier, no traffic, no storage.")
    if notes:
        parts.append(render_notes(notes))
    return Section(title="Variants and the choice", lead=lead, parts=tuple(parts))
