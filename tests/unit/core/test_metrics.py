"""Metrics, compared with scikit-learn where it has the same one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from forwardpass.core.metrics import METRICS, Prediction, score, user_metric
from forwardpass.core.tensors import Array, Tensors
from forwardpass.errors import InvalidMetric

CLASSES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def prediction(decided: Array, labels: Array | None = None, reference: Array | None = None) -> Prediction:
    one_hot = np.eye(5)[decided]
    return Prediction(
        outputs={"scores": one_hot},
        reference={"scores": one_hot if reference is None else np.eye(5)[reference]},
        labels=labels,
    )


@given(CLASSES)
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    decided, labels = np.array(pairs).T
    predictions = (
        [prediction(decided[:3], labels[:3]), prediction(decided[3:], labels[3:])]
        if len(pairs) > 3
        else [prediction(decided, labels)]
    )
    assert score(METRICS["accuracy"], predictions).value == pytest.approx(accuracy_score(labels, decided))
    expected = f1_score(labels, decided, average="macro", zero_division=0)
    assert score(METRICS["f1"], predictions).value == pytest.approx(expected)


@given(CLASSES)
def test_a_source_agrees_fully_with_itself(pairs: list[tuple[int, int]]) -> None:
    decided = np.array(pairs)[:, 0]
    assert score(METRICS["agreement"], [prediction(decided)]).value == 1.0
    assert score(METRICS["cosine"], [prediction(decided)]).value == pytest.approx(1.0)
    assert score(METRICS["relative-error"], [prediction(decided)]).value == 0.0


def test_the_paired_difference_has_a_narrower_interval_than_the_scores_themselves() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 5, 400)
    ours = np.where(generator.random(400) < 0.8, labels, (labels + 1) % 5)
    theirs = ours.copy()
    theirs[:4] = (labels[:4] + 1) % 5
    metric = METRICS["accuracy"]
    one, other = score(metric, [prediction(ours, labels)]), score(metric, [prediction(theirs, labels)])
    difference, single = other.measure_difference(one).interval, other.measure().interval
    assert difference.high - difference.low < (single.high - single.low) / 2
    assert other.value - one.value in difference


def test_a_metric_that_needs_labels_says_so() -> None:
    with pytest.raises(InvalidMetric) as caught:
        score(METRICS["accuracy"], [prediction(np.array([1, 2]))])
    assert str(caught.value) == (
        "Cannot score with the metric 'accuracy': the samples have no labels. Add an array 'labels', "
        "or use a fidelity metric: agreement, cosine, relative-error."
    )


def test_outputs_that_are_not_finite_are_never_scored() -> None:
    broken = Prediction(outputs={"y": np.array([[np.nan]])}, reference={"y": np.array([[1.0]])})
    with pytest.raises(InvalidMetric, match="not finite"):
        score(METRICS["relative-error"], [broken])


def test_a_users_metric_that_has_no_score_is_not_taken_for_a_broken_model() -> None:
    def none(outputs: Tensors, labels: Array | None) -> Array:
        return np.full(len(outputs["y"]), np.nan)

    metric = user_metric("shop:none", none, higher_is_better=True)
    sound, broken = (Prediction(outputs={"y": np.array([[it]])}, reference={}) for it in (1.0, np.nan))
    with pytest.raises(InvalidMetric, match="it returned NaN or infinity for outputs that are finite"):
        score(metric, [sound])
    with pytest.raises(InvalidMetric, match="the model's outputs are not finite"):
        score(metric, [broken])


def test_a_users_rate_is_the_ratio_of_the_sums() -> None:
    def errors_and_words(outputs: Tensors, labels: Array | None) -> Array:
        return np.stack([outputs["errors"], outputs["words"]], axis=1)

    rate = user_metric("rate", errors_and_words, higher_is_better=False)
    parts = {"errors": np.array([1.0, 0.0]), "words": np.array([2.0, 8.0])}
    assert score(rate, [Prediction(outputs=parts, reference=parts)]).value == pytest.approx(0.1)


def test_a_users_metric_of_the_wrong_shape_is_an_error() -> None:
    metric = user_metric("mine", lambda outputs, labels: np.zeros(7), higher_is_better=True)
    with pytest.raises(InvalidMetric, match=r"it returned shape \[7\] for 2 samples"):
        score(metric, [prediction(np.array([1, 2]))])


def test_a_users_metric_that_raises_is_an_error_of_one_sentence() -> None:
    def broken(outputs: Tensors, labels: Array | None) -> Array:
        return outputs["no such output"]

    with pytest.raises(InvalidMetric) as caught:
        score(user_metric("mine", broken, higher_is_better=True), [prediction(np.array([1]))])
    assert str(caught.value) == "Cannot score with the metric 'mine': it raised KeyError: 'no such output'."
