"""Does a converted model answer like its source, at every shape that it claims to take?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from forwardpass.convert.values import ParityCheck
from forwardpass.core.protocols import Runtime
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array, Tensors
from forwardpass.errors import ExportFailed, ParityFailed
from forwardpass.predict import relative_error

__all__ = ["check_parity", "shape_grid"]

BATCH_SIZES = (1, 2, 3, 5, 8)
"""1 and 2 find a frozen batch, odd sizes find kernels that only fit even ones."""
MAX_SHAPES = 4


def shape_grid(samples: Samples, *, is_batchable: bool = True) -> Iterator[dict[str, Array]]:
    """Yield calls over the batch sizes and the smallest, the largest and some middle shapes of the samples."""
    for group in _spread(samples):
        for num_rows in BATCH_SIZES if is_batchable else (1,):
            rows = np.arange(num_rows) % len(group)
            yield {name: np.ascontiguousarray(array[rows]) for name, array in group.inputs.items()}


def check_parity(
    source: Runtime, converted: Runtime, calls: Iterator[dict[str, Array]], *, name: str, tolerance: float
) -> tuple[ParityCheck, ...]:
    """Run both on every call and compare all outputs.

    Raises:
        ExportFailed: the converted model does not run at one of the shapes, or has other outputs.
        ParityFailed: an output is further off than `tolerance`.
    """
    return tuple(_compare(source, converted, call, name, tolerance) for call in calls)


def _compare(source: Runtime, converted: Runtime, call: Tensors, name: str, tolerance: float) -> ParityCheck:
    shapes = ", ".join(f"{tensor} {list(array.shape)}" for tensor, array in call.items())
    expected = _run(source, call, name, f"the source itself does not run with {shapes}")
    answers = _run(converted, call, name, f"the result runs at the shape it was traced with, but not with {shapes}")
    if len(answers) != len(expected):
        raise ExportFailed(source=name, reason=f"the result has {len(answers)} outputs, the source {len(expected)}")
    worst, num_flips = 0.0, 0
    for (output, reference), answer in zip(expected.items(), answers.values(), strict=True):
        difference = relative_error(answer, reference)
        if not difference <= tolerance:
            raise ParityFailed(output=output, shape=shapes, difference=difference, tolerance=tolerance)
        worst = max(worst, difference)
        num_flips += _count_flips(answer, reference)
    return ParityCheck(shapes=shapes, difference=worst, num_rows=len(next(iter(call.values()))), num_flips=num_flips)


def _run(runtime: Runtime, call: Tensors, name: str, failure: str) -> dict[str, Array]:
    try:
        return runtime.run(call)
    except Exception as error:  # the runtimes' own classes share no base but this one
        hint = "A size is a constant in forward(): use tensor.shape there."
        raise ExportFailed(source=name, reason=failure, hint=hint) from error


def _count_flips(answer: Array, reference: Array) -> int:
    if reference.ndim < 2 or reference.shape[-1] < 2:
        return 0
    return int((answer.argmax(axis=-1) != reference.argmax(axis=-1)).sum())


def _spread(samples: Samples) -> list[SampleGroup]:
    """Choose groups from the smallest to the largest shape."""
    ordered = sorted(samples.groups, key=lambda group: sum(array[0].size for array in group.inputs.values()))
    if len(ordered) <= MAX_SHAPES:
        return ordered
    return [ordered[round(at)] for at in np.linspace(0, len(ordered) - 1, MAX_SHAPES)]
