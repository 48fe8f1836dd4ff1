"""Walking ONNX models: graphs inside of nodes and functions count as much as the outermost one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from forwardpass.convert.library import onnx

__all__ = ["STANDARD_DOMAINS", "all_nodes", "all_tensors", "line_of", "line_of_node", "opset_of"]

STANDARD_DOMAINS = ("", "ai.onnx")
_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_STACK_TRACE = "pkg.torch.onnx.stack_trace"
"""Where PyTorch's newer exporter notes which code a node comes from."""


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph, of local functions, and of every graph inside: branches of If, bodies of loops."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for inner in _inner_graphs(node):
            waiting.extend(inner.node)


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the constants of the model: the initialisers of all its graphs, and tensors given as attributes."""
    graphs = chain([model.graph], (inner for node in all_nodes(model) for inner in _inner_graphs(node)))
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in all_nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a model uses."""
    return max((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), default=0)


def _inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def line_of_node(node: onnx.NodeProto) -> str:
    """Return the line of the user's own code that a node comes from, as `, model.py:12`; empty if none is noted."""
    return line_of(next((entry.value for entry in node.metadata_props if entry.key == _STACK_TRACE), ""))


def line_of(trace: str) -> str:
    """Return the last line of the user's own code in a trace, as `, model.py:12`; empty if there is none."""
    lines = [match for match in _LINE.finditer(trace) if "/torch/" not in match["file"]]
    return f", {Path(lines[-1]['file']).name}:{lines[-1]['line']}" if lines else ""
