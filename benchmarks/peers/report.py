"""Observations as documents, one for each question, and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.questions import Observation

__all__ = ["Spread", "documents", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A median with the least and the greatest round; None where no round had a number."""

    median: float | None
    least: float | None
    greatest: float | None

    def __str__(self) -> str:
        if self.median is None or self.least is None or self.greatest is None:
            return "-"
        if self.least == self.greatest:
            return _short(self.median)
        return f"{_short(self.median)} ({_short(self.least)} to {_short(self.greatest)})"


Answers = dict[str, dict[str, dict[str, Spread]]]
"""By question, server and case."""


def summarise(observations: Iterable[Observation]) -> Answers:
    """Put the rounds of each case together."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for seen in observations:
        known = values.setdefault((seen.question, seen.server, seen.case), [])
        if seen.value is not None:
            known.append(seen.value)
    answers: Answers = {}
    for (question, server, case), known in values.items():
        answers.setdefault(question, {}).setdefault(server, {})[case] = _spread(known)
    return answers


def documents(observations: Sequence[Observation], context: Mapping[str, object]) -> list[dict[str, object]]:
    """Return one document a question, each with everything that is needed to read it alone."""
    return [
        {
            "benchmark": "serving_peers",
            "question": question,
            "answers": {
                server: {case: [_rounded(v) for v in (s.median, s.least, s.greatest)] for case, s in cases.items()}
                for server, cases in servers.items()
            },
            "each": ["median", "least", "greatest"],
            **context,
        }
        for question, servers in summarise(observations).items()
    ]


def table(observations: Sequence[Observation]) -> str:
    """Return every question as a table: a row for each server, a column for each case."""
    parts = []
    for question, servers in summarise(observations).items():
        columns = list(dict.fromkeys(_column(case) for cases in servers.values() for case in cases))
        rows = [["", *columns]]
        for server, cases in servers.items():
            for row, found in _rows(server, cases).items():
                rows.append([row, *(str(found.get(column, "")) for column in columns)])
        widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
        parts.append("\n".join([f"\n{question}", *lines]))
    return "\n".join(parts)


PROTOCOL_SEPARATOR = ", "


def _column(case: str) -> str:
    """A closed-loop case names the protocol, then the number of connections, which is the column."""
    last = case.rpartition(PROTOCOL_SEPARATOR)[2]
    return last if last.isdigit() else case


def _rows(server: str, cases: Mapping[str, Spread]) -> dict[str, dict[str, Spread]]:
    rows: dict[str, dict[str, Spread]] = {}
    for case, spread in cases.items():
        column = _column(case)
        protocol = case.removesuffix(column).removesuffix(PROTOCOL_SEPARATOR)
        rows.setdefault(f"{server}, {protocol}" if protocol else server, {})[column] = spread
    return rows


def _spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread(median=None, least=None, greatest=None)
    return Spread(median=float(np.median(values)), least=min(values), greatest=max(values))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
