"""Names that nodes can be picked by: a file may leave them out, or give one to several nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from forwardpass.optimize.library import onnx

__all__ = ["load_named"]


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
