"""The search: make the variants, run them on the user's metric, measure them side by side, and choose."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from forwardpass.core.metrics import Metric
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples, SampleSplits, fingerprint_samples
from forwardpass.core.variants import Format, Variant
from forwardpass.core.version import VERSION
from forwardpass.errors import InvalidModel, InvalidOption
from forwardpass.optimize.brevity import choose_finalists
from forwardpass.optimize.budget import Budget, Pace
from forwardpass.optimize.candidates import NUM_TRIAL_SAMPLES_OF_A_BRIEF_SEARCH, Workshop, folded
from forwardpass.optimize.comparing import profile_all
from forwardpass.optimize.entries import Entry, Search
from forwardpass.optimize.forecast import forecast_savings
from forwardpass.optimize.making import keep_apt, make_all, make_first, measure_nodes
from forwardpass.optimize.probe import int8_saturates
from forwardpass.optimize.results import ResultStore, content_key, hash_file
from forwardpass.optimize.rules import Situation, rules_that_apply
from forwardpass.optimize.sampling import fit_splits
from forwardpass.optimize.scoring import Scorer, finish_scores, score_all
from forwardpass.optimize.selective import make_int8_of, make_mixed, make_weights
from forwardpass.optimize.sooner import make_sooner
from forwardpass.optimize.torch_route import make_torch
from forwardpass.optimize.values import Optimization, OptimizeSettings, Route
from forwardpass.optimize.verdicts import caution_about, choose_entry, describe_entry
from forwardpass.profile import describe_machine
from forwardpass.runtimes import RuntimeOptions, open_runtime
from forwardpass.runtimes.options import num_available_cores

if TYPE_CHECKING:
    from forwardpass.optimize.torch_writers import TorchModel

__all__ = ["optimize_model"]

NUM_PACE_CALLS = 3
"""The first allocates, of the others the longer one counts on the side of too slow."""


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
    axes: Mapping[str, Mapping[int, str]] | None = None,
    memory: Path | None = None,
    spent_s: float = 0.0,
) -> Optimization:
    """Make and measure variants of `baseline`, the ONNX form of `source`, and choose one.

    `also` are float variants that were made before, such as a pruned network: they are measured and judged like the
    others, each as it is and in INT8. `axes` are the names of dynamic axes that the user has given.

    The search sees the calibration and validation splits; the test split is scored once, for the report. A candidate
    that cannot be made or run is reported as failed and does not stop the others. What was made and measured is
    remembered by its content in the folder `memory` (`.search` in `workdir`): a search that was killed goes on there.
    `spent_s` seconds of the budget have gone before, into the conversion.

    Raises:
        InvalidOption: the absolute floor is better than the source itself, or a route does not fit the source.
        InvalidModel: the batch is fixed at a number other than 1.
        InvalidSamples: a sample is in two splits.
        MissingExtra: the onnx package is not installed.
        InvalidMetric: the metric does not fit the model or the samples.
        ChildFailed: the process that measured the source or the float model ended before it answered.
    """
    splits.check_disjoint(origin="the given splits")
    _check_routes(source, settings)
    budget = Budget(total_s=settings.budget_s, start_s=time.monotonic() - spent_s)
    pace = _pace(baseline, splits.calibration)
    used = fit_splits(splits, settings, budget, pace)
    splits, calibration = used.splits, used.splits.calibration
    search = Search(
        settings=settings,
        store=ResultStore(memory or workdir / ".search"),
        budget=budget,
        key=_search_key(baseline, splits, calibration),
        pace=pace,
        left_out=list(used.left_out),
    )
    entries = [Entry(variant=source)]
    if baseline != source:
        entries.append(Entry(variant=baseline))
    needed = frozenset({source.name, baseline.name})
    search.num_to_measure = len(entries)
    scorer = Scorer(splits=splits, metric=metric, allowed=settings.floor, defers_test=search.is_brief)
    saturates = int8_saturates()
    workshop = Workshop(baseline=baseline, calibration=calibration, folder=workdir, reduce_range=saturates)
    if search.is_brief:
        workshop = replace(workshop, num_trial_samples=NUM_TRIAL_SAMPLES_OF_A_BRIEF_SEARCH)
    try:
        if search.is_brief:
            workshop.timer.start()
        start_s = time.monotonic()
        score_all(entries, scorer, progress, needed=needed)
        search.scoring_s = (time.monotonic() - start_s) / len(entries)
        _check_floor(entries[0], metric, settings)
        made: list[Entry] = []
        if Route.ONNX in settings.routes:
            first = make_first(workshop, search, scorer, metric, needed, progress)
            workshop = measure_nodes(workshop, search, progress)
            if settings.is_brief and workshop.gains:
                search.forecast = forecast_savings(folded(workshop), workshop.gains)
                first = keep_apt(first, search)
            made += make_all(workshop, search, scorer, metric, needed, progress, first)
        others = [Entry(variant=variant) for variant in also]
        if Route.TORCH in settings.routes:
            model = _torch_model(source, baseline, calibration, axes or {})
            others = [*make_torch(model, workshop, search, progress), *others]
        score_all(others, scorer, progress, needed=needed)
        for entry in others:
            search.note(entry, metric)
        entries += [*made, *others]
        if Route.ONNX in settings.routes:
            entries += make_mixed(workshop, search, entries, scorer, metric, progress)
            entries += make_weights(workshop, search, entries, scorer, metric, progress)
        entries += make_int8_of(also, workshop, search, scorer, progress)
        entries += make_sooner(workshop, search, entries, scorer, progress)
        entries = choose_finalists(entries, workshop, scorer, search, needed=needed)
    finally:
        workshop.tidy()
    finish_scores(entries, scorer, progress, needed=needed)
    entries = profile_all(entries, splits.validation, search, progress, needed=needed)
    choice = choose_entry(entries, baseline, metric, settings, floor=scorer.floor)
    machine = describe_machine()
    situation = Situation(machine=machine, saturates=saturates, layers=search.layers, target=settings.target)
    return Optimization(
        candidates=tuple(describe_entry(entry, entries, baseline, choice, settings, workdir) for entry in entries),
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        floor_score=scorer.floor,
        target=settings.target,
        slo=settings.slo,
        chosen=choice.chosen,
        reason=choice.reason,
        not_tried=rules_that_apply(situation),
        warnings=caution_about(
            entries,
            baseline,
            calibration,
            splits.validation,
            metric,
            settings,
            floor=scorer.floor,
            has_matrices=bool(search.layers) or not any(map(_found_nothing, entries)),
        ),
        num_calibration=len(calibration),
        num_validation=len(splits.validation),
        num_test=len(splits.test),
        machine=machine,
        layers=search.layers,
        path=tuple(search.path),
        left_out=search.omissions(),
        prices=settings.prices,
        found_s=search.found_s.get(choice.chosen),
        proved_s=time.monotonic() - budget.start_s,
    )


def _search_key(baseline: Variant, splits: SampleSplits, calibration: Samples) -> str:
    parts = (calibration, splits.validation, splits.test)
    return content_key(
        VERSION, describe_machine(), hash_file(baseline.location), *(fingerprint_samples(part) for part in parts)
    )


def _check_routes(source: Variant, settings: OptimizeSettings) -> None:
    if Route.TORCH in settings.routes and source.format is not Format.TORCH:
        raise InvalidOption(
            option="--routes",
            value=Route.TORCH.value,
            expected=f"{Route.ONNX.value} alone: the source is no PyTorch module",
        )


def _torch_model(
    source: Variant, baseline: Variant, calibration: Samples, axes: Mapping[str, Mapping[int, str]]
) -> TorchModel:
    from forwardpass.optimize.torch_writers import TorchModel

    return TorchModel(
        reference=source.location,
        weights=source.weights,
        calibration=calibration,
        axes=axes,
        signature=open_runtime(baseline.format, baseline.location, options=RuntimeOptions()).signature,
    )


def _found_nothing(entry: Entry) -> bool:
    """Tell whether all kinds of nodes were looked at, and none could be computed in fewer bits."""
    return entry.is_rejected and entry.variant.name == "int8-static"


def _check_floor(source: Entry, metric: Metric, settings: OptimizeSettings) -> None:
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


def _pace(baseline: Variant, samples: Samples) -> Pace:
    """See how long the float model takes to load and to answer one row.

    Raises:
        InvalidModel: it runs, say, four rows a call and no other number: a request is one row.
    """
    start_s = time.monotonic()
    runtime = open_runtime(
        baseline.format, baseline.location, options=RuntimeOptions(num_threads=num_available_cores())
    )
    for spec in runtime.signature.inputs:
        num_rows = spec.shape[0] if spec.shape else 1
        if isinstance(num_rows, int) and num_rows != 1:
            reason = f"the first axis of its input '{spec.name}' is fixed at {num_rows}, and a request is one row"
            raise InvalidModel(path=baseline.location, reason=f"{reason}; export it with a dynamic batch axis")
    loaded_s = time.monotonic()
    calls_s = []
    for group in samples.head(NUM_PACE_CALLS).batches(1):
        before_s = time.monotonic()
        runtime.run(group.inputs)
        calls_s.append(time.monotonic() - before_s)
    return Pace(
        load_s=loaded_s - start_s,
        call_s=sorted(calls_s)[len(calls_s) // 2] if calls_s else 0.0,
        num_bytes=Path(baseline.location).stat().st_size,
    )
