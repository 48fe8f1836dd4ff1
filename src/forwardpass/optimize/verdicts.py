"""From the evidence to the verdicts: which candidate is chosen, what is said of each, and what a reader should know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from forwardpass.core.measurement import Measurement
from forwardpass.core.metrics import Metric
from forwardpass.core.samples import Samples
from forwardpass.core.variants import BatchInvariance, Format, Variant
from forwardpass.optimize.candidates import RANGES_AT_HALF
from forwardpass.optimize.cautions import Findings, cautions
from forwardpass.optimize.choice import Choice, Facts, choose
from forwardpass.optimize.entries import Entry
from forwardpass.optimize.gain import cell_row_usd, gain_at
from forwardpass.optimize.prices import age_warning
from forwardpass.optimize.results import hash_file
from forwardpass.optimize.values import Candidate, FileHash, OptimizeSettings, Target, Verdict
from forwardpass.runtimes import companions

__all__ = ["caution_about", "choose_entry", "describe_entry"]


def choose_entry(
    entries: Sequence[Entry], baseline: Variant, metric: Metric, settings: OptimizeSettings, *, floor: float
) -> Choice:
    """Judge all candidates by the evidence on them, and choose one."""
    own = next(entry for entry in entries if entry.variant.name == baseline.name)
    return choose(
        [_facts(entry, own, settings) for entry in entries if not entry.failure],
        baseline=baseline.name,
        floor_score=floor,
        higher_is_better=metric.higher_is_better,
        target=settings.target,
        metric=metric.name,
    )


def _facts(entry: Entry, baseline: Entry, settings: OptimizeSettings) -> Facts:
    assert entry.profile is not None, "what did not fail was profiled"
    assert entry.validation is not None, "what did not fail was scored"
    return Facts(
        name=entry.variant.name,
        gain=_gain(entry, baseline, settings),
        score=entry.validation.value,
        latency_s=entry.profile.best_latency.p50_s.value,
        size_bytes=float(entry.profile.file_bytes or 0),
        can_be_served=entry.variant.format is not Format.TORCH,
        shares_batches=entry.profile.invariance.verdict is not BatchInvariance.INTERFERENCE,
    )


def _gain(entry: Entry, baseline: Entry, settings: OptimizeSettings) -> Measurement:
    """Return how many times better than the baseline a candidate is at the target."""
    assert entry.profile is not None, "what did not fail was profiled"
    assert baseline.profile is not None, "the baseline was profiled"
    return gain_at(settings.target, entry.profile, baseline.profile, prices=settings.prices)


def describe_entry(
    entry: Entry,
    entries: Sequence[Entry],
    baseline: Variant,
    choice: Choice,
    settings: OptimizeSettings,
    folder: Path,
) -> Candidate:
    """Return a candidate with its evidence and the verdict on it."""
    if entry.failure:
        verdict = Verdict.NEEDLESS if entry.is_rejected else Verdict.FAILED
        return Candidate(variant=entry.variant, verdict=verdict, reason=entry.failure)
    assert entry.validation is not None, "what did not fail was scored"
    assert entry.test is not None, "what did not fail was scored"
    assert entry.error is not None, "what did not fail was scored"
    source_test = entries[0].test
    assert source_test is not None, "the source was scored first"
    judgement = next(item for item in choice.judgements if item.name == entry.variant.name)
    own = next(other for other in entries if other.variant.name == baseline.name)
    return Candidate(
        variant=entry.variant,
        verdict=judgement.verdict,
        reason=judgement.reason,
        profile=entry.profile,
        validation=entry.validation.measure(),
        test=entry.test.measure(),
        test_difference=entry.test.measure_difference(source_test),
        relative_error=entry.error.measure(),
        gain=_gain(entry, own, settings),
        row_usd=cell_row_usd(entry.profile, settings.prices) if entry.profile is not None else None,
        files=tuple(_files_of(entry.variant, folder)),
    )


def _files_of(variant: Variant, folder: Path) -> Iterator[FileHash]:
    location = Path(variant.location)
    if not location.is_file():
        return
    for file in (location, *companions(variant.format, location)):
        name = file.relative_to(folder) if file.is_relative_to(folder) else Path(file.name)
        yield FileHash(name=name.as_posix(), sha256=hash_file(file))


def caution_about(
    entries: Sequence[Entry],
    baseline: Variant,
    calibration: Samples,
    validation: Samples,
    metric: Metric,
    settings: OptimizeSettings,
    *,
    floor: float,
    has_matrices: bool,
) -> tuple[str, ...]:
    """Return what makes the result weaker than it looks, a sentence each."""
    findings = Findings(
        metric=metric,
        floor=settings.floor,
        floor_score=floor,
        num_calibration=len(calibration),
        range_distance=_range_distance(entries),
        validation=validation,
        scores={entry.variant.name: entry.validation for entry in entries if entry.validation is not None},
        baseline=baseline.name,
        has_matrices=has_matrices,
    )
    old = age_warning(settings.prices, datetime.now(UTC).date()) if settings.target is Target.COST else ""
    return (*cautions(findings), *([old] if old else []))


def _range_distance(entries: Sequence[Entry]) -> float:
    steps = [step for entry in entries for step in entry.variant.recipe.steps]
    found = [value for step in steps for name, value in step.parameters if name == RANGES_AT_HALF]
    return max((value for value in found if isinstance(value, float)), default=0.0)
