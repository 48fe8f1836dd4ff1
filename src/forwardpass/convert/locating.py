"""Where a file that was made from ONNX first goes another way: the values inside of both, for one call."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from forwardpass.convert.counterparts import InnerValue, first_different, first_without_counterpart
from forwardpass.convert.graphs import line_of_node
from forwardpass.convert.library import onnx
from forwardpass.core.tensors import Array, Tensors
from forwardpass.core.variants import Format
from forwardpass.runtimes import RuntimeOptions
from forwardpass.runtimes.onnx import OnnxRuntime

__all__ = ["diverging_onnx_node", "values_of_onnx"]


def diverging_onnx_node(model: Path, converted: Path, to: Format, call: Tensors, *, tolerance: float) -> str:
    """Name the first node of the ONNX file whose value is not in the file that was made from it.

    OpenVINO keeps the names of values; in LiteRT they are found by what they are.

    Returns:
        The node, its operator and the line of the user's code that it comes from, if that is known, or an empty text if
        no value differs or the format shows none.
    """
    if to is Format.OPENVINO:
        return first_different(values_of_onnx(model, call), _values_of_openvino(converted, call), tolerance=tolerance)
    if to is Format.LITERT:
        found = _values_of_litert(converted, call)
        return first_without_counterpart(values_of_onnx(model, call), call, found, tolerance=tolerance)
    if to is Format.ONNX:
        found_by_name = {value.name: value.array for value in values_of_onnx(converted, call)}
        return first_different(values_of_onnx(model, call), found_by_name, tolerance=tolerance)
    return ""


def values_of_onnx(model: Path, call: Tensors) -> tuple[InnerValue, ...]:
    """Run an ONNX file and return what its nodes compute, in their order; bodies of branches and loops stay inside."""
    found = onnx.load(str(model))
    shown = onnx.shape_inference.infer_shapes(found)
    kinds = {value.name: value.type for value in (*shown.graph.value_info, *shown.graph.output)}
    declared = {value.name for value in found.graph.output}
    names = [name for node in found.graph.node for name in node.output if name and _is_tensor(kinds.get(name))]
    found.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in declared)
    answers = OnnxRuntime.from_bytes(found.SerializeToString(), options=RuntimeOptions()).run(call)
    return tuple(
        InnerValue(
            name=name,
            node=f"'{node.name or name}' ({node.op_type}{line_of_node(node)})",
            inputs=tuple(node.input),
            array=answers[name],
        )
        for node in found.graph.node
        for name in node.output
        if name in answers
    )


def _is_tensor(kind: Any) -> bool:
    """Say whether a value can be an output; one that shape inference does not know is taken to be."""
    return kind is None or kind.HasField("tensor_type")


def _values_of_openvino(path: Path, call: Tensors) -> dict[str, Array]:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(path))
    shown = [
        output
        for operator in model.get_ordered_ops()
        if operator.get_type_name() not in ("Parameter", "Constant", "Result")
        for output in operator.outputs()
        if output.get_names()
    ]
    with_values = ov.Model(shown, model.get_parameters())
    settings = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
    answers = core.compile_model(with_values, "CPU", settings)(dict(call))
    values: dict[str, Array] = {}
    for output, array in zip(shown, answers.values(), strict=True):
        values |= dict.fromkeys(output.get_names(), np.array(array))
    return values


def _values_of_litert(path: Path, call: Tensors) -> list[Array]:
    """Return everything that the file computes, numbers of 8 bits as what they stand for."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the memory that this takes
        interpreter = Interpreter(
            model_path=str(path),
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
    places = _places_of_inputs(interpreter)
    for name, array in call.items():
        interpreter.resize_tensor_input(places[name], array.shape)
    interpreter.allocate_tensors()
    for name, array in call.items():
        interpreter.set_tensor(places[name], np.ascontiguousarray(array))
    interpreter.invoke()
    computed = {number for operator in interpreter._get_ops_details() for number in operator["outputs"]}
    details = (detail for detail in interpreter.get_tensor_details() if detail["index"] in computed)
    return [_as_numbers(interpreter.get_tensor(detail["index"]), detail) for detail in details]


def _places_of_inputs(interpreter: Any) -> dict[str, int]:
    """Return the numbers of the inputs; the runner that knows them must be gone before shapes can change."""
    runner = interpreter.get_signature_runner()
    return {name: int(detail["index"]) for name, detail in runner.get_input_details().items()}


def _as_numbers(array: Array, detail: Any) -> Array:
    scales = detail["quantization_parameters"]["scales"]
    if array.dtype.kind != "i" or len(scales) != 1:
        return array
    (zero,) = detail["quantization_parameters"]["zero_points"]
    return ((array.astype(np.float32) - zero) * scales[0]).astype(np.float32)
