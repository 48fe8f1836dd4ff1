"""What the parts of a search share: the candidates while the evidence comes together, and what was done so far."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from forwardpass.core.metrics import Metric, Scores
from forwardpass.core.variants import Variant
from forwardpass.optimize.budget import Budget, Pace, least_profile, profile_s
from forwardpass.optimize.forecast import Forecast
from forwardpass.optimize.results import ResultStore
from forwardpass.optimize.values import LayerEvidence, OptimizeSettings, SearchStep, Target
from forwardpass.profile import VariantProfile

__all__ = ["SHARE_OF_MAKING", "SHARE_OF_SCORING", "Entry", "Search", "as_sentence"]

SHARE_OF_BUDGET_FOR_SEARCH = 0.5
LEAST_MAKING_S = 0.5
"""Of imports and small files; what takes no longer says nothing of how slow the machine is."""
SHARE_OF_MAKING, SHARE_OF_SCORING = 0.15, 0.15
"""Of the progress that is shown; measuring is the rest."""


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """A candidate while the evidence on it comes together."""

    variant: Variant
    failure: str = ""
    is_rejected: bool = False
    """Whether the failure is a finding about the model, such as that it has nothing to quantise."""
    profile: VariantProfile | None = None
    validation: Scores | None = None
    test: Scores | None = None
    error: Scores | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Search:
    """What the parts of a search share: what is asked, what is remembered, how long it may take, what was done."""

    settings: OptimizeSettings
    store: ResultStore
    budget: Budget
    key: str
    """A hash of the model, the samples, the software and the machine."""
    pace: Pace = field(default_factory=Pace)
    forecast: Forecast | None = None
    """What variants will save, in a brief search."""
    found_s: dict[str, float] = field(default_factory=dict)
    """Seconds from the start until a variant that keeps the floor was seen to be faster, by name, in a brief search."""
    scoring_s: float = 0.0
    """What scoring the float model took."""
    slowness: float = 1.0
    """How many times as long as estimated variants have taken to make, at most."""
    num_to_measure: int = 0
    """The candidates that were made and scored so far."""
    layers: tuple[LayerEvidence, ...] = ()
    path: list[SearchStep] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Sentences on what the whole search had no time for."""
    omitted: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """The variants that were not made, or not measured, by that word and the reason."""

    @property
    def is_for_speed(self) -> bool:
        """Whether time is to be saved, and not bytes."""
        return self.settings.target in (Target.LATENCY, Target.THROUGHPUT, Target.COST)

    @property
    def num_rows(self) -> int:
        """Rows of the call that single nodes are measured with."""
        return 1 if self.settings.target is Target.LATENCY else max(self.settings.profile.batch_sizes)

    @property
    def is_brief(self) -> bool:
        """Whether only what may win is made: where time counts, and the user asked for it."""
        return self.settings.is_brief and self.is_for_speed

    def has_time(self, making_s: float | None = None, *, least: int = 0) -> bool:
        """Tell whether one more variant, or trial, can be made and scored before the time for measuring begins.

        Measuring gets half of the budget, for what is not measured cannot be chosen; if the model is so slow that fewer
        than `least` variants come about in the first half, one more may be made for as long as it can be measured.
        """
        if making_s is None:
            making_s = self.pace.making_s(num_writes=1, num_calls=0)
        reserved_s = (self.num_to_measure + 1) * profile_s(least_profile(self.settings.profile), self.pace)
        if self.budget.left_s - self.slowness * making_s - self.scoring_s < reserved_s:
            return False
        return self.budget.has_time(SHARE_OF_BUDGET_FOR_SEARCH) or self.num_to_measure < least

    def note_found(self, name: str) -> None:
        """Note that a variant was seen to keep the floor and to be faster, if that is the first time."""
        self.found_s.setdefault(name, time.monotonic() - self.budget.start_s)

    def omit(self, name: str, reason: str, *, deed: str = "made") -> None:
        """Note that a variant was not made, or not measured, and why."""
        self.omitted.setdefault((deed, reason), []).append(name)

    def omissions(self) -> tuple[str, ...]:
        """Return what was left out, a sentence for each reason."""
        grouped = (
            f"{enumerated(names)} {'was' if len(names) == 1 else 'were'} not {deed}: {reason}"
            for (deed, reason), names in self.omitted.items()
        )
        return (*grouped, *self.left_out)

    @contextmanager
    def learning(self, making_s: float) -> Iterator[None]:
        """Learn from what is done inside how long it takes in truth."""
        start_s = time.monotonic()
        yield
        if self.budget.total_s is not None:
            self.slowness = max(self.slowness, (time.monotonic() - start_s) / max(making_s, LEAST_MAKING_S))

    def note(self, entry: Entry, metric: Metric, verb: str = "made and scored") -> None:
        """Put a candidate into the path of the search."""
        self.num_to_measure += not entry.failure
        score = entry.validation.value if entry.validation is not None else None
        outcome = entry.failure or f"{verb}, {metric.name} {score:.4g} on the validation samples"
        self.path.append(SearchStep(what=entry.variant.name, outcome=outcome, score=score))


def enumerated(names: Sequence[str]) -> str:
    """Write names as a sentence has them.

    >>> enumerated(["one", "two", "three"])
    'one, two and three'
    """
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def as_sentence(error: Exception) -> str:
    """Write the first line of somebody else's error, with its class."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {first[:200]}"
