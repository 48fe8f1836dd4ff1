"""The shell of a self-contained page, and the parts that go into it.

Every function returns safe markup: what it is given as text is escaped, what another function here made is not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from forwardpass.core.measurement import Measurement
from forwardpass.report.charts import NUM_TONES
from forwardpass.report.format import format_measurement

__all__ = [
    "Column",
    "Fact",
    "Figure",
    "RowGroup",
    "Section",
    "State",
    "Verdict",
    "render_code",
    "render_facts",
    "render_figures",
    "render_key",
    "render_measurement",
    "render_notes",
    "render_page",
    "render_paragraph",
    "render_state",
    "render_table",
    "render_verdicts",
]


_UNIT = re.compile(r"(?<=\d) (s|ms|µs|B|kB|MB|GB|rows/s|%)(?![\w/])")


class State(StrEnum):
    """The colour of a verdict; its word says the same."""

    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One finding: what was asked, the answer, and the word for it (`MET`), empty for a mere fact."""

    label: str
    value: str
    note: str = ""
    word: str = ""
    state: State = State.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table; `kind` is `number`, `wrap` for running text, or empty."""

    title: str
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """Rows of cells, text or markup, under a heading of their own or, without one, under none."""

    rows: Sequence[Sequence[str | Markup]]
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart made by `forwardpass.report.charts` with its caption."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A name and its value."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page: a heading, a sentence under it, and rendered parts."""

    title: str = ""
    lead: str = ""
    parts: tuple[Markup, ...] = ()


def render_page(*, title: str, subtitle: str, sections: Sequence[Section], footer: str = "") -> str:
    """Return a whole HTML document that loads nothing from anywhere."""
    template = _environment().get_template("page.html")
    return template.render(title=title, subtitle=subtitle, sections=sections, footer=footer)


def render_verdicts(verdicts: Sequence[Verdict]) -> Markup:
    """Return the findings as cards."""
    return _part("verdicts", verdicts)


def render_table(columns: Sequence[Column], groups: Sequence[RowGroup], *, name: str = "") -> Markup:
    """Return a table that scrolls sideways where the page is narrow, by keyboard too.

    `name` is what a screen reader calls it; without one, it is called after its columns.
    """
    return _part("table", columns, groups, name or ", ".join(column.title for column in columns if column.title))


def render_figures(figures: Sequence[Figure]) -> Markup:
    """Return charts, side by side where there is room."""
    safe = [{"title": it.title, "note": it.note, "svg": Markup(it.svg)} for it in figures]  # noqa: S704  # our own SVG
    return _part("figures", safe)


def render_key(names: Sequence[str]) -> Markup:
    """Return the key to the colours: the first name has tone 0, the second tone 1, …"""
    return _part("key", names)


def render_facts(facts: Sequence[Fact]) -> Markup:
    """Return names and values in two columns."""
    return _part("facts", facts)


def render_notes(lines: Sequence[str]) -> Markup:
    """Return a quiet list."""
    return _part("notes", lines)


def render_paragraph(text: str) -> Markup:
    """Return running text."""
    return _part("paragraph", text)


def render_code(text: str) -> Markup:
    """Return lines for a terminal, to be copied as they are."""
    return _part("code", text)


def render_state(word: str, state: State) -> Markup:
    """Return a word in the colour of a verdict, for a cell of a table."""
    return _part("state", word, state)


def render_measurement(measured: Measurement) -> Markup:
    """Return a measurement whose spread is set back."""
    value, _, spread = format_measurement(measured).partition(" ±")
    return _part("spread", value, spread)


def _keep_units(value: object) -> object:
    """Keep a number and its unit on one line; markup has been through here already."""
    return _UNIT.sub("\u00a0\\1", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _part(name: str, *arguments: object) -> Markup:
    markup: Markup = getattr(_parts(), name)(*arguments)
    return markup


@cache
def _parts() -> Any:
    return _environment().get_template("parts.html").module


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("forwardpass.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_keep_units,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["num_tones"] = NUM_TONES
    return environment
