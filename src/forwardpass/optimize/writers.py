"""The writers of variants: an FP32 ONNX file in, a leaner one out, the same bytes every time a recipe is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.core.tensors import Array
from forwardpass.errors import NothingToQuantise
from forwardpass.optimize.calibration import CalibrationMethod, Look, Range, TensorHistogram, calibrate, choose_range
from forwardpass.optimize.exposing import Exposer
from forwardpass.optimize.library import onnx
from forwardpass.optimize.naming import load_named
from forwardpass.optimize.quiet import quiet_quantizer
from forwardpass.optimize.side_by_side import map_calls
from forwardpass.optimize.weight_scales import scale_overrides
from forwardpass.runtimes.onnx import OnnxRuntime, save_optimised

if TYPE_CHECKING:
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

__all__ = [
    "CHAIN_OPERATORS",
    "MATRIX_OPERATORS",
    "QUANTISED_OPERATORS",
    "StaticPlan",
    "nodes_in_8_bits",
    "plan_static",
    "quantisable_nodes",
    "static_bytes",
    "static_quantizer",
    "whole_nodes",
    "write_dynamic",
    "write_fp16_storage",
    "write_graph",
    "write_static",
]

CALL_ORDER_SEED = 20261101
MIN_FP16_VALUES = 256
"""Smaller constants (scales, axes, epsilons) stay as they are: nothing to save, and some are sensitive."""
FP16_LIMIT = float(np.finfo(np.float16).max)

MATRIX_OPERATORS = ("MatMul", "Gemm")
QUANTISED_OPERATORS = (*MATRIX_OPERATORS, "Conv")
"""Where the arithmetic is. A matrix product leaves its output in float, since ONNX Runtime fuses the scaling into it
and nothing behind it (bias, GELU, LayerNorm) runs in 8 bits; a convolution needs its output quantised to be fused."""


CHAIN_OPERATORS = (
    *QUANTISED_OPERATORS, "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool"
)  # fmt: skip
"""What between convolutions runs on bytes as well: with all of it in 8 bits, nothing on the way is converted."""


def write_graph(source: Path, target: Path) -> None:
    """Save the graph as ONNX Runtime simplifies and fuses it, without layouts that only suit one processor."""
    save_optimised(source, target, level="extended")


def write_fp16_storage(source: Path, target: Path) -> int:
    """Store weights in 16 bits with a cast behind, which ONNX Runtime folds away at load; return how many were stored.

    Weights with values beyond the range of float16 stay as they are.
    """
    model = onnx.load(str(source))
    casts = []
    for tensor in model.graph.initializer:
        if not _fits_fp16(tensor):
            continue
        halved = onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}.fp16"
        )
        casts.append(onnx.helper.make_node("Cast", [halved.name], [tensor.name], to=onnx.TensorProto.FLOAT))
        tensor.CopyFrom(halved)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(target))
    return len(casts)


def write_dynamic(source: Path, target: Path, *, reduce_range: bool, nodes: Set[str] | None = None) -> None:
    """Quantise the weights of matrix products; activations are quantised call by call, with one scale per tensor.

    `nodes` names the products; without it, they are all.

    Raises:
        NothingToQuantise: no matrix product has constant weights.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = load_named(source)
    names = [node.name for node in quantisable_nodes(model, MATRIX_OPERATORS) if nodes is None or node.name in nodes]
    with quiet_quantizer():
        quantize_dynamic(
            model,
            str(target),
            op_types_to_quantize=list(MATRIX_OPERATORS),
            nodes_to_quantize=[*names, *(f"{name}{_FROM_GEMM}" for name in names)],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StaticPlan:
    """Which nodes are quantised, of which operators, and what is known of the tensors at their ends."""

    nodes: tuple[str, ...]
    histograms: Mapping[str, TensorHistogram]
    operators: tuple[str, ...] = QUANTISED_OPERATORS


def plan_static(
    source: Path,
    samples: Samples,
    *,
    nodes: Set[str] | None = None,
    operators: tuple[str, ...] = QUANTISED_OPERATORS,
    known: dict[str, TensorHistogram] | None = None,
    exposer: Exposer | None = None,
) -> StaticPlan:
    """Choose the nodes and run the samples, one at a time and twice, to see the ranges of their activations.

    `nodes` names the nodes; without it, they are all but depthwise convolutions, which are slower as a rule. Tensors
    that are `known` from the same file and samples are not looked at again, and what was seen is added to them.

    Raises:
        NothingToQuantise: no matrix product or convolution has constant weights.
    """
    model = load_named(source)
    constants = {tensor.name for tensor in model.graph.initializer}
    chosen = (
        quantisable_nodes(model, QUANTISED_OPERATORS)
        if nodes is None
        else [node for node in model.graph.node if node.name in nodes]
    )
    names = sorted({name for node in chosen for name in _rounded_ends(node)} - constants)
    seen = {} if known is None else known
    new = [name for name in names if name not in seen]
    if new:
        seen |= _histograms((exposer or Exposer()).expose(source, new), new, samples)
    return StaticPlan(
        nodes=tuple(node.name for node in chosen),
        histograms={name: seen[name] for name in names},
        operators=operators,
    )


def _histograms(runtime: OnnxRuntime, names: Sequence[str], samples: Samples) -> dict[str, TensorHistogram]:
    # Groups are ordered by shape; to see ranges settle, every prefix has to look like the whole.
    singles = list(samples.batches(1))
    shuffled = [singles[at] for at in np.random.default_rng(CALL_ORDER_SEED).permutation(len(singles))]

    def calls(look: Look) -> Iterator[dict[str, Any]]:
        def call(group: SampleGroup) -> dict[str, Any]:
            answers = runtime.run(group.inputs)
            return look({name: answers.get(name, group.inputs.get(name, _EMPTY)) for name in names})

        return map_calls(call, shuffled)

    return calibrate(calls)


def write_static(
    source: Path, target: Path, plan: StaticPlan, *, method: CalibrationMethod, reduce_range: bool
) -> None:
    """Quantise weights (8 bits signed, a scale per channel) and activations (8 bits unsigned) with fixed ranges."""
    target.write_bytes(static_bytes(source, plan, method=method, reduce_range=reduce_range))


def static_bytes(source: Path, plan: StaticPlan, *, method: CalibrationMethod, reduce_range: bool) -> bytes:
    """Return what `write_static` writes."""
    with quiet_quantizer():
        quantizer = static_quantizer(load_named(source), plan, method=method, reduce_range=reduce_range)
        quantizer.quantize_model()
        return bytes(quantizer.model.model.SerializeToString())


def static_quantizer(
    model: onnx.ModelProto,
    plan: StaticPlan,
    *,
    method: CalibrationMethod,
    reduce_range: bool,
    scales_weights: bool = True,
) -> QDQQuantizer:
    """Return onnxruntime's writer for a plan, told the scales of activations and, if wished, those of weights."""
    from onnxruntime.quantization import CalibrationMethod as WriterMethod
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    ranges = {name: choose_range(histogram, method) for name, histogram in plan.histograms.items()}
    tensors = {name: TensorData(lowest=_array(r, "low"), highest=_array(r, "high")) for name, r in ranges.items()}
    chosen = set(plan.nodes)
    written = [node for node in model.graph.node if node.name in chosen] if scales_weights else []
    _skip_inference_of_known(model, plan.histograms)
    return QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(WriterMethod.MinMax, tensors),
        nodes_to_quantize=list(plan.nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=list(plan.operators),
        extra_options={
            "MatMulConstBOnly": True,
            "OpTypesToExcludeOutputQuantization": list(MATRIX_OPERATORS),
            "TensorQuantOverrides": scale_overrides(model, written, reduce_range=reduce_range),
        },
    )


_FROM_GEMM = "_MatMul"
"""What onnxruntime's quantiser appends to the name of a Gemm when it makes a MatMul and an Add of it, before it looks
at the names that it was given."""

_TYPES_ARE_KNOWN = ("onnx.infer", "onnxruntime.quant")
"""How onnxruntime's tools mark a file whose shapes they have inferred."""

_EMPTY = np.zeros(1, np.float32)


def _ends(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the tensors that a node reads and writes, besides its constants."""
    return (*node.input[: 2 if node.op_type == "Add" else 1], node.output[0])


def _rounded_ends(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return those of the tensors at its ends that are rounded: a matrix product leaves its output in float."""
    ends = _ends(node)
    return ends[:-1] if node.op_type in MATRIX_OPERATORS else ends


def _skip_inference_of_known(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Mark a model in which the types of these tensors are known, so that the writer does not infer them once more."""
    graph = model.graph
    known = {value.name for value in (*graph.value_info, *graph.input, *graph.output)}
    is_marked = any(it.value == _TYPES_ARE_KNOWN[1] for it in model.metadata_props)
    if known.issuperset(names) and not is_marked:
        mark = model.metadata_props.add()
        mark.key, mark.value = _TYPES_ARE_KNOWN


def _array(ends: Range, name: str) -> Array:
    return np.array(getattr(ends, name), dtype=np.float32)


def _fits_fp16(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return False
    values = onnx.numpy_helper.to_array(tensor)
    return values.size >= MIN_FP16_VALUES and float(np.abs(values).max()) <= FP16_LIMIT


def quantisable_nodes(model: onnx.ModelProto, operators: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the nodes of these operators that multiply an activation with constant weights and gain from 8 bits.

    An empty list must never reach onnxruntime's quantiser, which takes it for all nodes.

    Raises:
        NothingToQuantise: there is none.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in operators and _is_quantisable(node, constants, model)]
    if not nodes:
        raise NothingToQuantise(operators=operators)
    return nodes


def nodes_in_8_bits(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the nodes whose weights a static 8-bit file holds in 8 bits."""
    restored = {output for node in model.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    nodes = [node for node in model.graph.node if node.op_type in QUANTISED_OPERATORS]
    return frozenset(node.name for node in nodes if node.input[1] in restored)


def whole_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the convolutions, depthwise ones too, what runs on their bytes behind them, and the matrix products.

    Raises:
        NothingToQuantise: there is no convolution with constant weights.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    chosen: list[onnx.NodeProto] = []
    in_bytes: set[str] = set()
    for node in model.graph.node:  # which come in the order of computation
        if node.op_type in QUANTISED_OPERATORS:
            fits = node.input[0] not in constants and node.input[1] in constants
        else:
            fits = node.op_type in CHAIN_OPERATORS and in_bytes.issuperset(_ends(node)[:-1])
        if fits:
            chosen.append(node)
            in_bytes.update([] if node.op_type in MATRIX_OPERATORS else node.output)
    if not any(node.op_type == "Conv" for node in chosen):
        raise NothingToQuantise(operators=("Conv",))
    return chosen


def _is_quantisable(node: onnx.NodeProto, constants: set[str], model: onnx.ModelProto) -> bool:
    if node.input[0] in constants or node.input[1] not in constants:
        return False
    return node.op_type != "Conv" or not _is_depthwise(node, model)


def _is_depthwise(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """A depthwise convolution does little arithmetic per byte; in 8 bits it is slower."""
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    return groups > 1 and weights.dims[1] == 1
