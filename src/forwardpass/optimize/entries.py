"""What the parts of a search share: the candidates while the evidence comes together, and what was done so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from forwardpass.core.metrics import Metric, Scores
from forwardpass.core.variants import Variant
from forwardpass.optimize.budget import Budget
from forwardpass.optimize.results import ResultStore
from forwardpass.optimize.values import LayerEvidence, OptimizeSettings, SearchStep, Target
from forwardpass.profile import VariantProfile

__all__ = ["SHARE_OF_MAKING", "SHARE_OF_SCORING", "Entry", "Search", "as_sentence"]

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
    layers: tuple[LayerEvidence, ...] = ()
    path: list[SearchStep] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def is_for_speed(self) -> bool:
        """Whether time is to be saved, and not bytes."""
        return self.settings.target in (Target.LATENCY, Target.THROUGHPUT, Target.COST)

    @property
    def num_rows(self) -> int:
        """Rows of the call that single nodes are measured with."""
        return 1 if self.settings.target is Target.LATENCY else max(self.settings.profile.batch_sizes)

    def note(self, entry: Entry, metric: Metric, verb: str = "made and scored") -> None:
        """Put a candidate into the path of the search."""
        score = entry.validation.value if entry.validation is not None else None
        outcome = entry.failure or f"{verb}, {metric.name} {score:.4g} on the validation samples"
        self.path.append(SearchStep(what=entry.variant.name, outcome=outcome, score=score))


def as_sentence(error: Exception) -> str:
    """Write the first line of somebody else's error, with its class."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {first[:200]}"
