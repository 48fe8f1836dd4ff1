"""From any source to an ONNX file that is known to answer like it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forwardpass.convert.axes import DynamicAxes
from forwardpass.convert.jobs import Job, committed, source_name, with_recipe
from forwardpass.convert.proving import PARITY_TOLERANCE, Proven
from forwardpass.convert.torch_sources import open_source, source_left_as_found
from forwardpass.convert.values import Conversion, TorchSource
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples
from forwardpass.errors import InvalidOption

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_axes_can_be_named", "check_opset", "convert_to_onnx", "prove_onnx"]


def convert_to_onnx(
    source: TorchSource | nn.Module | Path,
    samples: Samples | None,
    *,
    out: Path,
    opset: int | None = None,
    axes: DynamicAxes | None = None,
    tolerance: float = PARITY_TOLERANCE,
    progress: Progress,
) -> Conversion:
    """Write `source` as ONNX to `out`, if it answers like the source over a grid of shapes.

    A PyTorch module is exported by the dynamo exporter, or where that fails by the older one; its axes are dynamic
    where the samples differ, and where `axes` names them. An ONNX file is checked and copied; a batch that it fixes is
    made dynamic if it then still answers the same. Axes of outputs that are declared wrongly are put right.

    Raises:
        ConversionError: it cannot be exported, or the result does not run or answer the same at some shape.
        UsageError: the source, its weights or the samples cannot be used.
        StorageFailed: `out` cannot be written.
    """
    check_axes_can_be_named(source, axes or {})
    check_opset(opset)
    with committed(out) as partial, source_left_as_found(source):
        job = Job(
            name=source_name(source),
            samples=samples,
            out=partial,
            opset=opset,
            axes=axes or {},
            tolerance=tolerance,
            progress=progress,
        )
        conversion = prove_onnx(source, job).conversion
    return with_recipe(conversion, out)


def prove_onnx(source: TorchSource | nn.Module | Path, job: Job) -> Proven:
    """Write `source` as ONNX to `job.out`, and return the proof with what it was held against.

    Raises:
        ConversionError: it cannot be exported, or the result does not run or answer the same at some shape.
        UsageError: the source, its weights or the samples cannot be used.
    """
    if isinstance(source, Path):
        from forwardpass.convert.from_onnx import prove_file

        return prove_file(source, job)
    runtime = open_source(source)  # first: where torch is missing, it says so in a sentence
    from forwardpass.convert.from_torch import prove_torch

    return prove_torch(runtime, job)


def check_axes_can_be_named(source: TorchSource | nn.Module | Path, axes: DynamicAxes) -> None:
    """Refuse names for the axes of a file, which would be passed over.

    Raises:
        InvalidOption: the source is a file.
    """
    if axes and isinstance(source, Path):
        raise InvalidOption(
            option="--dynamic",
            value=next(iter(axes)),
            expected="a PyTorch source: which axes of an ONNX file are dynamic is written in it",
        )


def check_opset(opset: int | None) -> None:
    """Refuse a version of the operators that the installed libraries do not know.

    Raises:
        InvalidOption: they do not know it.
    """
    if opset is not None:
        from forwardpass.convert.opset import check_known

        check_known(opset)
