"""Where the time of a call goes: nodes of a graph, what they compute and move, and how near the roof they are.

The roof is what this machine was seen to do: a large matrix multiplication in the same runtime, and copying memory. A
node cannot be faster than the slower of the two would be for its work (Williams, Waterman and Patterson, "Roofline",
2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from statistics import median
from typing import TypeAlias

__all__ = ["NodeCost", "NodeTrace", "OperatorBreakdown", "OperatorCost", "Roof", "break_down", "count_flops"]

Shape: TypeAlias = tuple[int, ...]

MATRIX_OPERATORS = {
    "DynamicQuantizeMatMul",
    "FusedGemm",
    "FusedMatMul",
    "Gemm",
    "MatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "QGemm",
    "QLinearMatMul",
}
CONVOLUTIONS = {"Conv", "ConvInteger", "FusedConv", "NhwcFusedConv", "QLinearConv"}
WEIGHT_AT = {"QLinearConv": 3}
"""Which input of a convolution holds the weights; the second, unless it is named here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTrace:
    """One node of a graph as it ran: how long in each call, and the shapes and bytes that went in and out."""

    name: str
    operator: str
    seconds: tuple[float, ...]
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    num_bytes: int
    """Of the inputs, weights among them, and the outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """What the machine was seen to do with a number of threads: float32 operations, and bytes read or written."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCost:
    """What a node costs in a call. `roof_s` is the least that the machine would need for the same work."""

    name: str
    operator: str
    p50_s: float
    share: float
    """Of the time of all nodes, from 0 to 1."""
    flops: int
    num_bytes: int
    roof_s: float
    output_shape: Shape

    @property
    def share_of_roof(self) -> float:
        """How near it comes to the machine's roof: 1 is as fast as can be."""
        return min(self.roof_s / self.p50_s, 1.0) if self.p50_s else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCost:
    """What all nodes of one operator cost together."""

    operator: str
    num_nodes: int
    total_s: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorBreakdown:
    """The nodes of a graph, dearest first. The runtime notes every node, so the sum is more than an ordinary call."""

    num_threads: int
    batch_size: int
    nodes: tuple[NodeCost, ...]
    operators: tuple[OperatorCost, ...]
    roof: Roof

    @property
    def total_s(self) -> float:
        """Seconds of all nodes in a call."""
        return sum(node.p50_s for node in self.nodes)

    @property
    def flops(self) -> int:
        """Multiplications and additions in matrix products and convolutions, for a call."""
        return sum(node.flops for node in self.nodes)


def count_flops(node: NodeTrace) -> int:
    """Return the multiplications and additions of a matrix product or a convolution; 0 for everything else.

    Both count: a product of [m, k] and [k, n] is 2·m·k·n.

    >>> count_flops(NodeTrace(name="fc", operator="MatMul", seconds=(), num_bytes=0,
    ...                       input_shapes=((8, 64), (64, 10)), output_shapes=((8, 10),)))
    10240
    """
    if not node.output_shapes or not node.input_shapes:
        return 0
    output, first = prod(node.output_shapes[0]), node.input_shapes[0]
    if node.operator in MATRIX_OPERATORS and node.output_shapes[0] and output:
        num_rows = output // node.output_shapes[0][-1]
        return 2 * output * (prod(first) // num_rows)
    at = WEIGHT_AT.get(node.operator, 1)
    if node.operator in CONVOLUTIONS and len(node.input_shapes) > at and node.input_shapes[at]:
        weights = node.input_shapes[at]
        return 2 * output * (prod(weights) // weights[0])
    return 0


def break_down(traces: Sequence[NodeTrace], roof: Roof, *, num_threads: int, batch_size: int) -> OperatorBreakdown:
    """Put the nodes in order of what they cost, and sum up by operator."""
    medians = [median(trace.seconds) for trace in traces]
    total_s = sum(medians) or 1.0
    nodes = [_cost(trace, p50_s, total_s, roof) for trace, p50_s in zip(traces, medians, strict=True)]
    nodes.sort(key=lambda node: -node.p50_s)
    by_operator = groupby(sorted(nodes, key=lambda node: node.operator), key=lambda node: node.operator)
    operators = [_sum_up(operator, list(group)) for operator, group in by_operator]
    return OperatorBreakdown(
        num_threads=num_threads,
        batch_size=batch_size,
        nodes=tuple(nodes),
        operators=tuple(sorted(operators, key=lambda cost: -cost.total_s)),
        roof=roof,
    )


def _cost(trace: NodeTrace, p50_s: float, total_s: float, roof: Roof) -> NodeCost:
    flops = count_flops(trace)
    return NodeCost(
        name=trace.name,
        operator=trace.operator,
        p50_s=p50_s,
        share=p50_s / total_s,
        flops=flops,
        num_bytes=trace.num_bytes,
        roof_s=max(flops / roof.flops_per_s, trace.num_bytes / roof.bytes_per_s),
        output_shape=trace.output_shapes[0] if trace.output_shapes else (),
    )


def _sum_up(operator: str, nodes: Sequence[NodeCost]) -> OperatorCost:
    return OperatorCost(
        operator=operator,
        num_nodes=len(nodes),
        total_s=sum(node.p50_s for node in nodes),
        share=sum(node.share for node in nodes),
    )
