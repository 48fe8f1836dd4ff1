"""What a search is asked for, and what it has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from forwardpass.core.measurement import Machine, Measurement
from forwardpass.core.slo import QualityFloor, Slo
from forwardpass.core.variants import Variant
from forwardpass.optimize.prices import DEFAULT_PRICES, Prices, load_prices
from forwardpass.profile import ProfileSettings, VariantProfile
from forwardpass.report.format import format_seconds

__all__ = [
    "Candidate",
    "FileHash",
    "LayerEvidence",
    "NotTried",
    "Optimization",
    "OptimizeSettings",
    "Prices",
    "Provenance",
    "Route",
    "SearchStep",
    "Target",
    "Verdict",
    "WeightEvidence",
]


class Target(StrEnum):
    """What the chosen variant should be best at."""

    LATENCY = "latency"
    """Median latency of one row, at the number of threads that is best for the variant."""
    THROUGHPUT = "throughput"
    """Rows per second, at the batch size and number of threads that are best for the variant."""
    SIZE = "size"
    """Bytes on disk."""
    COLD_START = "cold-start"
    """From the start of a fresh process to its first answer."""
    COST = "cost"
    """Money for a row: the processors and the memory that it takes, at the prices of the settings."""


class Route(StrEnum):
    """A family of variants that the search makes."""

    ONNX = "onnx"
    TORCH = "torch"
    """PyTorch's own programs, in float and quantised by torchao, as they are and compiled: for PyTorch sources."""


class Verdict(StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    KEPT = "kept"
    REJECTED = "rejected"
    NEEDLESS = "nothing to gain"
    """It was not made: the model has nothing that it would change, or nothing that it would make better."""
    FAILED = "failed"
    SOURCE = "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeSettings:
    """What may be given up, what is wanted, and how much is measured."""

    floor: QualityFloor = field(default_factory=lambda: QualityFloor(max_drop=0.01, is_relative=True))
    target: Target = Target.LATENCY
    slo: Slo | None = None
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    prices: Prices = field(default_factory=lambda: load_prices(DEFAULT_PRICES))
    routes: tuple[Route, ...] = (Route.ONNX,)
    """The ONNX file itself is made in any case: it is what everything is compared with."""
    pin_processor: bool = False
    """Whether a variant for `COLD_START` may be laid out for this kind of processor, to be refused by all others."""
    budget_s: float | None = None
    """The search ends within this time with the best that it has found; None: it takes what it takes."""
    is_brief: bool = False
    """Whether variants are left out that would not win by the measured gains of their nodes, and only those that are
    fastest at a glance are measured in full. Where time is not what counts, everything is made and measured."""
    max_calibration_samples: int = 256
    """Ranges hardly move after a few hundred samples, and every one of them is run twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHash:
    """A file of a variant, by its path in the folder of the search, and its SHA-256."""

    name: str
    sha256: str


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
    row_usd: float | None = None
    """What a row costs at the batch size and number of threads that are cheapest for the variant."""
    files: tuple[FileHash, ...] = ()
    """Empty for a source that is no file, and for what failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTried:
    """Something that others do and forwardpass does not, with the reason and what it rests on."""

    what: str
    reason: str
    evidence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEvidence:
    """What is known of one node whose weights alone are rounded: error and gain as in `LayerEvidence`."""

    form: str
    """Such as `4 bits in blocks of 32`."""
    error: float | None = None
    gain: Measurement | None = None
    is_used: bool = False
    """Whether the variant in so many bits has the node in this form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEvidence:
    """What is known of one node that could be computed in 8 bits.

    `error` is the squared error that 8 bits make in it, as a share of its squared output. The gains are how many times
    as fast as in float it is: with float at both ends, between convolutions in 8 bits, and quantised call by call.
    """

    name: str
    what: str
    error: float | None = None
    float_s: Measurement | None = None
    gain: Measurement | None = None
    gain_inside: Measurement | None = None
    gain_dynamic: Measurement | None = None
    is_in_8_bits: bool = False
    reason: str = ""
    weights: tuple[WeightEvidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchStep:
    """One thing that the search tried, and what came of it."""

    what: str
    outcome: str
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What went into a search: with the same, anybody can run it again and compare the files by their hashes."""

    source: str
    source_sha256: str
    """Of the model file, or of the code and the weights of a PyTorch source."""
    samples: tuple[tuple[str, str], ...]
    """The splits by name, each with the SHA-256 of its inputs and labels."""
    packages: tuple[tuple[str, str], ...]
    """Name and version of what wrote the files: forwardpass itself, and the libraries that it used."""
    command: str = ""
    """As it was typed in a shell; empty where the search was called from Python."""


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
    layers: tuple[LayerEvidence, ...] = ()
    path: tuple[SearchStep, ...] = ()
    """What the search tried, in order."""
    left_out: tuple[str, ...] = ()
    """What there was no time for, a sentence each."""
    prices: Prices | None = None
    """What `row_usd` is computed with."""
    provenance: Provenance | None = None
    """None in evidence that was written before there was one."""
    found_s: float | None = field(default=None, compare=False)
    """Seconds from the start until the chosen variant was made, scored within the floor and seen to be faster at a
    glance, in a brief search; None if nobody glanced at it."""
    proved_s: float | None = field(default=None, compare=False)
    """Seconds from the start until everything was measured; in both, training of other networks does not count."""

    @property
    def course(self) -> str:
        """How long the search took until something was found, and until it was measured."""
        if self.proved_s is None:
            return ""
        end = f"confirmed after {format_seconds(self.proved_s)}, when the last measurement was done"
        if self.found_s is None:
            return end
        return f"found after {format_seconds(self.found_s)} (made, within the floor, faster at a glance); {end}"

    def find(self, name: str) -> Candidate:
        """Return the candidate of this name; `chosen` is always one of them."""
        return next(candidate for candidate in self.candidates if candidate.variant.name == name)
