"""How right an answer is: against labels, or, without labels, against the source.

A metric turns predictions into one statistic per sample and aggregates those. Intervals and paired comparisons
resample the per-sample statistics, so every metric has them, the user's own included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from forwardpass.core.measurement import Measurement
from forwardpass.core.statistics import NUM_RESAMPLES, bootstrap_interval
from forwardpass.core.tensors import Array, Tensors
from forwardpass.errors import InvalidMetric

__all__ = [
    "METRICS",
    "Metric",
    "Prediction",
    "Scores",
    "mean_of_items",
    "ratio_of_sums",
    "score",
    "user_metric",
]

Items: TypeAlias = Array
"""Per-sample statistics, float64 `[n, k]`."""

_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """The outputs for some samples of one shape, with what they are compared to.

    All arrays have the samples along their first axis. `reference` holds the source's outputs for the same inputs.
    """

    outputs: dict[str, Array]
    reference: dict[str, Array]
    labels: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.outputs.values())))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metric:
    """A named score.

    `items` returns per-sample statistics of shape `[n, k]`; `aggregate` turns any number of them into the score.
    """

    name: str
    higher_is_better: bool
    needs_labels: bool
    items: Callable[[Prediction], Items]
    aggregate: Callable[[Items], float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """A metric's value over a split, with the per-sample statistics behind it."""

    metric: Metric
    items: Items

    @property
    def value(self) -> float:
        """The score over all samples."""
        return self.metric.aggregate(self.items)

    def measure(self) -> Measurement:
        """Return the score with its bootstrap interval over the samples."""
        interval = bootstrap_interval(self.items, self.metric.aggregate)
        return Measurement(value=self.value, unit=self.metric.name, interval=interval, num_repetitions=len(self.items))

    def measure_difference(self, other: Scores) -> Measurement:
        """Return this score minus `other`, with an interval that resamples the same samples of both."""
        width = self.items.shape[1]
        paired = np.hstack((self.items, other.items))

        def difference(items: Array) -> float:
            return self.metric.aggregate(items[:, :width]) - self.metric.aggregate(items[:, width:])

        interval = bootstrap_interval(paired, difference, num_resamples=NUM_RESAMPLES)
        return Measurement(
            value=difference(paired), unit=self.metric.name, interval=interval, num_repetitions=len(paired)
        )


def score(metric: Metric, predictions: list[Prediction]) -> Scores:
    """Score predictions of one or more shapes.

    Raises:
        InvalidMetric: the metric needs labels that are missing, or does not fit the outputs.
    """
    if metric.needs_labels and any(prediction.labels is None for prediction in predictions):
        raise InvalidMetric(
            metric=metric.name,
            reason="the samples have no labels",
            hint="Add an array 'labels', or use a fidelity metric: agreement, cosine, relative-error.",
        )
    items = np.concatenate([metric.items(prediction) for prediction in predictions])
    if not np.isfinite(items).all():
        raise InvalidMetric(metric=metric.name, reason="the model's outputs are not finite (NaN or infinity)")
    return Scores(metric=metric, items=items)


def user_metric(name: str, function: Callable[[Tensors, Array | None], Array], *, higher_is_better: bool) -> Metric:
    """Wrap a user's function.

    It gets the outputs by name and the labels of `n` samples and returns an array: `[n]` scores, which are averaged,
    or `[n, 2]` numerators and denominators, which are summed and divided (for rates such as the word error rate).
    """

    def items(prediction: Prediction) -> Items:
        try:
            array = np.asarray(function(prediction.outputs, prediction.labels), dtype=np.float64)
        except Exception as error:  # whatever the user's function raises
            raise InvalidMetric(metric=name, reason=f"it raised {type(error).__name__}: {error}") from error
        if array.shape not in ((len(prediction),), (len(prediction), 2)):
            raise InvalidMetric(
                metric=name,
                reason=f"it returned shape {list(array.shape)} for {len(prediction)} samples",
                hint="Return one score per sample, or one numerator and denominator per sample.",
            )
        _check_finite(name, array, prediction)
        return array.reshape(len(prediction), -1)

    def aggregate(values: Items) -> float:
        return mean_of_items(values) if values.shape[1] == 1 else ratio_of_sums(values)

    return Metric(name=name, higher_is_better=higher_is_better, needs_labels=False, items=items, aggregate=aggregate)


def _check_finite(name: str, scores: Array, prediction: Prediction) -> None:
    """Tell a metric that divides by zero from a model that answers with NaN, which is told where all scores are."""
    numbers = [output for output in prediction.outputs.values() if output.dtype.kind == "f"]
    if not np.isfinite(scores).all() and all(np.isfinite(output).all() for output in numbers):
        raise InvalidMetric(
            metric=name,
            reason="it returned NaN or infinity for outputs that are finite",
            hint="Let it return a score for every sample.",
        )


def mean_of_items(items: Items) -> float:
    """Average one score per sample."""
    return float(items[:, 0].mean())


def ratio_of_sums(items: Items) -> float:
    """Divide the sum of the numerators by the sum of the denominators."""
    return float(items[:, 0].sum() / max(items[:, 1].sum(), _TINY))


def _first(tensors: dict[str, Array]) -> Array:
    """Return the first output as `[n, values]`: metrics that need one decision take it from there."""
    array = next(iter(tensors.values()))
    return array.reshape(len(array), -1)


def _decisions(array: Array) -> Array:
    """Return the class that each row decides for; a single integer output is the class itself."""
    if array.shape[1] == 1:
        values = array[:, 0]
        return values.astype(np.int64) if values.dtype.kind in "iub" else (values > 0.5).astype(np.int64)
    return array.argmax(axis=1).astype(np.int64)


def _labels(prediction: Prediction, metric: str) -> Array:
    labels = prediction.labels
    assert labels is not None, "score() checks that a metric which needs labels gets them"
    if len(labels) != len(prediction):
        raise InvalidMetric(metric=metric, reason=f"{len(labels)} labels for {len(prediction)} samples")
    return labels


def _accuracy_items(prediction: Prediction) -> Items:
    decided = _decisions(_first(prediction.outputs))
    return (decided == _labels(prediction, "accuracy").reshape(-1)).astype(np.float64)[:, None]


def _f1_items(prediction: Prediction) -> Items:
    decided = _decisions(_first(prediction.outputs))
    return np.stack([decided, _labels(prediction, "f1").reshape(-1)], axis=1).astype(np.float64)


def _macro_f1(items: Items) -> float:
    """Average the F1 of every class that occurs; a class that is never right counts as 0."""
    decided, labels = items[:, 0], items[:, 1]
    scores = []
    for label in np.union1d(decided, labels):
        hits = float(((decided == label) & (labels == label)).sum())
        scores.append(2 * hits / ((decided == label).sum() + (labels == label).sum()))
    return float(np.mean(scores))


def _mean_error_items(prediction: Prediction) -> Items:
    labels = _labels(prediction, "mean-error").reshape(len(prediction), -1)
    outputs = _first(prediction.outputs)
    if labels.shape != outputs.shape:
        raise InvalidMetric(
            metric="mean-error",
            reason=f"labels have shape {list(labels.shape)}, outputs {list(outputs.shape)}",
        )
    return np.abs(outputs.astype(np.float64) - labels).mean(axis=1, keepdims=True)


def _agreement_items(prediction: Prediction) -> Items:
    same = _decisions(_first(prediction.outputs)) == _decisions(_first(prediction.reference))
    return same.astype(np.float64)[:, None]


def _cosine_items(prediction: Prediction) -> Items:
    ours = _first(prediction.outputs).astype(np.float64)
    theirs = _first(prediction.reference).astype(np.float64)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return ((ours * theirs).sum(axis=1) / np.maximum(norms, _TINY))[:, None]


def _relative_error_items(prediction: Prediction) -> Items:
    worst = np.zeros(len(prediction))
    for name, reference in prediction.reference.items():
        theirs = reference.reshape(len(prediction), -1).astype(np.float64)
        ours = prediction.outputs[name].reshape(len(prediction), -1).astype(np.float64)
        error = np.linalg.norm(ours - theirs, axis=1) / np.maximum(np.linalg.norm(theirs, axis=1), _TINY)
        worst = np.maximum(worst, error)
    return worst[:, None]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="accuracy",
            higher_is_better=True,
            needs_labels=True,
            items=_accuracy_items,
            aggregate=mean_of_items,
        ),
        Metric(name="f1", higher_is_better=True, needs_labels=True, items=_f1_items, aggregate=_macro_f1),
        Metric(
            name="mean-error",
            higher_is_better=False,
            needs_labels=True,
            items=_mean_error_items,
            aggregate=mean_of_items,
        ),
        Metric(
            name="agreement",
            higher_is_better=True,
            needs_labels=False,
            items=_agreement_items,
            aggregate=mean_of_items,
        ),
        Metric(
            name="cosine",
            higher_is_better=True,
            needs_labels=False,
            items=_cosine_items,
            aggregate=mean_of_items,
        ),
        Metric(
            name="relative-error",
            higher_is_better=False,
            needs_labels=False,
            items=_relative_error_items,
            aggregate=mean_of_items,
        ),
    )
}
"""The built-in metrics: three against labels, three against the source."""
