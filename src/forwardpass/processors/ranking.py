"""From the scores of a classifier to its best labels."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from forwardpass.core.tensors import Array

__all__ = ["Activation", "rank"]


class Activation(StrEnum):
    """What makes probabilities of a model's scores."""

    NONE = "none"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


def rank(scores: Array, labels: Sequence[str], *, top_k: int, activation: Activation) -> list[dict[str, object]]:
    """Return the `top_k` best classes of one row of scores, the best first; the first of equals comes first.

    Without labels a class has only its index.

    >>> rank(np.array([0.5, 2.0, 1.0]), ["cat", "dog", "owl"], top_k=2, activation=Activation.NONE)
    [{'index': 1, 'score': 2.0, 'label': 'dog'}, {'index': 2, 'score': 1.0, 'label': 'owl'}]
    """
    values = _ACTIVATIONS[activation](scores.astype(np.float64).ravel())
    best = np.argsort(-values, kind="stable")[:top_k]
    return [
        {"index": int(index), "score": float(values[index])} | ({"label": labels[index]} if index < len(labels) else {})
        for index in best
    ]


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max())
    total: Array = powers / powers.sum()
    return total


def _sigmoid(scores: Array) -> Array:
    """Return 1 / (1 + exp(-x)) in the form that does not overflow."""
    halves: Array = 0.5 * (1.0 + np.tanh(0.5 * scores))
    return halves


_ACTIVATIONS = {Activation.NONE: lambda scores: scores, Activation.SOFTMAX: _softmax, Activation.SIGMOID: _sigmoid}
