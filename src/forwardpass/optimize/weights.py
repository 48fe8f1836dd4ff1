"""Weight-only quantisation: matrices in blocks of 4 or 8 bits, activations in float at both ends of the product.

The products are ONNX Runtime's MatMulNBits with `accuracy_level` 4: it rounds each row of the activations to 8 bits,
block by block, as it goes, and multiplies integers. No calibration is needed, and no row sees another's scale. (With
the other levels it multiplies in float, restoring the weights for every call: 2 to 20 times slower from 8 rows on.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from forwardpass.core.samples import Samples
from forwardpass.optimize.blocks import Blocks, block_bytes, quantise_blocks
from forwardpass.optimize.exposing import exposing
from forwardpass.optimize.library import onnx
from forwardpass.optimize.naming import load_named
from forwardpass.optimize.sensitivity import shares_of_error
from forwardpass.optimize.writers import MATRIX_OPERATORS

__all__ = [
    "ALL_FORMS",
    "FORMS",
    "BlockStore",
    "WeightForm",
    "saved_bytes",
    "weight_errors",
    "weight_nodes",
    "write_weights",
]

CONTRIBUTED = "com.microsoft"
INTEGER_PRODUCTS = 4
"""The accuracy level of MatMulNBits."""
_IN_BLOCKS = ".blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightForm:
    """How the weights of a node are kept."""

    bits: int
    block_size: int

    def __str__(self) -> str:
        return f"{self.bits} bits in blocks of {self.block_size}"


FORMS = {
    8: (WeightForm(bits=8, block_size=64),),
    4: (WeightForm(bits=4, block_size=128), WeightForm(bits=4, block_size=32)),
}
"""By bits, the leanest and fastest first. In blocks of up to 64 in 8 bits, and of 32 in 4, a row is answered bitwise
the same in every batch (AVX-512, ONNX Runtime 1.32); in larger ones it differs in the last bits, for one row has a
kernel of its own. In 8 bits blocks of 128 would be a tenth faster with one row; with many, static INT8 is faster than
either. In 4 bits they are a quarter faster and a fifth smaller, and cost error (0.095 against 0.078 of the output),
which the metric decides."""

ALL_FORMS = tuple(form for forms in FORMS.values() for form in forms)


@dataclass(slots=True, kw_only=True, eq=False)
class BlockStore:
    """Matrices that were put into blocks before: a search writes the same ones many times."""

    is_quick: bool = False
    _known: dict[tuple[object, ...], Blocks] = field(default_factory=dict)

    def blocks(self, node: onnx.NodeProto, tensor: onnx.TensorProto, form: WeightForm) -> Blocks:
        """Return the weights of a node in a form."""
        is_transposed, alpha = _attribute(node, "transB", 0) == 1, float(_attribute(node, "alpha", 1.0))
        key = tensor.name, is_transposed, alpha, form
        if key not in self._known:
            values = onnx.numpy_helper.to_array(tensor)
            matrix = (values.T if is_transposed else values) * np.float32(alpha)
            self._known[key] = quantise_blocks(
                matrix, bits=form.bits, block_size=form.block_size, is_quick=self.is_quick
            )
        return self._known[key]


def weight_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the matrix products of an activation and a constant float matrix that MatMulNBits can stand for."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in _declared(model.graph)}
    return [
        node
        for node in model.graph.node
        if node.op_type in MATRIX_OPERATORS
        and node.input[0] not in constants
        and ranks.get(node.input[0], 2) >= 2
        and _is_float_matrix(constants.get(node.input[1]))
        and (node.op_type == "MatMul" or _is_plain_gemm(node, constants))
    ]


def saved_bytes(model: onnx.ModelProto, node: onnx.NodeProto, form: WeightForm) -> int:
    """Return the bytes that a node's weights take less in this form; negative where blocks are mostly filling."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    rows, columns = reversed(tensor.dims) if _attribute(node, "transB", 0) else tensor.dims
    return 4 * rows * columns - block_bytes(rows, columns, bits=form.bits, block_size=form.block_size)


def write_weights(source: Path, target: Path, forms: Mapping[str, WeightForm], *, store: BlockStore) -> None:
    """Write a model with the weights of the named nodes in these forms; all other nodes stay as they are."""
    model = load_named(source)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    added: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        if node.name not in forms:
            nodes.append(node)
            continue
        form = forms[node.name]
        nodes += _in_blocks(node, store.blocks(node, constants[node.input[1]], form), constants, added)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(added.values())
    _drop_unread(model, {name for node in nodes for name in _reads(node)})
    _import_contributed(model)
    onnx.save(model, str(target))


def weight_errors(
    source: Path, samples: Samples, forms: Mapping[str, WeightForm], *, store: BlockStore
) -> dict[str, float]:
    """Return the squared error of every node in its form as a share of its squared output, the greatest first.

    Beside every node stands a copy in blocks, computed as it will be: what its own rounding costs is seen, free of what
    the nodes before it have done.
    """
    model = load_named(source)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    chosen = [node for node in model.graph.node if node.name in forms]
    added: dict[str, onnx.TensorProto] = {}
    for node in chosen:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name, copy.output[0] = node.name + _IN_BLOCKS, node.output[0] + _IN_BLOCKS
        blocks = store.blocks(node, constants[node.input[1]], forms[node.name])
        place = list(model.graph.node).index(node) + 1
        for number, new in enumerate(_in_blocks(copy, blocks, constants, added)):
            model.graph.node.insert(place + number, new)
    model.graph.initializer.extend(added.values())
    _import_contributed(model)
    pairs = {node.name: (node.output[0], node.output[0] + _IN_BLOCKS) for node in chosen}
    return shares_of_error(exposing(model, [name for pair in pairs.values() for name in pair]), samples, pairs)


def _in_blocks(
    node: onnx.NodeProto, blocks: Blocks, constants: Mapping[str, onnx.TensorProto], added: dict[str, onnx.TensorProto]
) -> Iterator[onnx.NodeProto]:
    """Yield what stands for a node, and put the tensors that it reads into `added`, once for all that share them."""
    parts = {"packed": blocks.packed, "scales": blocks.scales.reshape(-1), "zeros": blocks.zero_points.reshape(-1)}
    kind = f"{blocks.bits}x{blocks.block_size}" + (".transposed" if _attribute(node, "transB", 0) else "")
    kind += f".{alpha:g}" if (alpha := float(_attribute(node, "alpha", 1.0))) != 1 else ""
    names = []
    for part, values in parts.items():
        names.append(f"{node.input[1]}.{kind}.{part}")
        if names[-1] not in added:
            added[names[-1]] = onnx.numpy_helper.from_array(values, names[-1])
    inputs = [node.input[0], *names]
    if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]:
        name = f"{node.input[2]}.flat"
        bias = onnx.numpy_helper.to_array(constants[node.input[2]]).reshape(-1)
        added[name] = onnx.numpy_helper.from_array(bias, name)
        inputs += ["", name]  # the fifth input orders groups, and nothing here is out of order
    yield onnx.helper.make_node(
        "MatMulNBits",
        inputs,
        [node.output[0]],
        name=node.name,
        domain=CONTRIBUTED,
        K=blocks.num_rows,
        N=len(blocks.scales),
        bits=blocks.bits,
        block_size=blocks.block_size,
        accuracy_level=INTEGER_PRODUCTS,
    )


def _is_float_matrix(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2


def _is_plain_gemm(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Tell whether a Gemm is a product and at most one constant number a column on top."""
    if _attribute(node, "transA", 0):
        return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    bias, weights = constants.get(node.input[2]), constants[node.input[1]]
    num_columns = weights.dims[0] if _attribute(node, "transB", 0) else weights.dims[1]
    is_row = bias is not None and bias.dims and bias.dims[-1] == num_columns == int(np.prod(bias.dims))
    return bool(is_row) and float(_attribute(node, "beta", 1.0)) == 1


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else float(onnx.helper.get_attribute_value(found))


def _declared(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    for value in (*graph.value_info, *graph.input):
        if value.type.tensor_type.HasField("shape"):
            yield value


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node reads, inside its branches, too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)
            yield from (value.name for value in graph.output)


def _drop_unread(model: onnx.ModelProto, read: set[str]) -> None:
    """Remove the float weights that nothing reads any more; what is an output as well stays."""
    read |= {value.name for value in model.graph.output}
    unread = {tensor.name for tensor in model.graph.initializer if tensor.name not in read}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name not in unread]
    inputs = [value for value in model.graph.input if value.name not in unread]
    del model.graph.initializer[:], model.graph.input[:]
    model.graph.initializer.extend(tensors)
    model.graph.input.extend(inputs)


def _import_contributed(model: onnx.ModelProto) -> None:
    if all(imported.domain != CONTRIBUTED for imported in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIBUTED, 1))
