"""What every search over the nodes of a model is told, whatever it does to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from forwardpass.core.variants import Variant
from forwardpass.optimize.candidates import Workshop
from forwardpass.optimize.results import ResultStore

__all__ = ["Terms"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Terms:
    """The float model and how others are judged beside it."""

    workshop: Workshop
    store: ResultStore
    key: str
    """A hash of everything that decides the outcome of a trial."""
    score: Callable[[Variant], float]
    """The metric on the validation split."""
    holds: Callable[[float], bool]
    """Whether a score keeps the floor."""
    is_for_speed: bool
    """False where bytes are to be saved, not time."""
    num_rows: int = 1
    """Of a call that is timed."""
    has_time: Callable[[], bool] = lambda: True
