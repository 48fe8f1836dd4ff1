"""How much 8 bits cost each node, all nodes in one pass over a few samples.

Beside every node that would be quantised stands a copy that reads rounded activations and rounded weights; the
difference of the two outputs is the node's own error, free of what the nodes before it have done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.optimize.calibration import CalibrationMethod, Range, choose_range
from forwardpass.optimize.exposing import exposing
from forwardpass.optimize.library import onnx
from forwardpass.optimize.naming import load_named
from forwardpass.optimize.side_by_side import map_calls
from forwardpass.optimize.writers import StaticPlan
from forwardpass.runtimes.onnx import OnnxRuntime

__all__ = ["node_errors", "shares_of_error"]

NUM_LEVELS = 255
NUM_WEIGHT_LEVELS = {False: 127, True: 63}
"""On each side of zero; by whether weights have 7 bits."""
_ROUNDED = ".rounded"


def node_errors(
    source: Path, samples: Samples, plan: StaticPlan, *, method: CalibrationMethod, reduce_range: bool
) -> dict[str, float]:
    """Return the squared error of every node of the plan as a share of its squared output, the greatest first."""
    model = load_named(source)
    ranges = {name: choose_range(histogram, method) for name, histogram in plan.histograms.items()}
    nodes = [node for node in model.graph.node if node.name in set(plan.nodes)]
    for node in nodes:
        _add_copy(model.graph, node, ranges, NUM_WEIGHT_LEVELS[reduce_range])
    pairs = {node.name: (node.output[0], node.output[0] + _ROUNDED) for node in nodes}
    return shares_of_error(exposing(model, [name for pair in pairs.values() for name in pair]), samples, pairs)


def shares_of_error(runtime: OnnxRuntime, samples: Samples, pairs: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """Return the squared difference of each pair of tensors as a share of the first one's square, greatest first."""
    squares = {name: np.zeros(2) for name in pairs}

    def call(group: SampleGroup) -> dict[str, Array]:
        answers = runtime.run(group.inputs)
        return {name: _squares(answers[exact], answers[rounded]) for name, (exact, rounded) in pairs.items()}

    for found in map_calls(call, samples.batches(1)):
        for name, added in found.items():
            squares[name] += added
    errors = {name: float(wrong / whole) if whole else 0.0 for name, (wrong, whole) in squares.items()}
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _squares(exact: Array, rounded: Array) -> Array:
    """Return the squared difference of two tensors, and the square of the first."""
    values = exact.astype(np.float64)
    return np.array([((rounded - values) ** 2).sum(), (values**2).sum()])


def _add_copy(graph: onnx.GraphProto, node: onnx.NodeProto, ranges: dict[str, Range], num_levels: int) -> None:
    """Put a copy of the node behind it that computes with what 8 bits leave of its inputs."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{node.name}{_ROUNDED}"
    activation, new_nodes = _rounding(graph, node.input[0], copy.name, ranges[node.input[0]])
    weights = next(tensor for tensor in graph.initializer if tensor.name == node.input[1])
    values = _rounded_weights(onnx.numpy_helper.to_array(weights), _output_axis(node), num_levels)
    copy.input[0], copy.input[1] = activation, f"{copy.name}.weights"
    graph.initializer.append(onnx.numpy_helper.from_array(values, copy.input[1]))
    copy.output[0] = node.output[0] + _ROUNDED
    place = list(graph.node).index(node) + 1
    for number, added in enumerate((*new_nodes, copy)):
        graph.node.insert(place + number, added)


def _rounding(graph: onnx.GraphProto, tensor: str, stem: str, ends: Range) -> tuple[str, Sequence[onnx.NodeProto]]:
    """Return the name of a tensor rounded to 8 bits and back, and the nodes that make it."""
    scale = np.float32((ends.high - ends.low) / NUM_LEVELS or 1.0)
    zero_point = np.uint8(np.clip(np.round(-ends.low / scale), 0, NUM_LEVELS))
    names = [f"{stem}.{part}" for part in ("scale", "zero", "bytes", "values")]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(scale), names[0]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(zero_point), names[1]))
    quantise = onnx.helper.make_node("QuantizeLinear", [tensor, *names[:2]], [names[2]], name=names[2])
    restore = onnx.helper.make_node("DequantizeLinear", [names[2], *names[:2]], [names[3]], name=names[3])
    return names[3], (quantise, restore)


def _output_axis(node: onnx.NodeProto) -> int:
    """Return the axis of the weights that has the outputs, each of which has a scale of its own."""
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or is_transposed else -1


def _rounded_weights(weights: Array, axis: int, num_levels: int) -> Array:
    others = tuple(at for at in range(weights.ndim) if at != axis % weights.ndim)
    scale = np.abs(weights).max(axis=others, keepdims=True) / num_levels
    scale = np.where(scale == 0, 1.0, scale)
    return (np.round(weights / scale) * scale).astype(np.float32)
