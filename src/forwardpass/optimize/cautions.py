"""What a reader has to know before trusting a search: each caution says what is weak and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from forwardpass.core.metrics import METRICS, Metric, Scores
from forwardpass.core.samples import Samples
from forwardpass.core.slo import QualityFloor

__all__ = ["Findings", "cautions"]

FEW_CALIBRATION_SAMPLES = 32
STABLE_RANGE_DISTANCE = 0.05
"""Ranges a twentieth too narrow cut off the rarest values only: less than the calibration methods differ by."""
FIDELITY_METRICS = frozenset(metric.name for metric in METRICS.values() if not metric.needs_labels)
"""They compare with the source: that all variants agree with it is a result, not a fault of the metric."""


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


def cautions(findings: Findings) -> Iterator[str]:
    """Yield a sentence for everything that makes the result weaker than it looks."""
    yield from _about_samples(findings)
    yield from _about_the_metric(findings)
    yield from _about_the_baseline(findings)


def _about_samples(findings: Findings) -> Iterator[str]:
    if findings.num_calibration < FEW_CALIBRATION_SAMPLES:
        yield (
            f"Only {findings.num_calibration} calibration samples: the ranges of INT8 may miss values that occur "
            f"later. Give more samples; {FEW_CALIBRATION_SAMPLES * 8} are plenty."
        )
    elif findings.range_distance > STABLE_RANGE_DISTANCE:
        yield (
            f"The second half of the {findings.num_calibration} calibration samples still moved the ranges of INT8 by "
            f"{100 * findings.range_distance:.1f} %: more would help. Give about twice as many."
        )
    num_validation = len(findings.validation)
    if findings.metric.needs_labels and num_validation * findings.floor.max_drop < 1:
        yield (
            f"One of the {num_validation} validation samples is more of {findings.metric.name} than the drop that is "
            f"allowed ({findings.floor.max_drop:.2g}): chance decides what passes. Give more samples, or allow more."
        )
    labels = [group.labels for group in findings.validation.groups if group.labels is not None]
    if findings.metric.needs_labels and len(np.unique(np.concatenate([label.reshape(-1) for label in labels]))) == 1:
        yield (
            "All validation labels are the same: a model that always gives this answer would pass. Give samples of "
            "every class."
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
