"""The profile as a page: what was found on top, then the curves, then every number."""

from __future__ import annotations

from collections.abc import Sequence

from forwardpass.core.measurement import Machine
from forwardpass.profile.footprint_page import footprint_section
from forwardpass.profile.headlines import summarise
from forwardpass.profile.invariance_page import invariance_section
from forwardpass.profile.latency_page import latency_section, numbers_section
from forwardpass.profile.operators_page import operators_section
from forwardpass.profile.profiles import VariantProfile
from forwardpass.report.format import format_bytes, format_number_of
from forwardpass.report.page import Fact, Section, render_facts, render_notes, render_page, render_verdicts

__all__ = ["machine_section", "profile_sections", "render_profile_page"]

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
    variants, cores = format_number_of(len(profiles), "variant"), format_number_of(machine.num_cores, "core")
    return render_page(
        title=title,
        subtitle=f"{variants} measured on {machine.cpu}, {cores}",
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
        latency_section(profiles),
        *([operators] if operators is not None else []),
        footprint_section(profiles),
        invariance_section(profiles),
        numbers_section(profiles),
    )


def machine_section(machine: Machine) -> Section:
    """Return what the measurements were taken on and how."""
    facts = [
        Fact(name="Processor", value=f"{machine.cpu}, {format_number_of(machine.num_cores, 'core')} available"),
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
