"""Where a converted model first goes another way than its source: values inside of both, compared in order.

PyTorch's newer exporter calls the values of the ONNX graph as those of the program that it comes from. Where it has
fused or renamed something, that value is skipped: the node that is named is the first that can be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from forwardpass.convert.graphs import line_of_node
from forwardpass.convert.library import onnx
from forwardpass.core.tensors import Array, Tensors
from forwardpass.predict import relative_error
from forwardpass.runtimes import RuntimeOptions
from forwardpass.runtimes.onnx import OnnxRuntime

__all__ = ["diverging_node", "values_of_program"]


def diverging_node(program: Any, model: Path, call: Tensors, *, tolerance: float) -> str:
    """Name the first node of the ONNX file whose value differs from the `torch.export` program's by more.

    Returns:
        The node, its operator and the line of the user's code, or an empty text if no value differs.
    """
    expected = values_of_program(program, call)
    found = onnx.load(str(model))
    declared = {value.name for value in found.graph.output}
    nodes = [(node, name) for node in found.graph.node for name in node.output if name in expected]
    found.graph.output.extend(onnx.ValueInfoProto(name=name) for _, name in nodes if name not in declared)
    answers = OnnxRuntime.from_bytes(found.SerializeToString(), options=RuntimeOptions()).run(call)
    for node, name in nodes:
        if answers[name].shape == expected[name].shape and relative_error(answers[name], expected[name]) > tolerance:
            return f"'{node.name or name}' ({node.op_type}{line_of_node(node)})"
    return ""


def values_of_program(program: Any, call: Tensors) -> dict[str, Array]:
    """Run the program node by node and keep every tensor by its name."""
    values: dict[str, Array] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n.op == "call_function" and isinstance(value, torch.Tensor):
                values[n.name] = value.detach().numpy().copy()
            return value

    module = program.module()
    with torch.no_grad():
        Recorder(module).run(*(torch.from_numpy(call[name]) for name in program.graph_signature.user_inputs))
    return values
