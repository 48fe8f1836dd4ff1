"""What a reader has to know before trusting a search: each caution says what is weak and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from forwardpass.core.metrics import METRICS, Metric, Scores
from forwardpass.core.samples import Samples
from forwardpass.core.slo import QualityFloor
from forwardpass.report.format import format_number_of

__all__ = ["Findings", "cautions"]

FEW_CALIBRATION_SAMPLES = 32
STABLE_RANGE_DISTANCE = 0.05
"""Ranges a twentieth too narrow cut off the rarest values only: less than the calibration methods differ by."""
FIDELITY_METRICS = frozenset(metric.name for metric in METRICS.values() if not metric.needs_labels)
"""They compare with the source: that all variants agree with it is a result, not a fault of the metric."""

LEAST_SCORES = {"accuracy": 0.0, "f1": 0.0, "agreement": 0.0, "cosine": -1.0}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """The facts that cautions are about."""

    metric: Metric
    floor: QualityFloor
    floor_score: float
    num_calibration: int
    range_distance: float
    """How far the ranges of INT8 were from the final ones after half of the calibration samples, as a share."""
    validation: Samples
    scores: Mapping[str, Scores]
    """On the validation split, by variant."""
    baseline: str
    has_matrices: bool = True
    """Whether the model has a node that could be computed in fewer bits."""


def cautions(findings: Findings) -> Iterator[str]:
    """Yield a sentence for everything that makes the result weaker than it looks."""
    if not findings.has_matrices:
        yield (
            "The model has no MatMul, Gemm or Conv with constant weights: nothing in it can have fewer bits. Where its "
            "time goes, `forwardpass profile` says."
        )
    yield from _about_samples(findings)
    yield from _about_the_floor(findings)
    yield from _about_the_metric(findings)
    yield from _about_the_baseline(findings)


def _about_samples(findings: Findings) -> Iterator[str]:
    if findings.num_calibration < FEW_CALIBRATION_SAMPLES:
        samples = format_number_of(findings.num_calibration, "calibration sample")
        yield (
            f"Only {samples}: the ranges of INT8 may miss values that occur later. Give more samples; "
            f"{FEW_CALIBRATION_SAMPLES * 8} are plenty."
        )
    elif findings.range_distance > STABLE_RANGE_DISTANCE:
        yield (
            f"The second half of the {findings.num_calibration} calibration samples still moved the ranges of INT8 by "
            f"{100 * findings.range_distance:.1f} %: more would help. Give about twice as many."
        )
    num_validation = len(findings.validation)
    if findings.metric.needs_labels and num_validation * findings.floor.max_drop < 1:
        which = (
            f"One of the {num_validation} validation samples" if num_validation > 1 else "The only validation sample"
        )
        yield (
            f"{which} is more of {findings.metric.name} than the drop that is "
            f"allowed ({findings.floor.max_drop:.2g}): chance decides what passes. Give more samples, or allow more."
        )
    labels = [group.labels for group in findings.validation.groups if group.labels is not None]
    if findings.metric.needs_labels and len(np.unique(np.concatenate([label.reshape(-1) for label in labels]))) == 1:
        yield (
            "All validation labels are the same: a model that always gives this answer would pass. Give samples of "
            "every class."
        )


def _about_the_floor(findings: Findings) -> Iterator[str]:
    """Say so if the floor holds nothing to anything: no score can be below it."""
    own = next(iter(findings.scores.values())).value if findings.scores else None
    least = LEAST_SCORES.get(findings.metric.name)
    if least is None or own is None or findings.floor_score > least:
        return
    if own <= least:
        yield (
            f"The source itself has {findings.metric.name} {own:.4g}, the least there is: every variant keeps the "
            "limit. Check that the labels count classes as the outputs do, from 0, and belong to these samples."
        )
        return
    yield (
        f"The limit, {findings.metric.name} {findings.floor_score:.4g}, is not above {least:g}, the least there is: "
        "every variant keeps it. Give a smaller --max-drop, such as 1%."
    )


def _about_the_metric(findings: Findings) -> Iterator[str]:
    if findings.metric.name in FIDELITY_METRICS or not findings.scores:
        return
    items = np.concatenate([scores.items for scores in findings.scores.values()])
    if len(np.unique(items, axis=0)) == 1:
        value = next(iter(findings.scores.values())).value
        yield (
            f"The metric {findings.metric.name} is {value:.4g} for every sample and variant: it cannot tell them "
            "apart. Use harder samples, or a metric that compares with the source: agreement, cosine, relative-error."
        )


def _about_the_baseline(findings: Findings) -> Iterator[str]:
    sign = 1.0 if findings.metric.higher_is_better else -1.0
    own = findings.scores[findings.baseline].value
    if sign * own < sign * findings.floor_score:
        side = "below" if sign > 0 else "above"
        yield (
            f"The float model {findings.baseline} itself is {side} the limit: {findings.metric.name} {own:.4g}, limit "
            f"{findings.floor_score:.4g}. The conversion has cost that much; look at its comparison with the source, "
            "or allow a greater --max-drop."
        )
