"""The search: make the variants, run them on the user's metric, measure them side by side, and choose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from forwardpass.core.calls import calls_from_samples
from forwardpass.core.measurement import Measurement
from forwardpass.core.metrics import Metric, Scores
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples, SampleSplits, fingerprint_samples
from forwardpass.core.variants import BatchInvariance, Format, Precision, Variant
from forwardpass.core.version import VERSION
from forwardpass.errors import (
    ChildFailed,
    ForwardpassError,
    InvalidModel,
    InvalidOption,
    MissingExtra,
    NothingGained,
    NothingToQuantise,
    StorageFailed,
)
from forwardpass.optimize.budget import Budget, fit_profile
from forwardpass.optimize.candidates import MIXED, RANGES_AT_HALF, Workshop, blueprints, build
from forwardpass.optimize.cautions import Findings, cautions
from forwardpass.optimize.choice import Choice, Facts, choose
from forwardpass.optimize.evaluation import Answers, answer, score_answers, score_error
from forwardpass.optimize.gain import gain_at
from forwardpass.optimize.mixing import MixedWork, build_mixed, layers_of
from forwardpass.optimize.probe import int8_saturates
from forwardpass.optimize.results import ResultStore, content_key
from forwardpass.optimize.rules import Situation, rules_that_apply
from forwardpass.optimize.values import (
    Candidate,
    LayerEvidence,
    Optimization,
    OptimizeSettings,
    SearchStep,
    Target,
    Verdict,
)
from forwardpass.profile import VariantProfile, describe_machine, profile_variants
from forwardpass.profile.measuring import purpose_of
from forwardpass.runtimes import RuntimeOptions, open_runtime

__all__ = ["optimize_model"]

SHARE_OF_MAKING, SHARE_OF_SCORING = 0.15, 0.15
SHARE_OF_BUDGET_FOR_MAKING, SHARE_OF_BUDGET_FOR_SEARCH = 0.35, 0.5
"""Of a budget: no variant is begun after the first, no further set of nodes tried after the second. Measuring gets the
rest, for what is not measured cannot be chosen."""


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


@dataclass(slots=True, kw_only=True, eq=False)
class _Search:
    """What the parts of a search share: what is asked, what is remembered, how long it may take, what was done."""

    settings: OptimizeSettings
    store: ResultStore
    budget: Budget
    key: str
    """A hash of the model, the samples, the software and the machine."""
    layers: tuple[LayerEvidence, ...] = ()
    path: list[SearchStep] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def note(self, entry: _Entry, metric: Metric, verb: str = "made and scored") -> None:
        """Put a candidate into the path of the search."""
        score = entry.validation.value if entry.validation is not None else None
        outcome = entry.failure or f"{verb}, {metric.name} {score:.4g} on the validation samples"
        self.path.append(SearchStep(what=entry.variant.name, outcome=outcome, score=score))


class _Made(msgspec.Struct, frozen=True, kw_only=True):
    """A variant that was made, or why there is none, and the file as it was then."""

    variant: Variant
    failure: str = ""
    is_rejected: bool = False
    sha256: str = ""
    layers: tuple[LayerEvidence, ...] = ()
    steps: tuple[SearchStep, ...] = ()
    is_needless: bool = False


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
    memory: Path | None = None,
) -> Optimization:
    """Make and measure variants of `baseline`, the ONNX form of `source`, and choose one.

    `also` are float variants that were made before, such as a pruned network: they are measured and judged like the
    others, each as it is and in INT8.

    The search sees the calibration and validation splits; the test split is scored once, for the report. A candidate
    that cannot be made or run is reported as failed and does not stop the others. What was made and measured is
    remembered by its content in the folder `memory` (`.search` in `workdir`): a search that was killed goes on there.

    Raises:
        InvalidOption: the absolute floor is better than the source itself.
        InvalidModel: the batch is fixed at a number other than 1.
        InvalidSamples: a sample is in two splits.
        MissingExtra: the onnx package is not installed.
        InvalidMetric: the metric does not fit the model or the samples.
        ChildFailed: the process that measured the source or the float model ended before it answered.
    """
    splits.check_disjoint(origin="the given splits")
    _check_takes_one_row(baseline)
    calibration = splits.calibration.head(settings.max_calibration_samples)
    search = _Search(
        settings=settings,
        store=ResultStore(memory or workdir / ".search"),
        budget=Budget(total_s=settings.budget_s),
        key=_search_key(baseline, splits, calibration),
    )
    entries = [_Entry(variant=source)]
    if baseline != source:
        entries.append(_Entry(variant=baseline))
    needed = frozenset({source.name, baseline.name})
    scorer = _Scorer(splits=splits, metric=metric)
    saturates = int8_saturates()
    workshop = Workshop(baseline=baseline, calibration=calibration, folder=workdir, reduce_range=saturates)
    try:
        _score_all(entries, scorer, progress, needed=needed)
        _check_floor(entries[0], metric, settings)
        made = [*_make_all(workshop, search, progress), *(_Entry(variant=variant) for variant in also)]
        _score_all(made, scorer, progress, needed=needed)
        for entry in made:
            search.note(entry, metric)
        entries += made
        entries += _make_mixed(workshop, search, entries, scorer, metric, progress)
        entries += _make_int8_of(also, workshop, search, scorer, progress)
    finally:
        workshop.tidy()
    entries = _profile_all(entries, splits.validation, search, progress, needed=needed, scorer=scorer)
    choice = _choose(entries, baseline, metric, settings)
    machine = describe_machine()
    situation = Situation(machine=machine, saturates=saturates, layers=search.layers, target=settings.target)
    return Optimization(
        candidates=tuple(_candidate(entry, entries, baseline, choice, settings) for entry in entries),
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        floor_score=_floor(entries[0], metric, settings),
        target=settings.target,
        slo=settings.slo,
        chosen=choice.chosen,
        reason=choice.reason,
        not_tried=rules_that_apply(situation),
        warnings=_warnings(entries, baseline, calibration, splits.validation, metric, settings),
        num_calibration=len(calibration),
        num_validation=len(splits.validation),
        num_test=len(splits.test),
        machine=machine,
        layers=search.layers,
        path=tuple(search.path),
        left_out=tuple(search.left_out),
    )


def _search_key(baseline: Variant, splits: SampleSplits, calibration: Samples) -> str:
    parts = (calibration, splits.validation, splits.test)
    return content_key(
        VERSION, describe_machine(), _hash_file(baseline.location), *(fingerprint_samples(part) for part in parts)
    )


def _hash_file(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_floor(source: _Entry, metric: Metric, settings: OptimizeSettings) -> None:
    """Refuse an absolute floor that the source itself does not keep: nothing made from it is held to more."""
    assert source.validation is not None, "the source was scored first"
    own, floor = source.validation.value, settings.floor.absolute
    if floor is None or (own >= floor if metric.higher_is_better else own <= floor):
        return
    side = "at most" if metric.higher_is_better else "at least"
    raise InvalidOption(
        option="--floor",
        value=f"{floor:g}",
        expected=f"{side} {own:.4g}, the {metric.name} of the source itself on the validation samples; set it there, "
        "use --max-drop, or give a better model",
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


def _make_all(workshop: Workshop, search: _Search, progress: Progress) -> list[_Entry]:
    entries = []
    plans = blueprints()
    for number, blueprint in enumerate(plans):
        if not search.budget.has_time(SHARE_OF_BUDGET_FOR_MAKING):
            search.left_out.append(f"{blueprint.name} was not made: {search.budget}")
            continue
        progress(f"making {blueprint.name}", done=SHARE_OF_MAKING * number / len(plans))
        key = content_key("variant", search.key, blueprint.name, workshop.reduce_range)
        entry = _recall(search.store.find(key, _Made), workshop)
        if entry is None:
            entry = _attempt(blueprint.name, blueprint.precision, workshop, partial(build, blueprint, workshop))
            search.store.keep(key, _record(entry))
        entries.append(entry)
    return entries


def _record(entry: _Entry, **evidence: Any) -> _Made:
    sha256 = "" if entry.failure or not entry.variant.location else _hash_file(entry.variant.location)
    return _Made(variant=entry.variant, failure=entry.failure, is_rejected=entry.is_rejected, sha256=sha256, **evidence)


def _recall(made: _Made | None, workshop: Workshop) -> _Entry | None:
    """Return a candidate that was made before, if its file is still what it was then; a failure is tried again."""
    if made is None or (made.failure and not made.is_rejected):
        return None
    if made.failure or made.is_needless:
        return _Entry(variant=made.variant, failure=made.failure, is_rejected=made.is_rejected)
    file = workshop.folder / Path(made.variant.location).name
    if not file.is_file() or _hash_file(str(file)) != made.sha256:
        return None
    return _Entry(variant=replace(made.variant, location=str(file)))


def _make_mixed(
    workshop: Workshop,
    search: _Search,
    entries: Sequence[_Entry],
    scorer: _Scorer,
    metric: Metric,
    progress: Progress,
) -> list[_Entry]:
    """Make the variant with some nodes in float, where that is faster or keeps a floor that is missed without."""
    floor = _floor(entries[0], metric, search.settings)
    static = [it.validation.value for it in entries if it.validation and it.variant.precision is Precision.INT8_STATIC]
    if not static:
        return []
    if not search.budget.has_time(SHARE_OF_BUDGET_FOR_MAKING):
        search.left_out.append(f"{MIXED} was not made: {search.budget}")
        return []
    progress(f"making {MIXED}", done=SHARE_OF_MAKING + SHARE_OF_SCORING)
    target = search.settings.target
    key = content_key(
        "mixed", search.key, metric.name, metric.higher_is_better, floor, target, workshop.reduce_range,
        search.settings.profile.batch_sizes,
    )  # fmt: skip
    made = search.store.find(key, _Made)
    entry = _recall(made, workshop)
    if entry is None:
        work = MixedWork(
            workshop=workshop,
            store=search.store,
            key=key,
            score=scorer.validate,
            holds=lambda score: scorer.is_within(score, floor),
            is_for_speed=target in (Target.LATENCY, Target.THROUGHPUT, Target.COST),
            static_holds=any(scorer.is_within(score, floor) for score in static),
            num_rows=1 if target is Target.LATENCY else max(search.settings.profile.batch_sizes),
            has_time=lambda: search.budget.has_time(SHARE_OF_BUDGET_FOR_SEARCH),
        )
        entry, made = _attempt_mixed(work)
        if work.is_finished:
            search.store.keep(key, made)
        else:
            search.left_out.append(f"the search for nodes to keep in float ended early: {search.budget}")
    assert made is not None, "an entry comes from a record or with one"
    search.layers = made.layers
    search.path += made.steps
    if made.is_needless:
        return []
    _score_one(entry, scorer, is_needed=False)
    search.note(entry, metric)
    return [entry]


def _attempt_mixed(work: MixedWork) -> tuple[_Entry, _Made]:
    found: list[Variant] = []

    def make() -> Variant:
        variant = build_mixed(work)
        found.extend([variant] if variant is not None else [])
        return variant or Variant(name=MIXED, format=Format.ONNX, precision=Precision.INT8_STATIC, location="")

    entry = _attempt(MIXED, Precision.INT8_STATIC, work.workshop, make)
    is_needless = not found and not entry.failure
    return entry, _record(entry, layers=layers_of(work), steps=tuple(work.steps), is_needless=is_needless)


def _make_int8_of(
    variants: Sequence[Variant], workshop: Workshop, search: _Search, scorer: _Scorer, progress: Progress
) -> list[_Entry]:
    """Quantise networks that were made leaner before: what they gain and what 8 bits gain add up."""
    blueprint = next(plan for plan in blueprints() if plan.precision is Precision.INT8_STATIC)
    entries = []
    for variant in variants:
        name = f"{variant.name}-{blueprint.name}"
        if not search.budget.has_time(SHARE_OF_BUDGET_FOR_SEARCH):
            search.left_out.append(f"{name} was not made: {search.budget}")
            continue
        progress(f"making {name}", done=SHARE_OF_MAKING + SHARE_OF_SCORING)
        inner = replace(workshop, baseline=variant, folder=workshop.folder / variant.name, plans={})
        inner.folder.mkdir(exist_ok=True)
        try:
            entry = _attempt(name, blueprint.precision, inner, partial(build, blueprint, inner))
        finally:
            inner.tidy()
        entry.variant = replace(entry.variant, name=name)
        _score_one(entry, scorer, is_needed=False)
        search.note(entry, scorer.metric)
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
    search: _Search,
    progress: Progress,
    *,
    needed: frozenset[str],
    scorer: _Scorer,
) -> list[_Entry]:
    """Measure all candidates side by side, as many as there is time for, and return those that stay in the search.

    One whose process dies is out. The others are then measured anew: rounds are compared in pairs, and what was
    measured before the death has no partners behind it.
    """
    start = SHARE_OF_MAKING + SHARE_OF_SCORING

    def show(text: str, *, done: float) -> None:
        progress(text, done=start + (1 - start) * done)

    running = [entry for entry in entries if not entry.failure]
    settings, num_measured = fit_profile(search.settings.profile, len(running), search.budget.left_s)
    for entry in _least_promising(running, needed)[: max(len(running) - num_measured, 0)]:
        search.left_out.append(f"{entry.variant.name} was not measured: {search.budget}")
        running.remove(entry)
    dropped = [entry for entry in entries if not entry.failure and entry not in running]
    if settings != search.settings.profile:
        search.left_out.append(f"measurements were shortened: {search.budget}")
    calls = calls_from_samples(samples, settings.batch_sizes)
    while any(entry.profile is None for entry in running):
        variants = [entry.variant for entry in running]
        key = content_key("profiles", search.key, settings, [_identity(variant) for variant in variants])
        profiles = search.store.find(key, tuple[VariantProfile, ...])
        try:
            if profiles is None:
                profiles = profile_variants(variants, calls, settings=settings, progress=show)
                search.store.keep(key, profiles)
        except ChildFailed as error:
            lost = next((entry for entry in running if purpose_of(entry.variant) == error.purpose), None)
            if lost is None or lost.variant.name in needed:
                raise
            lost.failure = str(error)
            running.remove(lost)
        else:
            for entry, profile in zip(running, profiles, strict=True):
                entry.profile = profile
    return [entry for entry in entries if entry not in dropped]


def _identity(variant: Variant) -> tuple[str, str]:
    is_file = Path(variant.location).is_file()
    return variant.name, _hash_file(variant.location) if is_file else variant.location


def _least_promising(entries: Sequence[_Entry], needed: frozenset[str]) -> list[_Entry]:
    """Return what may be left unmeasured: what is farthest from the source's answers goes first.

    The mixed variant goes last: as a whole file it was surely faster than float.
    """
    free = [entry for entry in entries if entry.variant.name not in needed]
    return sorted(
        free,
        key=lambda entry: (entry.variant.name == MIXED, -(entry.error.value if entry.error is not None else 0.0)),
    )


def _choose(entries: Sequence[_Entry], baseline: Variant, metric: Metric, settings: OptimizeSettings) -> Choice:
    own = next(entry for entry in entries if entry.variant.name == baseline.name)
    return choose(
        [_facts(entry, own, settings) for entry in entries if not entry.failure],
        baseline=baseline.name,
        floor_score=_floor(entries[0], metric, settings),
        higher_is_better=metric.higher_is_better,
        target=settings.target,
        metric=metric.name,
    )


def _facts(entry: _Entry, baseline: _Entry, settings: OptimizeSettings) -> Facts:
    assert entry.profile is not None, "what did not fail was profiled"
    assert entry.validation is not None, "what did not fail was scored"
    return Facts(
        name=entry.variant.name,
        gain=_gain(entry, baseline, settings),
        score=entry.validation.value,
        latency_s=entry.profile.best_latency.p50_s.value,
        size_bytes=float(entry.profile.file_bytes or 0),
        can_be_served=entry.variant.format is Format.ONNX,
        shares_batches=entry.profile.invariance.verdict is not BatchInvariance.INTERFERENCE,
    )


def _gain(entry: _Entry, baseline: _Entry, settings: OptimizeSettings) -> Measurement:
    """Return how many times better than the baseline a candidate is at the target."""
    assert entry.profile is not None, "what did not fail was profiled"
    assert baseline.profile is not None, "the baseline was profiled"
    return gain_at(settings.target, entry.profile, baseline.profile, prices=settings.prices)


def _floor(source: _Entry, metric: Metric, settings: OptimizeSettings) -> float:
    assert source.validation is not None, "the source was scored first"
    return settings.floor.limit(source.validation.value, higher_is_better=metric.higher_is_better)


def _candidate(
    entry: _Entry, entries: Sequence[_Entry], baseline: Variant, choice: Choice, settings: OptimizeSettings
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
        gain=_gain(entry, own, settings),
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
