"""A static 8-bit variant in the ranges of every calibration method, with its weights quantised once.

The methods differ in the scales and zero points of the activations alone, and in what follows from these: a bias is
held in units of its input's scale. So onnxruntime's writer runs once, and for every other method its own parameters
are put into the file that it made. What comes out is what it would have written, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forwardpass.core.tensors import Array
from forwardpass.optimize.calibration import CalibrationMethod
from forwardpass.optimize.library import onnx
from forwardpass.optimize.naming import load_named
from forwardpass.optimize.quiet import quiet_quantizer
from forwardpass.optimize.writers import StaticPlan, static_bytes, static_quantizer

if TYPE_CHECKING:
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

__all__ = ["static_forms"]

INT32_STEPS = 2.0 * np.iinfo(np.int32).max
NEARLY_OVERFLOWING = 1.01
"""Of the least scale with which a bias fits into 32 bits: near it the writer widens the scales of the weights."""


def static_forms(
    source: Path, methods: Sequence[CalibrationMethod], plan: StaticPlan, *, reduce_range: bool
) -> Iterator[tuple[CalibrationMethod, bytes]]:
    """Yield for each of these methods the file that `write_static` would write."""
    model = load_named(source)
    biases = _biases(model, plan)
    with quiet_quantizer():
        first, *others = (
            static_quantizer(model, plan, method=method, reduce_range=reduce_range, scales_weights=method is methods[0])
            for method in methods
        )
        first.quantize_model()
    written = first.model.model
    yield methods[0], written.SerializeToString()
    constants = {tensor.name: tensor for tensor in written.graph.initializer}
    known = [_Bias.of(name, values, first, constants) for name, values in biases.items() if _is_known(name, first)]
    found = [bias for bias in known if bias is not None]
    is_plain = len(found) == len(known) and all(bias.fits(constants) for bias in found)
    for method, quantizer in zip(methods[1:], others, strict=True):
        if is_plain:
            _put_scales(quantizer, constants)
        if is_plain and all(bias.fits(constants) for bias in found):
            for bias in found:
                bias.put(constants)
            yield method, written.SerializeToString()
        else:
            yield method, static_bytes(source, plan, method=method, reduce_range=reduce_range)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bias:
    """A bias in 32 bits, and the constants that its unit is the product of."""

    values: Array
    name: str
    scale: str
    input_scale: str
    weight_scale: str
    beta: float

    @classmethod
    def of(
        cls, name: str, values: Array, quantizer: QDQQuantizer, constants: Mapping[str, onnx.TensorProto]
    ) -> _Bias | None:
        """Return the bias of this name as it was written; None if its parts are not where they should be."""
        told, known = quantizer.bias_to_quantize[name], quantizer.quantized_value_map
        if told.input_name not in known or told.weight_name not in known:
            return None
        own = known[name].original
        bias = cls(
            values=values,
            name=own.q_name,
            scale=own.scale_name,
            input_scale=known[told.input_name].original.scale_name,
            weight_scale=known[told.weight_name].original.scale_name,
            beta=told.beta,
        )
        parts = (bias.name, bias.scale, bias.input_scale, bias.weight_scale)
        return bias if constants.keys() >= set(parts) else None

    def unit(self, constants: Mapping[str, onnx.TensorProto]) -> Array:
        """Return the scale of every channel."""
        ours, theirs = (onnx.numpy_helper.to_array(constants[it]) for it in (self.input_scale, self.weight_scale))
        return np.asarray(ours * theirs * self.beta)

    def fits(self, constants: Mapping[str, onnx.TensorProto]) -> bool:
        """Tell whether the writer had no reason to widen the scales of the weights for this bias."""
        least = NEARLY_OVERFLOWING * 2.0 * np.abs(self.values.astype(np.float64)) / INT32_STEPS
        return bool(np.all(self.unit(constants) > least))

    def put(self, constants: Mapping[str, onnx.TensorProto]) -> None:
        """Write the bias anew, in the unit that the scales now give."""
        unit = self.unit(constants)
        steps = np.round(self.values.astype(np.float64) / unit.astype(np.float64)).astype(np.int32)
        _refill(constants[self.name], steps)
        _refill(constants[self.scale], unit.astype(np.float32))


def _biases(model: onnx.ModelProto, plan: StaticPlan) -> dict[str, Array]:
    """Return the constant third inputs of the nodes that are quantised."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    chosen = set(plan.nodes)
    names = [node.input[2] for node in model.graph.node if node.name in chosen and len(node.input) > 2]
    return {name: onnx.numpy_helper.to_array(constants[name]).copy() for name in names if name in constants}


def _is_known(name: str, quantizer: QDQQuantizer) -> bool:
    return name in quantizer.bias_to_quantize and name in quantizer.quantized_value_map


def _put_scales(quantizer: QDQQuantizer, constants: Mapping[str, onnx.TensorProto]) -> None:
    """Put the parameters that a quantizer has for its activations into a file that another one wrote."""
    for name, parameters in quantizer.quantization_params.items():
        if f"{name}_scale" in constants:
            _refill(constants[f"{name}_scale"], parameters.original["scale"])
            _refill(constants[f"{name}_zero_point"], parameters.original["zero_point"])


def _refill(tensor: onnx.TensorProto, values: Array) -> None:
    """Replace the values of a constant where they lie, in the field that they lie in."""
    if tensor.HasField("raw_data"):
        tensor.raw_data = np.ascontiguousarray(values).tobytes()
    elif tensor.data_type == onnx.TensorProto.FLOAT:
        tensor.float_data[:] = np.asarray(values).ravel().tolist()
    else:
        tensor.int32_data[:] = np.asarray(values).ravel().tolist()
