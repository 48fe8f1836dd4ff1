"""The proof of a conversion: what was written runs, answers like its source, and declares the shapes that it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from forwardpass.convert.jobs import Job
from forwardpass.convert.parity import CONSTANT_SIZE, Comparison, check_parity
from forwardpass.convert.shapes import declare_outputs, true_outputs
from forwardpass.convert.steadiness import check_steady
from forwardpass.convert.values import Conversion
from forwardpass.core.protocols import Runtime
from forwardpass.core.tensors import BATCH_AXIS, Array, Signature
from forwardpass.core.variants import Format, Precision, Variant
from forwardpass.errors import ParityFailed
from forwardpass.runtimes import RuntimeOptions, open_runtime
from forwardpass.runtimes.options import num_available_cores

__all__ = [
    "PARITY_TOLERANCE",
    "Locate",
    "Proven",
    "compared",
    "inputs_are_batchable",
    "nowhere",
    "proven_onnx",
    "signature_of",
]

Locate: TypeAlias = Callable[[dict[str, Array]], str]
"""Names the first node that differs for a call, or nothing."""

VARIANT_NAME = "onnx-fp32"
PARITY_TOLERANCE = 1e-4
"""Relative error between PyTorch and ONNX Runtime. Both compute in float32; other orders of summation give 1e-7 for
small models and up to 1e-5 for deep ones."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proven:
    """A conversion that passed, with the source as it was run and the calls that both were given."""

    conversion: Conversion
    source: Runtime
    calls: tuple[dict[str, Array], ...]


def nowhere(call: dict[str, Array]) -> str:
    """Name no node."""
    del call
    return ""


def compared(
    source: Runtime,
    converted: Runtime,
    calls: Iterable[dict[str, Array]],
    job: Job,
    *,
    locate: Locate,
    hint: str = CONSTANT_SIZE,
) -> list[Comparison]:
    """Hold a model against its source call by call.

    Raises:
        ExportFailed: it does not run at one of the shapes, or has other outputs.
        ParityFailed: an output is further off than the job allows; with the first node that differs, if it is found.
        UnsteadySource: so is what the source itself answers when it is asked again.
    """
    comparisons: list[Comparison] = []
    for call in calls:
        try:
            comparisons += check_parity(source, converted, [call], name=job.name, tolerance=job.tolerance, hint=hint)
        except ParityFailed as failure:
            check_steady(source, call, name=job.name, tolerance=job.tolerance)
            job.progress("looking for the first node that differs", done=0.95)
            with suppress(Exception):  # the failure is known already; where it begins is a help, not the answer
                failure = failure.at(locate(call))
            raise failure from None
    return comparisons


def proven_onnx(
    source: Runtime,
    calls: Iterable[dict[str, Array]],
    exporter: str,
    job: Job,
    *,
    notes: tuple[str, ...] = (),
    locate: Locate = nowhere,
) -> Proven:
    """Compare the file at `job.out` with its source call by call, and put right what it declares about its outputs.

    Raises:
        ConversionError: it does not run at one of the shapes, or answers differently; see `compared`.
    """
    from forwardpass.convert.onnx_files import read_opset

    calls = tuple(calls)
    converted = open_runtime(Format.ONNX, str(job.out), options=RuntimeOptions(num_threads=num_available_cores()))
    comparisons = compared(source, converted, calls, job, locate=locate)
    corrected = true_outputs(converted.signature, [comparison.shapes for comparison in comparisons])
    if corrected:
        declare_outputs(job.out, corrected)
    conversion = Conversion(
        variant=Variant(name=VARIANT_NAME, format=Format.ONNX, precision=Precision.FP32, location=str(job.out)),
        signature=signature_of(job.out) if corrected else converted.signature,
        exporter=exporter,
        opset=read_opset(job.out),
        parity=tuple(comparison.check for comparison in comparisons),
        tolerance=job.tolerance,
        notes=(*notes, *_notes_on_shapes(source, calls[-1], comparisons[-1], converted.signature)),
    )
    return Proven(conversion=conversion, source=source, calls=calls)


def _notes_on_shapes(
    source: Runtime, call: dict[str, Array], comparison: Comparison, signature: Signature
) -> Iterator[str]:
    """Say which outputs have another shape where only the values of the inputs are others."""
    explained = set(signature.dynamic_axes)
    if all(isinstance(size, int) or size in explained for spec in signature.outputs for size in spec.shape):
        return
    shapes = comparison.shapes.outputs
    with suppress(Exception):  # values that the source does not take: then nothing is said
        others = source.run({name: np.ascontiguousarray(np.flip(array)) for name, array in call.items()})
        for (name, shape), other in zip(shapes.items(), others.values(), strict=True):
            if shape != other.shape:
                yield (
                    f"The shape of output '{name}' depends on the values of the inputs ({list(shape)} or "
                    f"{list(other.shape)} for the same shapes): it is served one request at a time, and cannot be "
                    "scored by sample. Return one row for each row of the inputs, such as scores with a mask, and "
                    "select behind the model."
                )


def signature_of(path: Path) -> Signature:
    """Return what an ONNX file declares of its inputs and outputs."""
    return open_runtime(Format.ONNX, str(path), options=RuntimeOptions()).signature


def inputs_are_batchable(signature: Signature) -> bool:
    """Tell whether the inputs take any number of rows; what the outputs declare is still to be checked."""
    return all(spec.shape[:1] == (BATCH_AXIS,) for spec in signature.inputs)
