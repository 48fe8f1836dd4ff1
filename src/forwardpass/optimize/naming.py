"""Names that nodes can be picked by: a file may leave them out, or give one to several nodes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from forwardpass.optimize.library import onnx

__all__ = ["load_named", "load_structure"]

MAX_BYTES_OF_STRUCTURE = 1024
"""Constants beyond that are weights, whose values decide nothing but results."""
NUM_KEPT_STRUCTURES = 4


def load_named(path: Path) -> onnx.ModelProto:
    """Load a model and give every node a name of its own; the same file gets the same names each time."""
    model = onnx.load(str(path))
    taken: set[str] = {node.name for node in _all_nodes(model.graph)}
    seen: set[str] = set()
    for number, node in enumerate(_all_nodes(model.graph)):
        if not node.name or node.name in seen:
            node.name = _free_name(f"{node.name or node.op_type}#{number}", taken)
            taken.add(node.name)
        seen.add(node.name)
    return model


def load_structure(path: Path) -> onnx.ModelProto:
    """Load a model for its nodes, names and shapes: as `load_named` gives it, but the values of weights are missing.

    Whoever asks for the same file gets the same object, which nobody may change.
    """
    known = path.stat()
    return _load_structure(str(path), known.st_ino, known.st_mtime_ns, known.st_size)


@lru_cache(maxsize=NUM_KEPT_STRUCTURES)
def _load_structure(path: str, *version: int) -> onnx.ModelProto:
    del version  # it tells apart what was under this name before
    model = load_named(Path(path))
    for tensor in model.graph.initializer:
        if tensor.ByteSize() > MAX_BYTES_OF_STRUCTURE:
            for values in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(values)
    return model


def _free_name(wanted: str, taken: set[str]) -> str:
    while wanted in taken:
        wanted += "'"
    return wanted


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _all_nodes(inner)
