"""From a source to any form: written by that form's own library, run by its own runtime, held against the source."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from forwardpass.convert.axes import DynamicAxes, dynamic_axes
from forwardpass.convert.converting import check_opset, convert_to_onnx, prove_onnx
from forwardpass.convert.jobs import Job, committed, source_name, with_recipe
from forwardpass.convert.limits import axis_limits, within_limits
from forwardpass.convert.parity import BATCH_SIZES, named_axis_calls, shape_grid
from forwardpass.convert.proving import PARITY_TOLERANCE, Locate, Proven, compared, nowhere
from forwardpass.convert.shapes import SeenShapes, Shape, true_outputs
from forwardpass.convert.torch_sources import example_call, fitting_samples, open_source, source_left_as_found
from forwardpass.convert.values import Conversion, TorchSource
from forwardpass.core.protocols import Progress, Runtime
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import Array, Signature, TensorSpec
from forwardpass.core.variants import SUFFIXES, Format, Precision, Variant
from forwardpass.errors import ConversionError, DataDependentControlFlow, InvalidOption
from forwardpass.runtimes import RuntimeOptions, open_runtime

if TYPE_CHECKING:
    from torch import nn

    from forwardpass.convert.executorch import Backend, ExecutorchJob
    from forwardpass.runtimes.torch import TorchRuntime

__all__ = ["TARGETS", "convert"]

TARGETS = (
    Format.ONNX,
    Format.ORT,
    Format.PT2,
    Format.AOTINDUCTOR,
    Format.TORCHSCRIPT,
    Format.OPENVINO,
    Format.LITERT,
    Format.EXECUTORCH,
)
"""What can be converted to."""

FROM_TORCH = (Format.PT2, Format.AOTINDUCTOR, Format.TORCHSCRIPT, Format.EXECUTORCH)
_EIGHT_BITS = (Precision.FP32, Precision.INT8_DYNAMIC, Precision.INT8_STATIC)
PRECISIONS = {Format.LITERT: _EIGHT_BITS, Format.EXECUTORCH: _EIGHT_BITS}
"""What each target can be made in; FP32 alone, where it is not named."""
QUANTISED_TOLERANCE = 0.1
"""Relative. 8 bits cost tiny networks up to a few percent; a file that is broken is off by 0.5 and more."""
OF_OTHER_FILES = {suffix for format, suffix in SUFFIXES.items() if format is not Format.ONNX} | {  # noqa: A001
    *(".npz", ".npy", ".csv", ".json", ".toml", ".html", ".py"),
    *(".safetensors", ".pt", ".pth", ".bin", ".keras", ".h5", ".skops", ".joblib", ".pkl"),
}
"""What an ONNX file had better not be named: it would be taken for samples, weights or another format."""
LEGACY_NOTE = "TorchScript is legacy: PyTorch has deprecated it for torch.export. Prefer --to pt2, or ONNX."


def convert(
    source: TorchSource | nn.Module | Path,
    samples: Samples | None,
    *,
    to: Format,
    out: Path,
    opset: int | None = None,
    axes: DynamicAxes | None = None,
    precision: Precision = Precision.FP32,
    max_sizes: Mapping[str, int] | None = None,
    tolerance: float | None = None,
    progress: Progress,
) -> Conversion:
    """Write `source` in the format `to` at `out`, if it then answers like the source over a grid of shapes.

    PyTorch's own forms come from the module, all others from an ONNX file that is proved first, and is not kept. A
    `precision` other than FP32 is for LiteRT and ExecuTorch; `optimize` is where ONNX gets its 8 bits. `max_sizes` says
    how long the dynamic axes may get, by their names, for ExecuTorch, which plans its memory beforehand.

    Raises:
        ConversionError: it cannot be converted, or the result does not run or answer the same at some shape.
        UsageError: the source, its weights or the samples cannot be used, or the name of `out` does not fit.
        MissingExtra: the library of the format is not installed.
        StorageFailed: `out` cannot be written.
    """
    _check_target(out, to, precision, max_sizes or {})
    tolerance = tolerance or (PARITY_TOLERANCE if precision is Precision.FP32 else QUANTISED_TOLERANCE)
    if to is Format.ONNX:
        return convert_to_onnx(source, samples, out=out, opset=opset, axes=axes, tolerance=tolerance, progress=progress)
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
        if to is Format.EXECUTORCH:
            conversion = _to_executorch(source, job, precision, max_sizes or {})
        else:
            conversion = _from_torch(source, to, job) if to in FROM_TORCH else _from_onnx(source, to, job, precision)
    return with_recipe(conversion, out)


def _check_target(out: Path, to: Format, precision: Precision, max_sizes: Mapping[str, int]) -> None:
    """Refuse a name that would be taken for another format later, and a precision that the format is not made in."""
    if precision not in PRECISIONS.get(to, (Precision.FP32,)):
        expected = f"{Precision.FP32.value}: 'forwardpass optimize' makes ONNX files of other precisions"
        raise InvalidOption(option="--precision", value=precision.value, expected=expected)
    for label, size in max_sizes.items() if to is not Format.EXECUTORCH else ():
        expected = f"it with --to executorch only: {to.value} takes any size"
        raise InvalidOption(option="--max-size", value=f"{label}={size}", expected=expected)
    suffix = SUFFIXES[to]
    is_mistaken = out.suffix.lower() in OF_OTHER_FILES if to is Format.ONNX else out.suffix != suffix
    if is_mistaken:
        raise InvalidOption(option="--out", value=str(out), expected=f"a name that ends with {suffix}, for {to.value}")


# --- PyTorch's own forms -------------------------------------------------------------------------------------------


def _from_torch(source: TorchSource | nn.Module | Path, to: Format, job: Job) -> Conversion:
    runtime = _opened(source, to)
    samples = fitting_samples(runtime, job.samples, job.name)
    axes = dynamic_axes(samples, job.axes)
    calls = [*shape_grid(samples), *named_axis_calls(runtime, samples, job.axes, name=job.name)]
    job.progress(f"writing {to.value}", done=0.3)
    signature = _signature(runtime, samples, axes)
    _write_from_torch(runtime, to, example_call(samples), axes, signature, job)
    conversion = _checked(runtime, calls, to, job, exporter=_exporter(to), signature=signature)
    return replace(conversion, notes=(LEGACY_NOTE,)) if to is Format.TORCHSCRIPT else conversion


def _opened(source: TorchSource | nn.Module | Path, to: Format) -> TorchRuntime:
    if isinstance(source, Path):
        expected = f"a PyTorch source: nothing turns an ONNX file into {to.value}"
        raise InvalidOption(option="MODEL", value=str(source), expected=expected)
    return open_source(source)


def _exporter(to: Format) -> str:
    return {Format.PT2: "torch.export", Format.AOTINDUCTOR: "Inductor"}.get(to, "torch.jit.trace")


def _write_from_torch(
    runtime: TorchRuntime, to: Format, example: dict[str, Array], axes: DynamicAxes, signature: Signature, job: Job
) -> None:
    from forwardpass.convert.torch_forms import check_axes, save_program, save_script, traced_program

    if to is not Format.TORCHSCRIPT:
        program = traced_program(runtime.module, example, axes, name=job.name)
        check_axes(program, axes, name=job.name)
        if to is Format.PT2:
            save_program(program, job.out, signature)
        else:
            from forwardpass.convert.compiling import save_compiled

            save_compiled(program, example, job.out, signature, name=job.name)
        return
    try:
        traced_program(runtime.module, example, axes, name=job.name)
    except DataDependentControlFlow:
        raise  # TorchScript would record the branch that the example takes, and lose the other
    except ConversionError:
        pass  # what torch.export cannot trace for another reason, the older tracer may
    save_script(runtime.module, example, job.out, signature, name=job.name)


def _signature(runtime: TorchRuntime, samples: Samples, axes: DynamicAxes) -> Signature:
    """Describe the source: its inputs by the names of their axes, its outputs by two runs of different sizes."""
    inputs = tuple(
        TensorSpec(
            name=name,
            dtype=array.dtype.name,
            shape=tuple(axes[name].get(axis, size) for axis, size in enumerate(array.shape)),
        )
        for name, array in samples.groups[0].inputs.items()
    )
    runs = [(call, runtime.run(call)) for call in shape_grid(samples, batch_sizes=BATCH_SIZES[1:3])]
    outputs = tuple(
        TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in runs[0][1].items()
    )
    declared = Signature(inputs=inputs, outputs=outputs)
    seen = [SeenShapes(inputs=_sizes(call), outputs=_sizes(answers)) for call, answers in runs]
    return _with_outputs(declared, true_outputs(declared, seen))


def _sizes(tensors: dict[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in tensors.items()}


def _with_outputs(signature: Signature, shapes: dict[str, Shape]) -> Signature:
    outputs = tuple(replace(spec, shape=shapes.get(spec.name, spec.shape)) for spec in signature.outputs)
    return replace(signature, outputs=outputs)


# --- ExecuTorch ----------------------------------------------------------------------------------------------------


def _to_executorch(
    source: TorchSource | nn.Module | Path, job: Job, precision: Precision, max_sizes: Mapping[str, int]
) -> Conversion:
    """Let XNNPACK compute, or in full precision, if that fails or answers differently, ExecuTorch's own kernels."""
    from forwardpass.convert.executorch import Backend, ExecutorchJob, check_installed

    runtime = _opened(source, Format.EXECUTORCH)
    check_installed()
    samples = fitting_samples(runtime, job.samples, job.name)
    axes = dynamic_axes(samples, job.axes)
    limits = axis_limits(samples, axes, max_sizes)
    calls = (*shape_grid(samples), *named_axis_calls(runtime, samples, job.axes, name=job.name))
    example = example_call(samples)
    work = ExecutorchJob(
        module=runtime.module,
        example=example,
        axes=axes,
        limits=limits,
        signature=_signature(runtime, samples, axes),
        precision=precision,
        samples=samples,
        name=job.name,
    )
    fitting = tuple(within_limits(calls, axes, limits))
    failures: list[ConversionError] = []
    for backend in Backend if precision is Precision.FP32 else (Backend.XNNPACK,):
        job.progress(f"writing executorch for {backend.value}", done=0.3)
        try:
            return _with_executorch(runtime, work, fitting, job, backend=backend, failures=failures)
        except DataDependentControlFlow:
            raise
        except ConversionError as failure:
            failures.append(failure)
    raise failures[0]


def _with_executorch(
    runtime: TorchRuntime,
    work: ExecutorchJob,
    calls: tuple[dict[str, Array], ...],
    job: Job,
    *,
    backend: Backend,
    failures: list[ConversionError],
) -> Conversion:
    from forwardpass.convert.executorch import check_limits, diverging_operator, save_executorch
    from forwardpass.runtimes.executorch import ExecutorchRuntime

    signature = save_executorch(work, job.out, backend=backend)
    check_limits(ExecutorchRuntime(str(job.out), options=RuntimeOptions()).limits, work.limits, name=job.name)
    conversion = _checked(
        runtime,
        calls,
        Format.EXECUTORCH,
        job,
        exporter=f"torch.export + executorch ({backend.value})",
        signature=signature,
        locate=lambda call: diverging_operator(work, call, backend=backend, tolerance=job.tolerance),
    )
    sizes = ", ".join(f"{label} {size}" for label, size in work.limits.items())
    notes = (
        f"Memory is planned for at most: {sizes}. --max-size NAME=SIZE plans for more.",
        *(f"XNNPACK was not used: {failure}" for failure in failures),
    )
    name = f"{Format.EXECUTORCH.value}-{work.precision.value}"
    return replace(conversion, variant=replace(conversion.variant, name=name, precision=work.precision), notes=notes)


# --- forms that come from ONNX -------------------------------------------------------------------------------------


def _from_onnx(source: TorchSource | nn.Module | Path, to: Format, job: Job, precision: Precision) -> Conversion:
    with tempfile.TemporaryDirectory(prefix="forwardpass-convert-") as folder:
        exact = replace(job, out=Path(folder) / "model.onnx", tolerance=min(job.tolerance, PARITY_TOLERANCE))
        proven = prove_onnx(source, exact)
        job.progress(f"writing {to.value}", done=0.9)
        _write_from_onnx(Path(proven.conversion.variant.location), to, proven, job, precision)
        exporter = f"{proven.conversion.exporter} + {to.value}"
        conversion = _checked(
            proven.source,
            proven.calls,
            to,
            job,
            exporter=exporter,
            signature=proven.conversion.signature,
            locate=_locate_in_onnx(Path(proven.conversion.variant.location), to, job),
        )
    variant = replace(conversion.variant, name=f"{to.value}-{precision.value}", precision=precision)
    return replace(conversion, variant=variant, opset=proven.conversion.opset, notes=proven.conversion.notes)


def _locate_in_onnx(model: Path, to: Format, job: Job) -> Locate:
    from forwardpass.convert.locating import diverging_onnx_node

    return lambda call: diverging_onnx_node(model, job.out, to, call, tolerance=job.tolerance)


def _write_from_onnx(model: Path, to: Format, proven: Proven, job: Job, precision: Precision) -> None:
    if to is Format.ORT:
        from forwardpass.runtimes.onnx import save_ort

        save_ort(model, job.out)
    elif to is Format.LITERT:
        from forwardpass.convert.litert import save_litert

        save_litert(
            model,
            job.out,
            proven.conversion.signature,
            precision=precision,
            samples=job.samples,
            name=job.name,
            progress=job.progress,
        )
    else:
        from forwardpass.convert.ir import save_ir

        save_ir(model, job.out, proven.conversion.signature, name=job.name)


# --- both ----------------------------------------------------------------------------------------------------------


def _checked(
    source: Runtime,
    calls: Iterable[dict[str, Array]],
    to: Format,
    job: Job,
    *,
    exporter: str,
    signature: Signature,
    locate: Locate = nowhere,
) -> Conversion:
    """Run the written file with its own runtime, and hold it against the source call by call."""
    converted = open_runtime(to, str(job.out), options=RuntimeOptions())
    hint = f"{exporter} has made the size of an axis constant; ONNX may keep it dynamic."
    comparisons = compared(source, converted, calls, job, locate=locate, hint=hint)
    return Conversion(
        variant=Variant(name=f"{to.value}-fp32", format=to, precision=Precision.FP32, location=str(job.out)),
        signature=signature,
        exporter=exporter,
        opset=None,
        parity=tuple(comparison.check for comparison in comparisons),
        tolerance=job.tolerance,
    )
