"""The root of all errors."""

from __future__ import annotations

from typing import ClassVar

__all__ = ["ForwardpassError", "with_hint"]


class ForwardpassError(Exception):
    """Something that forwardpass tells its user in one sentence."""

    slug: ClassVar[str] = "error"


def with_hint(statement: str, hint: str) -> str:
    """Return a sentence, and what may help after it."""
    return f"{statement} {hint}" if hint else statement
