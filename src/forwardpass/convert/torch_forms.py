"""PyTorch's own program files: `torch.export` and, legacy, TorchScript."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from forwardpass.convert.axes import DynamicAxes
from forwardpass.convert.exporters import quiet, translated
from forwardpass.core.tensors import Array, Signature
from forwardpass.errors import ExportFailed
from forwardpass.runtimes.signatures import SIGNATURE_ENTRY, encode_signature

__all__ = ["check_axes", "save_program", "save_script", "traced_program"]


def traced_program(
    module: nn.Module,
    example: Mapping[str, Array],
    axes: DynamicAxes,
    *,
    name: str,
    limits: Mapping[str, int] | None = None,
) -> torch.export.ExportedProgram:
    """Trace `module` with `torch.export`, the axes that have names being dynamic, up to `limits` where it names them.

    Raises:
        ExportFailed: it cannot be traced; control flow that depends on values names its line.
    """
    limits = limits or {}
    dynamic: Any = torch.export.Dim.AUTO
    shapes = {
        tensor: {axis: dynamic(max=limits[label]) if label in limits else dynamic for axis, label in names.items()}
        for tensor, names in axes.items()
    }
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(module, (), kwargs=_tensors(example), dynamic_shapes=shapes)
    except Exception as error:  # the exporter raises what lies deep below it
        raise translated(error, name) from error


def check_axes(program: torch.export.ExportedProgram, axes: DynamicAxes, *, name: str) -> None:
    """Refuse a program in which an axis became a number that should be dynamic.

    Raises:
        ExportFailed: naming the axis and its size.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for tensor, names in axes.items():
        value = values.get(tensor)
        if not isinstance(value, torch.Tensor):
            continue
        for axis, label in names.items():
            size = str(value.shape[axis])
            if size.isdigit():
                reason = f"torch.export fixes axis {axis} of '{tensor}' ({label}) at {size}, the size of its example"
                hint = "An operator (such as nn.LSTM) or a constant in forward() needs the number; try --to onnx."
                raise ExportFailed(source=name, reason=reason, hint=hint)


def save_program(program: torch.export.ExportedProgram, out: Path, signature: Signature) -> None:
    """Write a `torch.export` program with its signature; the samples that it was traced with stay out of the file."""
    program.example_inputs = None  # they would be somebody's data
    with quiet():
        torch.export.save(program, out, extra_files={SIGNATURE_ENTRY: encode_signature(signature)})


def save_script(module: nn.Module, example: Mapping[str, Array], out: Path, signature: Signature, *, name: str) -> None:
    """Trace `module` as TorchScript and write it with its signature.

    Raises:
        ExportFailed: it cannot be traced.
    """
    jit: Any = torch.jit
    try:
        with quiet(), torch.no_grad():
            script = jit.trace(module, example_kwarg_inputs=_tensors(example), strict=False, check_trace=False)
            jit.save(script, str(out), _extra_files={SIGNATURE_ENTRY: encode_signature(signature)})
    except Exception as error:  # as above
        raise translated(error, name) from error


def _tensors(example: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {tensor: torch.from_numpy(array) for tensor, array in example.items()}
