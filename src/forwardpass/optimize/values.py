"""What a search is asked for, and what it has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from forwardpass.core.measurement import Machine, Measurement
from forwardpass.core.slo import QualityFloor, Slo
from forwardpass.core.variants import Variant
from forwardpass.profile import ProfileSettings, VariantProfile

__all__ = ["Candidate", "NotTried", "Optimization", "OptimizeSettings", "Target", "Verdict"]


class Target(StrEnum):
    """What the chosen variant should be best at."""

    LATENCY = "latency"
    """Median latency of one row, at the number of threads that is best for the variant."""
    THROUGHPUT = "throughput"
    """Rows per second, at the batch size and number of threads that are best for the variant."""
    SIZE = "size"
    """Bytes on disk."""


class Verdict(StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    KEPT = "kept"
    REJECTED = "rejected"
    FAILED = "failed"
    SOURCE = "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeSettings:
    """What may be given up, what is wanted, and how much is measured."""

    floor: QualityFloor = field(default_factory=lambda: QualityFloor(max_drop=0.01, is_relative=True))
    target: Target = Target.LATENCY
    slo: Slo | None = None
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    max_calibration_samples: int = 256
    """Ranges hardly move after a few hundred samples, and every one of them is run twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One variant with its evidence.

    `validation` and `test` are the metric on those splits; `test_difference` is the test score minus the source's, on
    the same samples. `relative_error` is the distance of the outputs from the source's on the validation split.
    `gain` is how many times better than the baseline it is at the target.
    """

    variant: Variant
    verdict: Verdict
    reason: str
    profile: VariantProfile | None = None
    validation: Measurement | None = None
    test: Measurement | None = None
    test_difference: Measurement | None = None
    relative_error: Measurement | None = None
    gain: Measurement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTried:
    """Something that others do and forwardpass does not, with the reason."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """The result of a search: the source first, then every candidate, one of them chosen."""

    candidates: tuple[Candidate, ...]
    metric: str
    higher_is_better: bool
    floor_score: float
    target: Target
    slo: Slo | None
    chosen: str
    reason: str
    not_tried: tuple[NotTried, ...]
    warnings: tuple[str, ...]
    num_calibration: int
    num_validation: int
    num_test: int
    machine: Machine

    def find(self, name: str) -> Candidate:
        """Return the candidate of this name; `chosen` is always one of them."""
        return next(candidate for candidate in self.candidates if candidate.variant.name == name)
