"""From a source to an ONNX file that is known to answer like it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forwardpass.convert.axes import DynamicAxes, dynamic_axes
from forwardpass.convert.parity import check_parity, shape_grid
from forwardpass.convert.values import Conversion, ParityCheck, TorchSource
from forwardpass.core.calls import random_calls
from forwardpass.core.protocols import Progress, Runtime
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Format, Precision, Recipe, Step, Variant
from forwardpass.errors import (
    ConversionError,
    DataDependentControlFlow,
    ExportFailed,
    InvalidModel,
    InvalidSamples,
    StorageFailed,
    UnsupportedOperator,
)
from forwardpass.runtimes import RuntimeOptions, open_runtime

if TYPE_CHECKING:
    from torch import nn

    from forwardpass.runtimes.torch import TorchRuntime

__all__ = ["convert_to_onnx"]

VARIANT_NAME = "onnx-fp32"
PARITY_TOLERANCE = 1e-4
"""Relative error between PyTorch and ONNX Runtime. Both compute in float32; other orders of summation give 1e-7 for
small models and up to 1e-5 for deep ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wishes:
    """What the caller may choose about an export."""

    opset: int | None
    axes: DynamicAxes | None
    tolerance: float


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
    where the samples differ, and where `axes` names them. An ONNX file is checked and copied.

    Raises:
        ConversionError: it cannot be exported, or the result does not run or answer the same at some shape.
        UsageError: the source, its weights or the samples cannot be used.
        StorageFailed: `out` cannot be written.
    """
    wishes = _Wishes(opset=opset, axes=axes, tolerance=tolerance)
    with _committed(out) as partial:
        if isinstance(source, Path):
            conversion = _copy_onnx(source, samples, partial, tolerance, progress)
        else:
            conversion = _convert_torch(source, samples, partial, wishes, progress)
    step = Step(operation="convert", parameters=(("exporter", conversion.exporter), ("opset", conversion.opset)))
    variant = replace(conversion.variant, location=str(out), recipe=Recipe(steps=(step,)))
    return replace(conversion, variant=variant)


def _convert_torch(
    source: TorchSource | nn.Module, samples: Samples | None, out: Path, wishes: _Wishes, progress: Progress
) -> Conversion:
    from forwardpass.runtimes.torch import left_as_found

    with left_as_found(None if isinstance(source, TorchSource) else source):
        name, runtime = _open_source(source)
        return _export_torch(runtime, name, samples, out, wishes, progress)


def _open_source(source: TorchSource | nn.Module) -> tuple[str, TorchRuntime]:
    from forwardpass.runtimes.torch import TorchRuntime

    if not isinstance(source, TorchSource):
        return type(source).__name__, TorchRuntime(source, options=RuntimeOptions())
    runtime = TorchRuntime.from_reference(source.reference, weights=source.weights, options=RuntimeOptions())
    return source.reference, runtime


def _export_torch(
    runtime: TorchRuntime, name: str, samples: Samples | None, out: Path, wishes: _Wishes, progress: Progress
) -> Conversion:
    """Try one exporter after the other until a result passes the grid; then tell the most useful of their errors."""
    from forwardpass.convert.exporters import EXPORTERS, export

    fitting = _fitting_samples(runtime, samples, name)
    axes = dynamic_axes(fitting, wishes.axes)
    failures: list[ConversionError] = []
    for number, exporter in enumerate(EXPORTERS):
        progress(f"converting with the {exporter} exporter", done=number / 3)
        try:
            export(runtime.module, _example(fitting), axes, exporter=exporter, out=out, opset=wishes.opset, name=name)
            progress("comparing the result with its source", done=0.8)
            return _checked(runtime, out, fitting, name, exporter, wishes.tolerance, notes=_notes(failures))
        except DataDependentControlFlow:
            raise  # the older exporter would record the branch that the example takes, and lose the other
        except ConversionError as failure:
            failures.append(failure)
    raise _most_useful(failures)


def _copy_onnx(source: Path, samples: Samples | None, out: Path, tolerance: float, progress: Progress) -> Conversion:
    from forwardpass.convert.onnx_files import copy_checked

    progress("checking the ONNX file", done=0.2)
    copy_checked(source, out)
    original = open_runtime(Format.ONNX, str(source), options=RuntimeOptions())
    for group in samples.groups if samples is not None else ():
        original.signature.validate(group.take(slice(0, 1)).inputs)
    if original.signature.is_batchable:
        notes: tuple[str, ...] = ()
    else:
        notes = (
            "The batch axis is fixed: this model runs one request at a time. Export it with a dynamic batch axis.",
        )
    return _checked(original, out, samples, str(source), "as-is", tolerance, notes=notes)


def _checked(
    source: Runtime,
    out: Path,
    samples: Samples | None,
    name: str,
    exporter: str,
    tolerance: float,
    *,
    notes: tuple[str, ...],
) -> Conversion:
    from forwardpass.convert.onnx_files import opset_of

    converted = open_runtime(Format.ONNX, str(out), options=RuntimeOptions())
    calls = _calls(converted, samples)
    parity: tuple[ParityCheck, ...] = check_parity(source, converted, calls, name=name, tolerance=tolerance)
    variant = Variant(name=VARIANT_NAME, format=Format.ONNX, precision=Precision.FP32, location=str(out))
    return Conversion(
        variant=variant,
        signature=converted.signature,
        exporter=exporter,
        opset=opset_of(out),
        parity=parity,
        tolerance=tolerance,
        notes=notes,
    )


def _calls(converted: Runtime, samples: Samples | None) -> Iterator[dict[str, Array]]:
    if samples is not None:
        return shape_grid(samples, is_batchable=converted.signature.is_batchable)
    made_up = random_calls(converted.signature, (1, 2, 3, 5, 8), {})
    return (call for calls in made_up.values() for call in calls)


def _fitting_samples(runtime: TorchRuntime, samples: Samples | None, name: str) -> Samples:
    """Check the names of the samples against `forward`, in the order of whose arguments they are given."""
    from forwardpass.runtimes.torch import input_names

    if samples is None:
        hint = "Give some with --data samples.npz, an array named after each argument of forward()."
        raise InvalidSamples(origin=name, reason="a PyTorch source cannot be traced without inputs", hint=hint)
    arguments = input_names(runtime.module)
    unknown = [tensor for tensor in samples.groups[0].inputs if tensor not in arguments]
    if unknown:
        raise InvalidSamples(
            origin=name,
            reason=f"they have an array '{unknown[0]}', but forward() takes {', '.join(arguments)}",
            hint="Name the arrays after the arguments of forward(); 'labels' is set apart.",
        )
    _check_runs(runtime, _example(samples), name)
    return samples


def _check_runs(runtime: TorchRuntime, example: dict[str, Array], name: str) -> None:
    """Run two samples through the source: what fails here is about the samples, not about the conversion."""
    try:
        runtime.run(example)
    except InvalidModel:
        raise
    except Exception as error:  # whatever the user's forward() raises
        given = ", ".join(f"{tensor} {array.dtype}{list(array.shape)}" for tensor, array in example.items())
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        reason = f"forward() raised {type(error).__name__} for {given}: {first[:200]}"
        hint = "Give the arrays the dtypes and shapes that forward() expects."
        raise InvalidSamples(origin=name, reason=reason, hint=hint) from error


def _example(samples: Samples) -> dict[str, Array]:
    """Return two rows of a middle shape: a batch of one, or an axis of one, would be taken for a constant."""
    ordered = sorted(samples.groups, key=lambda group: sum(array[0].size for array in group.inputs.values()))
    group = ordered[len(ordered) // 2]
    rows = np.arange(2) % len(group)
    return {name: np.ascontiguousarray(array[rows]) for name, array in group.inputs.items()}


def _notes(failures: list[ConversionError]) -> tuple[str, ...]:
    return tuple(f"The first exporter failed, the second one was used. {failure}" for failure in failures)


def _most_useful(failures: list[ConversionError]) -> ConversionError:
    """Prefer a named operator, then what is known of the shapes, then the first failure."""
    for failure in failures:
        if isinstance(failure, UnsupportedOperator):
            return failure
    return next((failure for failure in failures if isinstance(failure, ExportFailed) and failure.hint), failures[0])


@contextmanager
def _committed(out: Path) -> Iterator[Path]:
    """Give a path to write to, and move it to `out` if the block succeeds; otherwise nothing is left."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}.onnx")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(out)
    except OSError as error:
        if type(error).__module__ != "builtins":
            raise
        raise StorageFailed(path=str(out), reason=error.strerror or str(error)) from error
    finally:
        for leftover in out.parent.glob(f"{partial.name}*"):
            leftover.unlink()
