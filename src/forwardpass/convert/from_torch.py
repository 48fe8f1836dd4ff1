"""From a PyTorch module to a proven ONNX file: one exporter after the other."""

from __future__ import annotations

from forwardpass.convert.axes import DynamicAxes, dynamic_axes
from forwardpass.convert.divergence import diverging_node
from forwardpass.convert.exporters import export, exporters_for
from forwardpass.convert.jobs import Job
from forwardpass.convert.opset import set_opset
from forwardpass.convert.parity import BATCH_SIZES, named_axis_calls, shape_grid
from forwardpass.convert.proving import Locate, Proven, inputs_are_batchable, proven_onnx, signature_of
from forwardpass.convert.torch_sources import example_call, fitting_samples
from forwardpass.core.samples import Samples
from forwardpass.errors import (
    ConversionError,
    DataDependentControlFlow,
    ExportFailed,
    OpsetUnavailable,
    UnsteadySource,
    UnsupportedOperator,
)
from forwardpass.runtimes.torch import TorchRuntime

__all__ = ["prove_torch"]


def prove_torch(runtime: TorchRuntime, job: Job) -> Proven:
    """Try one exporter after the other until a result passes the grid; then tell the most useful of their errors.

    Raises:
        ConversionError: it cannot be exported, or no result runs or answers the same at some shape.
        InvalidSamples: they do not fit the source.
        InvalidOption: an axis is named that no input has.
    """
    samples = fitting_samples(runtime, job.samples, job.name)
    axes = dynamic_axes(samples, job.axes)
    failures: list[ConversionError] = []
    for number, exporter in enumerate(exporters_for(runtime.module)):
        job.progress(f"converting with the {exporter} exporter", done=number / 3)
        try:
            return _export_with(exporter, runtime, samples, axes, job, notes=_notes(failures))
        except (DataDependentControlFlow, UnsteadySource):
            raise  # the older exporter would record the branch that the example takes, or one state of many
        except ConversionError as failure:
            failures.append(failure)
    raise _most_useful(failures)


def _export_with(
    exporter: str, runtime: TorchRuntime, samples: Samples, axes: DynamicAxes, job: Job, *, notes: tuple[str, ...]
) -> Proven:
    example = example_call(samples)
    program = export(runtime.module, example, axes, exporter=exporter, out=job.out, opset=job.opset, name=job.name)
    if job.opset is not None:
        set_opset(job.out, job.opset, name=job.name)
    job.progress("comparing the result with its source", done=0.8)
    batch_sizes = BATCH_SIZES if inputs_are_batchable(signature_of(job.out)) else (1,)
    calls = [
        *shape_grid(samples, batch_sizes=batch_sizes),
        *named_axis_calls(runtime, samples, job.axes, name=job.name),
    ]
    return proven_onnx(runtime, calls, exporter, job, notes=notes, locate=_locate_in_program(program, job))


def _locate_in_program(program: object, job: Job) -> Locate:
    return lambda call: diverging_node(program, job.out, call, tolerance=job.tolerance) if program is not None else ""


def _notes(failures: list[ConversionError]) -> tuple[str, ...]:
    return tuple(
        f"The newer exporter cannot write opset {failure.opset} ({failure.reason}); the older one can."
        if isinstance(failure, OpsetUnavailable)
        else f"The first exporter failed, the second one was used. {failure}"
        for failure in failures
    )


def _most_useful(failures: list[ConversionError]) -> ConversionError:
    """Prefer a named operator, then what is known of the shapes, then the first failure."""
    for failure in failures:
        if isinstance(failure, UnsupportedOperator | OpsetUnavailable):
            return failure
    return next((failure for failure in failures if isinstance(failure, ExportFailed) and failure.hint), failures[0])
