"""Running variants over samples and scoring what they answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from forwardpass.core.metrics import METRICS, Metric, Prediction, Scores, score
from forwardpass.core.protocols import Runtime
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array, concatenate_rows
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.errors import InvalidMetric
from forwardpass.runtimes import RuntimeOptions, open_runtime
from forwardpass.runtimes.options import num_available_cores

__all__ = ["Answers", "answer", "score_answers", "score_error"]

MAX_ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """The outputs for every group of a split, in order."""

    groups: tuple[dict[str, Array], ...]


def answer(variant: Variant, samples: Samples) -> Answers:
    """Run a variant over all samples.

    A variant that quantises call by call runs one row at a time: that is how it will be served, and in a batch its
    rows would change each other's answers. So does one whose batch is fixed at 1.
    """
    options = RuntimeOptions(num_threads=num_available_cores())
    with _left_as_found(variant.format):
        runtime = open_runtime(variant.format, variant.location, weights=variant.weights, options=options)
        max_rows = MAX_ROWS if _takes_many_rows(variant, runtime) else 1
        return Answers(groups=tuple(_run_group(runtime, group, max_rows) for group in samples.groups))


def _takes_many_rows(variant: Variant, runtime: Runtime) -> bool:
    if variant.format is Format.TORCH:
        return True  # a module has no signature before it ran; its conversion was checked at many batch sizes
    # torchao gives every row a scale of its own, ONNX Runtime one to the whole batch.
    shares_scales = variant.precision is Precision.INT8_DYNAMIC and variant.format is Format.ONNX
    return runtime.signature.is_batchable and not shares_scales


def _left_as_found(format: Format) -> AbstractContextManager[None]:  # noqa: A002
    """Protect the settings of the user's process, where the runtime shares them with everybody."""
    if format not in (Format.TORCH, Format.PT2, Format.AOTINDUCTOR, Format.TORCHSCRIPT):
        return nullcontext()
    from forwardpass.runtimes.torch import left_as_found

    return left_as_found()


def score_answers(metric: Metric, answers: Answers, reference: Answers, samples: Samples) -> Scores:
    """Score answers against the labels of the samples, or against the source's answers.

    Raises:
        InvalidMetric: the metric does not fit the outputs or the labels, or an output is not finite or has no row for
            each sample.
    """
    for group, outputs in zip(samples.groups, answers.groups, strict=True):
        _check_rows(metric, outputs, num_rows=len(group))
    return score(metric, list(_predictions(answers, reference, samples)))


def score_error(answers: Answers, reference: Answers, samples: Samples) -> Scores:
    """Return the relative error of the outputs against the source's."""
    return score_answers(METRICS["relative-error"], answers, reference, samples)


def _predictions(answers: Answers, reference: Answers, samples: Samples) -> Iterator[Prediction]:
    for outputs, theirs, group in zip(answers.groups, reference.groups, samples.groups, strict=True):
        yield Prediction(outputs=outputs, reference=_renamed(theirs, outputs), labels=group.labels)


def _renamed(reference: dict[str, Array], outputs: dict[str, Array]) -> dict[str, Array]:
    """Give the source's outputs the names of the variant's: the order is the same, a bare tensor has no name."""
    return dict(zip(outputs, reference.values(), strict=True))


def _run_group(runtime: Runtime, group: SampleGroup, max_rows: int) -> dict[str, Array]:
    parts = [runtime.run(group.take(slice(start, start + max_rows)).inputs) for start in range(0, len(group), max_rows)]
    return concatenate_rows([{name: np.atleast_1d(array) for name, array in part.items()} for part in parts])


def _check_rows(metric: Metric, outputs: dict[str, Array], *, num_rows: int) -> None:
    """Refuse what no metric can take: a number of values that the inputs decide, or one value for a whole batch."""
    for name, array in outputs.items():
        if array.size % num_rows or not array.size:
            raise InvalidMetric(
                metric=metric.name,
                reason=f"output '{name}' has the shape {list(array.shape)} for {num_rows} samples: none of its rows "
                "belongs to one of them",
                hint="Return one row for each row of the inputs, such as scores with a mask, and select behind the "
                "model.",
            )
