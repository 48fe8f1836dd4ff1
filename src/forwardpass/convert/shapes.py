"""What the outputs' shapes really are: read off runs, where an exporter has declared something else.

The exporters declare a size as fixed that they could not follow (the length of what an LSTM returns), and ONNX Runtime
only warns. A reader of the signature would be misled: a server, for one, would not batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from forwardpass.core.tensors import Dimension, Signature, TensorSpec

__all__ = ["SeenShapes", "Shape", "declare_outputs", "true_outputs"]

Shape: TypeAlias = tuple[Dimension, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenShapes:
    """The sizes of all inputs and outputs in one call."""

    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]


def true_outputs(signature: Signature, seen: Sequence[SeenShapes]) -> dict[str, Shape]:
    """Return the shapes of the outputs that are declared wrongly; `seen` are calls of different shapes.

    An axis that varies is named after the input axis that it follows, or else after its output.
    """
    sizes = _sizes_of_input_axes(signature, seen)
    corrected: dict[str, Shape] = {}
    for spec in signature.outputs:
        shape = _true_shape(spec, [call.outputs[spec.name] for call in seen], sizes)
        if shape != spec.shape:
            corrected[spec.name] = shape
    return corrected


def declare_outputs(path: Path, shapes: Mapping[str, Shape]) -> None:
    """Write these shapes into the file; what it says of tensors inside is dropped: it follows from the operators."""
    from forwardpass.convert.library import onnx

    model = onnx.load(str(path))
    for output in model.graph.output:
        if output.name in shapes:
            kind = output.type.tensor_type.elem_type
            output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, kind, shapes[output.name]))
    del model.graph.value_info[:]
    onnx.save(model, str(path))


def _sizes_of_input_axes(signature: Signature, seen: Sequence[SeenShapes]) -> dict[str, tuple[int, ...]]:
    """Return what every dynamic axis of the inputs measured, call by call, the batch first."""
    places = {
        dim: (spec.name, axis)
        for spec in signature.inputs
        for axis, dim in enumerate(spec.shape)
        if isinstance(dim, str)
    }
    return {dim: tuple(call.inputs[places[dim][0]][places[dim][1]] for call in seen) for dim in signature.dynamic_axes}


def _true_shape(spec: TensorSpec, observed: list[tuple[int, ...]], sizes: Mapping[str, tuple[int, ...]]) -> Shape:
    ranks = {len(shape) for shape in observed}
    if len(ranks) != 1:
        return spec.shape
    declared = spec.shape if {len(spec.shape)} == ranks else (None,) * ranks.pop()
    return tuple(
        _true_dimension(dim, tuple(shape[axis] for shape in observed), f"{spec.name}_axis{axis}", sizes)
        for axis, dim in enumerate(declared)
    )


def _true_dimension(
    declared: Dimension | None, observed: tuple[int, ...], own_name: str, sizes: Mapping[str, tuple[int, ...]]
) -> Dimension:
    if isinstance(declared, str) and sizes.get(declared, observed) == observed:
        return declared
    if set(observed) == {declared}:
        return observed[0]
    if declared is None and len(set(observed)) == 1 and not any(size == observed for size in sizes.values()):
        return observed[0]
    return next((name for name, measured in sizes.items() if measured == observed), own_name)
