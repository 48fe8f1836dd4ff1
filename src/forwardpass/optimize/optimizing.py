"""The search: make the variants, run them on the user's metric, measure them side by side, and choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from forwardpass.core.calls import calls_from_samples
from forwardpass.core.measurement import Interval, Measurement
from forwardpass.core.metrics import Metric, Scores
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples, SampleSplits
from forwardpass.core.statistics import measure_ratio
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.errors import (
    ChildFailed,
    ForwardpassError,
    InvalidModel,
    MissingExtra,
    NothingGained,
    NothingToQuantise,
    StorageFailed,
)
from forwardpass.optimize.candidates import MIXED, NOT_TRIED, RANGES_AT_HALF, Workshop, blueprints, build, build_mixed
from forwardpass.optimize.cautions import Findings, cautions
from forwardpass.optimize.choice import Choice, Facts, choose
from forwardpass.optimize.evaluation import Answers, answer, score_answers, score_error
from forwardpass.optimize.probe import int8_saturates
from forwardpass.optimize.values import Candidate, Optimization, OptimizeSettings, Target, Verdict
from forwardpass.profile import Cell, VariantProfile, describe_machine, profile_variants
from forwardpass.profile.measuring import purpose_of
from forwardpass.runtimes import RuntimeOptions, open_runtime

__all__ = ["optimize_model"]

SHARE_OF_MAKING, SHARE_OF_SCORING = 0.15, 0.15


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    """A candidate while the evidence on it comes together."""

    variant: Variant
    failure: str = ""
    is_rejected: bool = False
    """Whether the failure is a finding about the model, such as that it has nothing to quantise."""
    profile: VariantProfile | None = None
    validation: Scores | None = None
    test: Scores | None = None
    error: Scores | None = None


def optimize_model(
    source: Variant,
    baseline: Variant,
    splits: SampleSplits,
    metric: Metric,
    *,
    workdir: Path,
    settings: OptimizeSettings,
    progress: Progress,
    also: Sequence[Variant] = (),
) -> Optimization:
    """Make and measure variants of `baseline`, the ONNX form of `source`, and choose one.

    `also` are float variants that were made before, such as a pruned network: they are measured and judged like the
    others, each as it is and in INT8.

    The search sees the calibration and validation splits; the test split is scored once, for the report. A candidate
    that cannot be made or run is reported as failed and does not stop the others.

    Raises:
        InvalidModel: the batch is fixed at a number other than 1.
        InvalidSamples: a sample is in two splits.
        MissingExtra: the onnx package is not installed.
        InvalidMetric: the metric does not fit the model or the samples.
        ChildFailed: the process that measured the source or the float model ended before it answered.
    """
    splits.check_disjoint(origin="the given splits")
    _check_takes_one_row(baseline)
    calibration = splits.calibration.head(settings.max_calibration_samples)
    entries = [_Entry(variant=source)]
    if baseline != source:
        entries.append(_Entry(variant=baseline))
    needed = frozenset({source.name, baseline.name})
    scorer = _Scorer(splits=splits, metric=metric)
    workshop = Workshop(baseline=baseline, calibration=calibration, folder=workdir, reduce_range=int8_saturates())
    try:
        entries += _make_all(workshop, progress)
        entries += [_Entry(variant=variant) for variant in also]
        _score_all(entries, scorer, progress, needed=needed)
        entries += _make_mixed(workshop, entries, scorer, _floor(entries[0], metric, settings), progress)
        entries += _make_int8_of(also, workshop, scorer, progress)
    finally:
        workshop.tidy()
    _profile_all(entries, splits.validation, settings, progress, needed=needed)
    choice = _choose(entries, baseline, metric, settings)
    return Optimization(
        candidates=tuple(_candidate(entry, entries, baseline, choice, settings.target) for entry in entries),
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        floor_score=_floor(entries[0], metric, settings),
        target=settings.target,
        slo=settings.slo,
        chosen=choice.chosen,
        reason=choice.reason,
        not_tried=NOT_TRIED,
        warnings=_warnings(entries, baseline, calibration, splits.validation, metric, settings),
        num_calibration=len(calibration),
        num_validation=len(splits.validation),
        num_test=len(splits.test),
        machine=describe_machine(),
    )


def _check_takes_one_row(baseline: Variant) -> None:
    """Refuse a model that runs, say, four rows a call and no other number: a request is one row."""
    signature = open_runtime(baseline.format, baseline.location, options=RuntimeOptions()).signature
    for spec in signature.inputs:
        num_rows = spec.shape[0] if spec.shape else 1
        if isinstance(num_rows, int) and num_rows != 1:
            reason = f"the first axis of its input '{spec.name}' is fixed at {num_rows}, and a request is one row"
            raise InvalidModel(path=baseline.location, reason=f"{reason}; export it with a dynamic batch axis")


@dataclass(slots=True, kw_only=True, eq=False)
class _Scorer:
    """Runs variants over the splits; the answers of the first one, the source, are the reference of all."""

    splits: SampleSplits
    metric: Metric
    reference: tuple[Answers, Answers] | None = None

    def score(self, entry: _Entry) -> None:
        """Score a candidate on validation and test."""
        answers = answer(entry.variant, self.splits.validation), answer(entry.variant, self.splits.test)
        self.reference = self.reference or answers
        entry.validation = score_answers(self.metric, answers[0], self.reference[0], self.splits.validation)
        entry.test = score_answers(self.metric, answers[1], self.reference[1], self.splits.test)
        entry.error = score_error(answers[0], self.reference[0], self.splits.validation)

    def validate(self, variant: Variant) -> float:
        """Return the score of a variant on the validation split, which is all that a search may see."""
        assert self.reference is not None, "the source is scored before anything is searched for"
        answers = answer(variant, self.splits.validation)
        return score_answers(self.metric, answers, self.reference[0], self.splits.validation).value

    def is_within(self, score: float, floor: float) -> bool:
        """Tell whether a score keeps the floor."""
        return score >= floor if self.metric.higher_is_better else score <= floor


def _make_all(workshop: Workshop, progress: Progress) -> list[_Entry]:
    entries = []
    plans = blueprints()
    for number, blueprint in enumerate(plans):
        progress(f"making {blueprint.name}", done=SHARE_OF_MAKING * number / len(plans))
        entries.append(_attempt(blueprint.name, blueprint.precision, workshop, partial(build, blueprint, workshop)))
    return entries


def _make_mixed(
    workshop: Workshop, entries: Sequence[_Entry], scorer: _Scorer, floor: float, progress: Progress
) -> list[_Entry]:
    """Make the variant with some nodes in float, if INT8 static works and does not keep the floor without."""
    static = [it.validation.value for it in entries if it.validation and it.variant.precision is Precision.INT8_STATIC]
    if not static or any(scorer.is_within(score, floor) for score in static):
        return []
    progress(f"making {MIXED}", done=SHARE_OF_MAKING + SHARE_OF_SCORING)

    def holds(variant: Variant) -> bool:
        return scorer.is_within(scorer.validate(variant), floor)

    entry = _attempt(MIXED, Precision.INT8_STATIC, workshop, partial(build_mixed, workshop, holds=holds))
    _score_one(entry, scorer, is_needed=False)
    return [entry]


def _make_int8_of(variants: Sequence[Variant], workshop: Workshop, scorer: _Scorer, progress: Progress) -> list[_Entry]:
    """Quantise networks that were made leaner before: what they gain and what 8 bits gain add up."""
    blueprint = next(plan for plan in blueprints() if plan.precision is Precision.INT8_STATIC)
    entries = []
    for variant in variants:
        name = f"{variant.name}-{blueprint.name}"
        progress(f"making {name}", done=SHARE_OF_MAKING + SHARE_OF_SCORING)
        inner = replace(workshop, baseline=variant, folder=workshop.folder / variant.name, plans={})
        inner.folder.mkdir(exist_ok=True)
        try:
            entry = _attempt(name, blueprint.precision, inner, partial(build, blueprint, inner))
        finally:
            inner.tidy()
        entry.variant = replace(entry.variant, name=name)
        _score_one(entry, scorer, is_needed=False)
        entries.append(entry)
    return entries


def _attempt(name: str, precision: Precision, workshop: Workshop, make: Callable[[], Variant]) -> _Entry:
    """Make a variant; what goes wrong ends this variant and not the search."""
    planned = Variant(name=name, format=Format.ONNX, precision=precision, location="")
    try:
        return _Entry(variant=make())
    except MissingExtra:
        raise
    except (NothingToQuantise, NothingGained) as error:
        return _Entry(variant=planned, failure=str(error), is_rejected=True)
    except ForwardpassError as error:
        return _Entry(variant=planned, failure=str(error))
    except OSError as error:
        raise StorageFailed(path=str(workshop.folder), reason=error.strerror or str(error)) from error
    except Exception as error:  # the writers are other people's code
        return _Entry(variant=planned, failure=_sentence(error))


def _score_all(entries: Sequence[_Entry], scorer: _Scorer, progress: Progress, *, needed: frozenset[str]) -> None:
    for number, entry in enumerate(entries):
        progress(f"scoring {entry.variant.name}", done=SHARE_OF_MAKING + SHARE_OF_SCORING * number / len(entries))
        _score_one(entry, scorer, is_needed=entry.variant.name in needed)


def _score_one(entry: _Entry, scorer: _Scorer, *, is_needed: bool) -> None:
    """Score a candidate; without the source and the float model there is nothing to compare with."""
    if entry.failure:
        return
    try:
        scorer.score(entry)
    except ForwardpassError as error:
        if is_needed:
            raise
        entry.failure = str(error)
    except Exception as error:  # a runtime's own classes share no base but this one
        if is_needed:
            raise
        entry.failure = _sentence(error)


def _profile_all(
    entries: Sequence[_Entry],
    samples: Samples,
    settings: OptimizeSettings,
    progress: Progress,
    *,
    needed: frozenset[str],
) -> None:
    """Measure all candidates side by side.

    One whose process dies is out. The others are then measured anew: rounds are compared in pairs, and what was
    measured before the death has no partners behind it.
    """
    start = SHARE_OF_MAKING + SHARE_OF_SCORING

    def show(text: str, *, done: float) -> None:
        progress(text, done=start + (1 - start) * done)

    calls = calls_from_samples(samples, settings.profile.batch_sizes)
    running = [entry for entry in entries if not entry.failure]
    while any(entry.profile is None for entry in running):
        try:
            profiles = profile_variants([it.variant for it in running], calls, settings=settings.profile, progress=show)
        except ChildFailed as error:
            lost = next((entry for entry in running if purpose_of(entry.variant) == error.purpose), None)
            if lost is None or lost.variant.name in needed:
                raise
            lost.failure = str(error)
            running.remove(lost)
        else:
            for entry, profile in zip(running, profiles, strict=True):
                entry.profile = profile


def _choose(entries: Sequence[_Entry], baseline: Variant, metric: Metric, settings: OptimizeSettings) -> Choice:
    own = next(entry for entry in entries if entry.variant.name == baseline.name)
    return choose(
        [_facts(entry, own, settings.target) for entry in entries if not entry.failure],
        baseline=baseline.name,
        floor_score=_floor(entries[0], metric, settings),
        higher_is_better=metric.higher_is_better,
        target=settings.target,
        metric=metric.name,
    )


def _facts(entry: _Entry, baseline: _Entry, target: Target) -> Facts:
    assert entry.profile is not None, "what did not fail was profiled"
    assert entry.validation is not None, "what did not fail was scored"
    return Facts(
        name=entry.variant.name,
        gain=_gain(entry, baseline, target),
        score=entry.validation.value,
        latency_s=entry.profile.best_latency.p50_s.value,
        size_bytes=float(entry.profile.file_bytes or 0),
        can_be_served=entry.variant.format is Format.ONNX,
        shares_batches=entry.profile.invariance.verdict is not BatchInvariance.INTERFERENCE,
    )


def _gain(entry: _Entry, baseline: _Entry, target: Target) -> Measurement:
    """Return how many times better than the baseline a candidate is at the target."""
    assert entry.profile is not None, "what did not fail was profiled"
    assert baseline.profile is not None, "the baseline was profiled"
    if target is Target.SIZE:
        ratio = (baseline.profile.file_bytes or 0) / max(entry.profile.file_bytes or 0, 1)
        return Measurement(value=ratio, unit="ratio", interval=Interval(low=ratio, high=ratio), num_repetitions=1)
    if target is Target.LATENCY:
        ours, theirs = entry.profile.best_latency, baseline.profile.best_latency
    else:
        ours, theirs = entry.profile.best_throughput, baseline.profile.best_throughput
    num_pairs = min(len(ours.round_p50_s), len(theirs.round_p50_s))
    return measure_ratio(_seconds_per_row(theirs)[:num_pairs], _seconds_per_row(ours)[:num_pairs])


def _seconds_per_row(cell: Cell) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(cell.round_p50_s) / cell.batch_size


def _floor(source: _Entry, metric: Metric, settings: OptimizeSettings) -> float:
    assert source.validation is not None, "the source was scored first"
    return settings.floor.limit(source.validation.value, higher_is_better=metric.higher_is_better)


def _candidate(
    entry: _Entry, entries: Sequence[_Entry], baseline: Variant, choice: Choice, target: Target
) -> Candidate:
    if entry.failure:
        verdict = Verdict.REJECTED if entry.is_rejected else Verdict.FAILED
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
        gain=_gain(entry, own, target),
    )


def _warnings(
    entries: Sequence[_Entry],
    baseline: Variant,
    calibration: Samples,
    validation: Samples,
    metric: Metric,
    settings: OptimizeSettings,
) -> tuple[str, ...]:
    findings = Findings(
        metric=metric,
        floor=settings.floor,
        floor_score=_floor(entries[0], metric, settings),
        num_calibration=len(calibration),
        range_distance=_range_distance(entries),
        validation=validation,
        scores={entry.variant.name: entry.validation for entry in entries if entry.validation is not None},
        baseline=baseline.name,
    )
    return tuple(cautions(findings))


def _range_distance(entries: Sequence[_Entry]) -> float:
    steps = [step for entry in entries for step in entry.variant.recipe.steps]
    found = [value for step in steps for name, value in step.parameters if name == RANGES_AT_HALF]
    return max((value for value in found if isinstance(value, float)), default=0.0)


def _sentence(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {first[:200]}"
