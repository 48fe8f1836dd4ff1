"""How results look on a terminal: aligned columns and verdicts in colour."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from forwardpass.core.checklist import CheckLine, Verdict

__all__ = ["SCHEMA_VERSION", "checklist_rows", "echo_json", "echo_table", "heading", "verdict_text"]

SCHEMA_VERSION = 1
"""Of the documents that --json prints."""

_COLOURS = {Verdict.MET: "green", Verdict.MISSED: "red", Verdict.STATED: None}


def echo_table(rows: Sequence[Sequence[str]], *, header: Sequence[str] = (), right: Sequence[int] = ()) -> None:
    """Print rows as columns, two spaces apart; the columns `right` are aligned to the right."""
    lines = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    if not lines:
        return
    widths = [max(_width(line[column]) for line in lines) for column in range(len(lines[0]))]
    for number, line in enumerate(lines):
        cells = [_aligned(text, widths[at], to_right=at in right) for at, text in enumerate(line)]
        text = "  ".join(cells).rstrip()
        click.echo(click.style(text, bold=True) if header and number == 0 else text)


def heading(text: str) -> None:
    """Print a heading with a line before it."""
    click.echo()
    click.echo(click.style(text, bold=True))


def verdict_text(verdict: Verdict) -> str:
    """Return the word of a verdict in its colour."""
    return click.style(verdict.value, fg=_COLOURS[verdict], bold=verdict is Verdict.MISSED)


def checklist_rows(lines: Sequence[CheckLine]) -> list[list[str]]:
    """Turn the checklist into rows; a step is named on its first line only."""
    rows, step = [], ""
    for line in lines:
        verdict = verdict_text(line.verdict)
        limit = f"limit {line.limit}" if line.limit else ""
        rows.append([line.step if line.step != step else "", line.what, line.number, limit, verdict, line.note])
        step = line.step
    return rows


def echo_json(document: dict[str, object]) -> None:
    """Print one JSON document."""
    click.echo(msgspec.json.format(msgspec.json.encode({"schema_version": SCHEMA_VERSION, **document}), indent=2))


def _width(text: str) -> int:
    return len(click.unstyle(text))


def _aligned(text: str, width: int, *, to_right: bool) -> str:
    padding = " " * (width - _width(text))
    return padding + text if to_right else text + padding
