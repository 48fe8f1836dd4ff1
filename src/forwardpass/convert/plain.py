"""Sources of other libraries, turned into ONNX before anything else sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from forwardpass.convert.estimators import plain_estimator
from forwardpass.convert.keras import plain_keras
from forwardpass.convert.values import PlainModel
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples

__all__ = ["plain_model"]


@contextmanager
def plain_model(model: str, samples: Samples | None, *, trust_pickle: bool, progress: Progress) -> Iterator[PlainModel]:
    """Give the model, for as long as the block runs: an ONNX file for an estimator or one of Keras'.

    What is anything else stays what it is. See `plain_estimator` and `plain_keras` for what they raise.
    """
    with (
        plain_estimator(model, samples, trust_pickle=trust_pickle) as without_estimator,
        plain_keras(without_estimator.path, samples, progress=progress) as plain,
    ):
        yield without_estimator if without_estimator.parity else plain
