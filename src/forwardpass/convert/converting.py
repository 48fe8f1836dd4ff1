"""From a source to an ONNX file that is known to answer like it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from forwardpass.convert.axes import DynamicAxes, dynamic_axes
from forwardpass.convert.parity import (
    BATCH_SIZES,
    CONSTANT_SIZE,
    Comparison,
    check_parity,
    named_axis_calls,
    shape_grid,
)
from forwardpass.convert.shapes import declare_outputs, true_outputs
from forwardpass.convert.steadiness import check_steady
from forwardpass.convert.values import AS_IS, Conversion, TorchSource
from forwardpass.core.calls import random_calls
from forwardpass.core.protocols import Progress, Runtime
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import BATCH_AXIS, Array, Signature
from forwardpass.core.variants import Format, Precision, Recipe, Step, Variant
from forwardpass.errors import (
    ConversionError,
    DataDependentControlFlow,
    ExportFailed,
    InvalidModel,
    InvalidOption,
    InvalidSamples,
    OpsetUnavailable,
    ParityFailed,
    StorageFailed,
    UnsteadySource,
    UnsupportedOperator,
)
from forwardpass.predict import InFixedBatches
from forwardpass.runtimes import RuntimeOptions, companions, format_of, open_runtime

if TYPE_CHECKING:
    from torch import nn

    from forwardpass.runtimes.torch import TorchRuntime

__all__ = [
    "PARITY_TOLERANCE",
    "Job",
    "Locate",
    "Proven",
    "check_axes_can_be_named",
    "committed",
    "compared",
    "convert_to_onnx",
    "example_call",
    "fitting_samples",
    "inputs_are_batchable",
    "nowhere",
    "open_source",
    "prove_onnx",
    "source_left_as_found",
    "source_name",
    "with_recipe",
]

Locate: TypeAlias = Callable[[dict[str, Array]], str]
"""Names the first node that differs for a call, or nothing."""

VARIANT_NAME = "onnx-fp32"
PARITY_TOLERANCE = 1e-4
"""Relative error between PyTorch and ONNX Runtime. Both compute in float32; other orders of summation give 1e-7 for
small models and up to 1e-5 for deep ones."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One conversion: what the source is called, what it is run with, where it goes and what the caller may choose."""

    name: str
    samples: Samples | None
    out: Path
    opset: int | None
    axes: DynamicAxes
    tolerance: float
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proven:
    """A conversion that passed, with the source as it was run and the calls that both were given."""

    conversion: Conversion
    source: Runtime
    calls: tuple[dict[str, Array], ...]


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


def prove_onnx(source: TorchSource | nn.Module | Path, job: Job) -> Proven:
    """Write `source` as ONNX to `job.out`, and return the proof with what it was held against.

    Raises:
        ConversionError: it cannot be exported, or the result does not run or answer the same at some shape.
        UsageError: the source, its weights or the samples cannot be used.
    """
    return _convert_file(source, job) if isinstance(source, Path) else _export_torch(open_source(source), job)


def with_recipe(conversion: Conversion, out: Path) -> Conversion:
    """Return the conversion of a file that has come to its place, with the step that made it."""
    parameters: list[tuple[str, str | int]] = [("exporter", conversion.exporter)]
    if conversion.variant.format is not Format.ONNX:
        parameters.append(("to", conversion.variant.format.value))
    if conversion.opset is not None:
        parameters.append(("opset", conversion.opset))
    step = Step(operation="convert", parameters=tuple(parameters))
    variant = replace(conversion.variant, location=str(out), recipe=Recipe(steps=(step,)))
    return replace(conversion, variant=variant)


def source_name(source: TorchSource | nn.Module | Path) -> str:
    """Return what a source is called in sentences."""
    if isinstance(source, Path):
        return str(source)
    return source.reference if isinstance(source, TorchSource) else type(source).__name__


# --- PyTorch -------------------------------------------------------------------------------------------------------


@contextmanager
def source_left_as_found(source: TorchSource | nn.Module | Path) -> Iterator[None]:
    """Afterwards, give torch its threads back, and a module of the user's its mode."""
    if isinstance(source, Path):
        yield
        return
    from forwardpass.runtimes.torch import left_as_found

    with left_as_found(None if isinstance(source, TorchSource) else source):
        yield


def open_source(source: TorchSource | nn.Module) -> TorchRuntime:
    """Load a PyTorch source."""
    from forwardpass.runtimes.torch import TorchRuntime

    if not isinstance(source, TorchSource):
        return TorchRuntime(source, options=RuntimeOptions())
    return TorchRuntime.from_reference(source.reference, weights=source.weights, options=RuntimeOptions())


def _export_torch(runtime: TorchRuntime, job: Job) -> Proven:
    """Try one exporter after the other until a result passes the grid; then tell the most useful of their errors."""
    from forwardpass.convert.exporters import EXPORTERS

    samples = fitting_samples(runtime, job.samples, job.name)
    axes = dynamic_axes(samples, job.axes)
    failures: list[ConversionError] = []
    for number, exporter in enumerate(EXPORTERS):
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
    from forwardpass.convert.exporters import export

    example = example_call(samples)
    program = export(runtime.module, example, axes, exporter=exporter, out=job.out, opset=job.opset, name=job.name)
    _set_opset(job)
    job.progress("comparing the result with its source", done=0.8)
    batch_sizes = BATCH_SIZES if inputs_are_batchable(_signature_of(job.out)) else (1,)
    calls = [
        *shape_grid(samples, batch_sizes=batch_sizes),
        *named_axis_calls(runtime, samples, job.axes, name=job.name),
    ]
    return _checked(runtime, calls, exporter, job, notes=notes, locate=_locate_in_program(program, job))


def _locate_in_program(program: object, job: Job) -> Locate:
    from forwardpass.convert.divergence import diverging_node

    return lambda call: diverging_node(program, job.out, call, tolerance=job.tolerance) if program is not None else ""


def fitting_samples(runtime: TorchRuntime, samples: Samples | None, name: str) -> Samples:
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
    _check_runs(runtime, example_call(samples), name)
    return samples


def _check_runs(runtime: TorchRuntime, example: dict[str, Array], name: str) -> None:
    """Run two samples through the source: what fails here is about the samples, not about the conversion."""
    try:
        runtime.run(example)
    except InvalidModel:
        raise
    except Exception as error:  # whatever the user's forward() raises
        from forwardpass.convert.exporters import user_line

        given = ", ".join(f"{tensor} {array.dtype}{list(array.shape)}" for tensor, array in example.items())
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        line = user_line(error)
        reason = f"forward() raised {type(error).__name__}{f' at {line}' if line else ''} for {given}: {first[:200]}"
        if _runs_one_row(runtime, example):
            raise ExportFailed(source=name, reason=f"its batch is frozen at 1: {reason}", hint=CONSTANT_SIZE) from error
        hint = "Give the arrays the dtypes and shapes that forward() expects."
        raise InvalidSamples(origin=name, reason=reason, hint=hint) from error


def _runs_one_row(runtime: TorchRuntime, example: dict[str, Array]) -> bool:
    with suppress(Exception):  # the call of more rows has failed already; this tells only why
        runtime.run({tensor: array[:1] for tensor, array in example.items()})
        return True
    return False


def example_call(samples: Samples) -> dict[str, Array]:
    """Return two rows of a middle shape: a batch of one, or an axis of one, would be taken for a constant."""
    ordered = sorted(samples.groups, key=lambda group: sum(array[0].size for array in group.inputs.values()))
    group = ordered[len(ordered) // 2]
    rows = np.arange(2) % len(group)
    return {name: np.ascontiguousarray(array[rows]) for name, array in group.inputs.items()}


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


# --- ONNX files ----------------------------------------------------------------------------------------------------


def _convert_file(source: Path, job: Job) -> Proven:
    from forwardpass.convert.batches import fixed_batch
    from forwardpass.convert.onnx_files import write_checked

    job.progress("checking the ONNX file", done=0.2)
    write_checked(source, job.out)
    _set_opset(job)
    original = open_runtime(Format.ONNX, str(source), options=RuntimeOptions())
    locate = _locate_in_file(source, job)
    num_rows = fixed_batch(original.signature)
    if num_rows is not None:
        return _with_fixed_batch(original, num_rows, job)
    for group in job.samples.groups if job.samples is not None else ():
        original.signature.validate(_rows(group, 1))
    if inputs_are_batchable(original.signature):
        return _checked(original, _calls(job.samples, original.signature, BATCH_SIZES), AS_IS, job, locate=locate)
    note = "The inputs have no batch axis in common: this model runs one request at a time."
    return _checked(original, _calls(job.samples, original.signature, (1,)), AS_IS, job, notes=(note,), locate=locate)


def _locate_in_file(source: Path, job: Job) -> Locate:
    from forwardpass.convert.locating import diverging_onnx_node

    return lambda call: diverging_onnx_node(source, job.out, Format.ONNX, call, tolerance=job.tolerance)


def _with_fixed_batch(original: Runtime, num_rows: int, job: Job) -> Proven:
    """Make the batch dynamic if the model then answers like the original; otherwise keep it as it is, and say so."""
    from forwardpass.convert.batches import free_batch

    for group in job.samples.groups if job.samples is not None else ():
        original.signature.validate(_rows(group, num_rows))
    kept = job.out.read_bytes()
    free_batch(job.out, num_rows)
    try:
        calls = _calls(job.samples, _signature_of(job.out), BATCH_SIZES)
        note = f"The batch was fixed at {num_rows}. It is dynamic now, and every row answers as it did."
        return _checked(InFixedBatches(original, num_rows=num_rows), calls, AS_IS, job, notes=(note,))
    except (ConversionError, InvalidModel):
        job.out.write_bytes(kept)
    note = (
        f"The batch is fixed at {num_rows}: this model runs that many rows a call, since the number is built into it. "
        "Export it with a dynamic batch axis."
    )
    return _checked(original, _calls(job.samples, original.signature, (num_rows,)), AS_IS, job, notes=(note,))


# --- both ----------------------------------------------------------------------------------------------------------


def check_opset(opset: int | None) -> None:
    """Refuse a version of the operators that the installed libraries do not know.

    Raises:
        InvalidOption: they do not know it.
    """
    if opset is not None:
        from forwardpass.convert.opset import check_known

        check_known(opset)


def _set_opset(job: Job) -> None:
    from forwardpass.convert.opset import set_opset

    if job.opset is not None:
        set_opset(job.out, job.opset, name=job.name)


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


def _checked(
    source: Runtime,
    calls: Iterable[dict[str, Array]],
    exporter: str,
    job: Job,
    *,
    notes: tuple[str, ...] = (),
    locate: Locate = nowhere,
) -> Proven:
    """Compare the written file with its source call by call, and put right what it declares about its outputs."""
    from forwardpass.convert.onnx_files import read_opset

    calls = tuple(calls)
    converted = open_runtime(Format.ONNX, str(job.out), options=RuntimeOptions())
    comparisons = compared(source, converted, calls, job, locate=locate)
    corrected = true_outputs(converted.signature, [comparison.shapes for comparison in comparisons])
    if corrected:
        declare_outputs(job.out, corrected)
    conversion = Conversion(
        variant=Variant(name=VARIANT_NAME, format=Format.ONNX, precision=Precision.FP32, location=str(job.out)),
        signature=_signature_of(job.out) if corrected else converted.signature,
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


def _signature_of(path: Path) -> Signature:
    return open_runtime(Format.ONNX, str(path), options=RuntimeOptions()).signature


def inputs_are_batchable(signature: Signature) -> bool:
    """Tell whether the inputs take any number of rows; what the outputs declare is still to be checked."""
    return all(spec.shape[:1] == (BATCH_AXIS,) for spec in signature.inputs)


def _calls(samples: Samples | None, signature: Signature, batch_sizes: tuple[int, ...]) -> Iterable[dict[str, Array]]:
    if samples is not None:
        return shape_grid(samples, batch_sizes=batch_sizes)
    made_up = random_calls(signature, batch_sizes, {})
    return [call for calls in made_up.values() for call in calls]


def _rows(group: SampleGroup, num_rows: int) -> dict[str, Array]:
    return dict(group.take(np.arange(num_rows) % len(group)).inputs)


@contextmanager
def committed(out: Path) -> Iterator[Path]:
    """Give a path to write to, and move it to `out` if the block succeeds; otherwise nothing is left."""
    partial = out.with_name(f".{out.stem}.partial-{os.getpid()}{out.suffix or '.onnx'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        for companion in companions(format_of(out), partial):
            companion.replace(out.with_suffix(companion.suffix))
        partial.replace(out)
    except OSError as error:
        if type(error).__module__ != "builtins":
            raise
        raise StorageFailed(path=str(out), reason=error.strerror or str(error)) from error
    finally:
        for leftover in list(out.parent.iterdir()) if out.parent.is_dir() else []:
            if leftover.name.startswith(partial.stem):
                leftover.unlink()
