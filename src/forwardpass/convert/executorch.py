"""ExecuTorch files, from PyTorch."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils import _pytree as pytree

from forwardpass.convert.axes import DynamicAxes
from forwardpass.convert.calibration import write_calibration
from forwardpass.convert.counterparts import InnerValue, first_different
from forwardpass.convert.divergence import values_of_program
from forwardpass.convert.environments import run_program
from forwardpass.convert.graphs import line_of
from forwardpass.convert.torch_forms import check_axes, save_program, traced_program
from forwardpass.core.samples import Samples
from forwardpass.core.tensors import BATCH_AXIS, Array, Signature, Tensors, TensorSpec
from forwardpass.core.variants import Precision
from forwardpass.errors import ExportFailed, MissingExtra
from forwardpass.runtimes import RuntimeOptions
from forwardpass.runtimes.signatures import encode_signature

__all__ = ["Backend", "ExecutorchJob", "check_installed", "check_limits", "diverging_operator", "save_executorch"]

PROGRAM = Path(__file__).parent / "isolated" / "program_to_executorch.py"
NUM_TRACED_ROWS = 16
"""PyTorch asks of a convolution whether it has 16 rows or more. Traced with fewer, the file's memory would be planned
for 15, whatever was asked for."""


class Backend(StrEnum):
    """What computes."""

    XNNPACK = "xnnpack"
    """XNNPACK, what it does not know being left to ExecuTorch's own kernels."""
    PORTABLE = "portable"
    """ExecuTorch's own kernels alone."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExecutorchJob:
    """What a file is made from: a module in evaluation mode, an example of its call, and what may vary how far."""

    module: nn.Module
    example: Mapping[str, Array]
    axes: DynamicAxes
    limits: Mapping[str, int]
    signature: Signature
    precision: Precision
    samples: Samples
    name: str


def check_installed() -> None:
    """Look for the package without importing it, which takes seconds.

    Raises:
        MissingExtra: it is not there.
    """
    if importlib.util.find_spec("executorch") is None:
        raise MissingExtra(package="executorch", extra="executorch", purpose="writing ExecuTorch files")


def save_executorch(job: ExecutorchJob, out: Path, *, backend: Backend) -> Signature:
    """Write the module as ExecuTorch. A process of its own does the work: the exporter patches what it imports.

    Returns:
        The signature, its inputs in the order in which the file takes them.

    Raises:
        ExportFailed: it cannot be traced, or an operator has no counterpart.
        MissingExtra: ExecuTorch is not installed.
    """
    check_installed()
    example = _long_enough(job.example, job.limits)
    program = traced_program(job.module, example, job.axes, name=job.name, limits=job.limits)
    check_axes(program, job.axes, name=job.name)
    _flatten_outputs(program)
    signature = _in_order(job.signature, program)
    with tempfile.TemporaryDirectory(prefix="forwardpass-executorch-") as name:
        folder = Path(name)
        save_program(program, folder / "program.pt2", signature)
        if job.precision is not Precision.FP32:
            np.savez(folder / "example.npz", allow_pickle=False, **example)
            write_calibration(folder / "calibration.npz", job.samples, name=job.name)
        told = {
            "precision": job.precision.value,
            "backend": backend.value,
            "signature": encode_signature(signature),
            "num_dynamic_axes": len(job.limits),
            "limits": {
                tensor: {str(axis): job.limits[label] for axis, label in names.items()}
                for tensor, names in job.axes.items()
            },
        }
        run_program(PROGRAM, folder, told, name="ExecuTorch", source=job.name)
        written = folder / "model.pte"
        if not written.is_file():
            raise ExportFailed(source=job.name, reason="ExecuTorch's exporter ended well and wrote nothing")
        out.write_bytes(written.read_bytes())
    return signature


def diverging_operator(job: ExecutorchJob, call: Tensors, *, backend: Backend, tolerance: float) -> str:
    """Name the first operator of the program whose value ExecuTorch computes differently.

    The program is written once more with everything that it computes as an output: inside of XNNPACK nothing can be
    seen. What goes wrong only where operators are fused may not show.
    """
    from forwardpass.runtimes.executorch import ExecutorchRuntime

    example = _long_enough(job.example, job.limits)
    program = traced_program(job.module, example, job.axes, name=job.name, limits=job.limits)
    expected = values_of_program(program, call)
    shown, nodes = _showing(program.module(), expected)
    outputs = tuple(
        TensorSpec(name=node.name, dtype=expected[node.name].dtype.name, shape=expected[node.name].shape)
        for node in nodes
    )
    shown_job = replace(job, module=shown, signature=replace(job.signature, outputs=outputs))
    with tempfile.TemporaryDirectory(prefix="forwardpass-executorch-") as folder:
        out = Path(folder) / "shown.pte"
        save_executorch(shown_job, out, backend=backend)
        found = ExecutorchRuntime(str(out), options=RuntimeOptions()).run(call)
    values = [
        InnerValue(
            name=node.name,
            node=f"'{node.name}' ({_operator(node)}{line_of(node.stack_trace or '')})",
            inputs=(),
            array=expected[node.name],
        )
        for node in nodes
    ]
    return first_different(values, found, tolerance=tolerance)


def _showing(graph: Any, values: Mapping[str, Array]) -> tuple[nn.Module, list[Any]]:
    """Let a traced module return those of its values that are named, each once; return the nodes in their order."""
    nodes = [node for node in graph.graph.nodes if node.name in values and values[node.name].dtype.kind == "f"]
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    output.args = (tuple(nodes),)
    codegen = graph.graph._codegen
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=pytree.tree_structure(tuple(range(len(nodes)))))
    graph.recompile()
    return graph, nodes


def _operator(node: Any) -> str:
    return str(node.target).removesuffix(".default")


def check_limits(found: Mapping[str, int], wanted: Mapping[str, int], *, name: str) -> None:
    """Refuse a file whose memory is planned for less than was asked for.

    Raises:
        ExportFailed: naming the axis, and the size that is possible.
    """
    for label, size in wanted.items():
        if found.get(label, size) < size:
            reason = f"the axis '{label}' cannot be longer than {found[label]}, and {size} is to be planned for"
            raise ExportFailed(source=name, reason=reason, hint=f"Re-run with --max-size {label}={found[label]}.")


def _in_order(signature: Signature, program: Any) -> Signature:
    """Put the inputs in the order of the program, which a file keeps without their names."""
    order = [str(name) for name in program.call_spec.in_spec.child(1).context]
    return replace(signature, inputs=tuple(sorted(signature.inputs, key=lambda spec: order.index(spec.name))))


def _long_enough(example: Mapping[str, Array], limits: Mapping[str, int]) -> dict[str, Array]:
    num_rows = min(NUM_TRACED_ROWS, limits[BATCH_AXIS])
    return {tensor: np.ascontiguousarray(array[np.arange(num_rows) % len(array)]) for tensor, array in example.items()}


def _flatten_outputs(program: Any) -> None:
    """Let the program return a tuple: the classes that others return are not known where it is read."""
    signature = program.module_call_graph[0].signature
    signature.out_spec = pytree.tree_structure(tuple(range(len(program.graph_signature.user_outputs))))
