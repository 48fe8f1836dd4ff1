"""The production-ready checklist: every line carries its number, its limit and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["CheckLine", "Verdict", "is_ready"]


class Verdict(StrEnum):
    """What a line says: the limit is met or missed, or the number is only stated."""

    MET = "MET"
    MISSED = "MISSED"
    STATED = "STATED"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLine:
    """One line of the checklist, ready to be read."""

    step: str
    what: str
    number: str
    limit: str = ""
    verdict: Verdict = Verdict.STATED
    note: str = ""


def is_ready(lines: Sequence[CheckLine]) -> bool:
    """Tell whether no line misses its limit."""
    return all(line.verdict is not Verdict.MISSED for line in lines)
