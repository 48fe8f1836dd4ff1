"""Models whose batch is a fixed number: made dynamic where the graph allows it.

Whether it does is not decided here: the freed model has to answer like the original, a batch at a time, over the grid.
"""

from __future__ import annotations

from pathlib import Path

from forwardpass.convert.library import onnx
from forwardpass.core.tensors import BATCH_AXIS, Signature

__all__ = ["fixed_batch", "free_batch"]


def fixed_batch(signature: Signature) -> int | None:
    """Return the number that the first axes of all inputs share, or None if they are dynamic or differ."""
    first = {spec.shape[0] if spec.shape else None for spec in signature.inputs}
    size = first.pop() if len(first) == 1 else None
    return size if isinstance(size, int) else None


def free_batch(path: Path, num_rows: int) -> None:
    """Declare the first axis of all inputs and outputs as the dynamic batch.

    Constant target shapes of Reshape that begin with the old batch keep what comes in instead (0 in ONNX). Shapes of
    tensors inside are dropped; they follow from the operators.
    """
    model = onnx.load(str(path))
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in constants:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH_AXIS
    for value in model.graph.output:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == num_rows:
            dims[0].dim_param = BATCH_AXIS
    del model.graph.value_info[:]
    _free_reshapes(model.graph, num_rows)
    onnx.save(model, str(path))


def _free_reshapes(graph: onnx.GraphProto, num_rows: int) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for number, node in enumerate(graph.node):
        shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None:
            continue
        sizes = onnx.numpy_helper.to_array(shape)
        if sizes.size > 1 and sizes[0] == num_rows:
            freed = sizes.copy()
            freed[0] = 0
            name = f"{node.input[1]}.free{number}"
            graph.initializer.append(onnx.numpy_helper.from_array(freed, name))
            node.input[1] = name
