"""Does a converted model answer like its source, at every shape that it claims to take?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from forwardpass.convert.axes import DynamicAxes
from forwardpass.convert.shapes import SeenShapes
from forwardpass.convert.values import OutputCheck, ParityCheck
from forwardpass.core.protocols import Runtime
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array, Tensors
from forwardpass.errors import ExportFailed, ParityFailed
from forwardpass.predict import relative_error

__all__ = ["BATCH_SIZES", "CONSTANT_SIZE", "Comparison", "check_parity", "named_axis_calls", "shape_grid"]

BATCH_SIZES = (1, 2, 3, 5, 8)
"""1 and 2 find a frozen batch, odd sizes find kernels that only fit even ones."""
CONSTANT_SIZE = "A size is a constant in forward(): use tensor.shape there."
MAX_SHAPES = 4
MAX_OTHER_SIZES = 2
"""At how many other sizes an axis is run that the user has named and the samples never vary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One call to both models: how far apart they are, and the shapes that were seen."""

    check: ParityCheck
    shapes: SeenShapes


def shape_grid(samples: Samples, *, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> Iterator[dict[str, Array]]:
    """Yield calls over the batch sizes and the smallest, the largest and some middle shapes of the samples."""
    for group in _spread(samples):
        for num_rows in batch_sizes:
            rows = np.arange(num_rows) % len(group)
            yield {name: np.ascontiguousarray(array[rows]) for name, array in group.inputs.items()}


def named_axis_calls(source: Runtime, samples: Samples, named: DynamicAxes, *, name: str) -> Iterator[dict[str, Array]]:
    """Yield calls at sizes that the samples do not have, for every axis that the user named and they never vary.

    The samples are cut, or repeated along the axis. Which sizes are possible is the source's to say: a network may take
    multiples of 32 only.

    Raises:
        ExportFailed: the source runs at no other size, so the axis is not dynamic.
    """
    for label in dict.fromkeys(label for axes in named.values() for label in axes.values()):
        places = [(tensor, axis) for tensor, axes in named.items() for axis, other in axes.items() if other == label]
        if any(len({group.inputs[tensor].shape[axis] for group in samples.groups}) > 1 for tensor, axis in places):
            continue
        yield from _other_sizes(source, samples, places, label=label, name=name)


def _other_sizes(
    source: Runtime, samples: Samples, places: list[tuple[str, int]], *, label: str, name: str
) -> Iterator[dict[str, Array]]:
    group = samples.groups[0]
    call = {tensor: array[np.arange(2) % len(group)] for tensor, array in group.inputs.items()}
    tensor, axis = places[0]
    size = call[tensor].shape[axis]
    num_found = 0
    for other in dict.fromkeys((size + 1, 2 * size, size // 2, 3 * size)):
        resized = dict(call)
        for tensor, axis in places:
            resized[tensor] = np.take(call[tensor], np.arange(other) % size, axis=axis)
        if other in (0, size) or num_found == MAX_OTHER_SIZES or not _runs(source, resized):
            continue
        num_found += 1
        yield resized
    if not num_found:
        reason = f"the axis '{label}' is named dynamic, but the source itself runs at size {size} only"
        raise ExportFailed(source=name, reason=reason, hint="Do not name it, or use tensor.shape in forward().")


def _runs(source: Runtime, call: Tensors) -> bool:
    try:
        source.run(call)
    except Exception:  # whatever the user's forward() raises for a size that it does not take
        return False
    return True


def check_parity(
    source: Runtime,
    converted: Runtime,
    calls: Iterable[dict[str, Array]],
    *,
    name: str,
    tolerance: float,
    hint: str = CONSTANT_SIZE,
) -> tuple[Comparison, ...]:
    """Run both on every call and compare all outputs; `hint` is what a result that does not run may be due to.

    Raises:
        ExportFailed: the converted model does not run at one of the shapes, or has other outputs.
        ParityFailed: an output is further off than `tolerance`.
    """
    return tuple(_compare(source, converted, call, name, tolerance, hint) for call in calls)


def _compare(source: Runtime, converted: Runtime, call: Tensors, name: str, tolerance: float, hint: str) -> Comparison:
    shapes = ", ".join(f"{tensor} {list(array.shape)}" for tensor, array in call.items())
    expected = _run(source, call, name, f"the source itself does not run with {shapes}", hint)
    answers = _run(
        converted, call, name, f"the result runs at the shape it was traced with, but not with {shapes}", hint
    )
    if len(answers) != len(expected):
        raise ExportFailed(source=name, reason=f"the result has {len(answers)} outputs, the source {len(expected)}")
    if set(answers) == set(expected):
        answers = {output: answers[output] for output in expected}  # LiteRT sorts them by name
    checks = []
    for (output, reference), answer in zip(expected.items(), answers.values(), strict=True):
        difference = relative_error(answer, reference)
        if not difference <= tolerance:
            raise ParityFailed(output=output, shape=shapes, difference=difference, tolerance=tolerance)
        checks.append(
            OutputCheck(
                output=output,
                difference=difference,
                cosine=_cosine(answer, reference),
                num_flips=_count_flips(answer, reference),
            )
        )
    return Comparison(
        check=ParityCheck(
            shapes=shapes,
            difference=max((check.difference for check in checks), default=0.0),
            num_rows=len(next(iter(call.values()))),
            num_flips=sum(check.num_flips for check in checks),
            outputs=tuple(checks),
        ),
        shapes=SeenShapes(
            inputs={tensor: array.shape for tensor, array in call.items()},
            outputs={output: array.shape for output, array in answers.items()},
        ),
    )


def _run(runtime: Runtime, call: Tensors, name: str, failure: str, hint: str) -> dict[str, Array]:
    try:
        return runtime.run(call)
    except Exception as error:  # the runtimes' own classes share no base but this one
        raise ExportFailed(source=name, reason=failure, hint=hint) from error


def _cosine(answer: Array, reference: Array) -> float:
    """Return the cosine between two outputs, 1 where both are zero; infinite values are left out."""
    ours, theirs = answer.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    finite = np.isfinite(ours) & np.isfinite(theirs)
    ours, theirs = ours[finite], theirs[finite]
    norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(ours @ theirs) / norms if norms else float(np.array_equal(ours, theirs))


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
