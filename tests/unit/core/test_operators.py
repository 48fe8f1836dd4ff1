"""Counting operations, and sums over a graph."""

from __future__ import annotations

import pytest

from forwardpass.core.operators import NodeTrace, Roof, Shape, break_down, count_flops


def node(operator: str, inputs: tuple[Shape, ...], output: Shape, *seconds: float, name: str = "n") -> NodeTrace:
    return NodeTrace(
        name=name, operator=operator, seconds=seconds, input_shapes=inputs, output_shapes=(output,), num_bytes=1000
    )


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "flops"),
    [
        ("MatMul", ((2, 5, 64, 32), (2, 5, 32, 16)), (2, 5, 64, 16), 2 * 2 * 5 * 64 * 32 * 16),
        ("FusedMatMul", ((2, 64, 32), (2, 16, 32)), (2, 64, 16), 2 * 2 * 64 * 32 * 16),
        ("Gemm", ((8, 64), (64, 10), (10,)), (8, 10), 2 * 8 * 64 * 10),
        ("MatMulInteger", ((8, 64),), (8, 10), 2 * 8 * 64 * 10),  # packed weights have no shape
        ("Conv", ((1, 16, 28, 28), (32, 16, 3, 3)), (1, 32, 28, 28), 2 * 32 * 28 * 28 * 16 * 9),
        ("Conv", ((1, 16, 28, 28), (16, 1, 3, 3)), (1, 16, 28, 28), 2 * 16 * 28 * 28 * 9),  # depthwise
        ("QLinearConv", ((1, 4, 9, 9), (), (), (8, 4, 3, 3)), (1, 8, 7, 7), 2 * 8 * 49 * 4 * 9),
        ("Relu", ((8, 64),), (8, 64), 0),
        ("MatMul", ((0, 64), (64, 10)), (0, 10), 0),
    ],
)
def test_operations_of_products_and_convolutions(
    operator: str, inputs: tuple[Shape, ...], output: Shape, flops: int
) -> None:
    assert count_flops(node(operator, inputs, output)) == flops


def test_the_dearest_come_first_and_a_node_at_the_roof_is_told_so() -> None:
    product = node("MatMul", ((100, 100), (100, 100)), (100, 100), 3.0, 2.0, 9.0, name="product")
    cheap = node("Relu", ((1, 1000),), (1, 1000), 1.0, 1.0, 1.0, name="cheap")
    found = break_down([cheap, product], Roof(flops_per_s=1e6, bytes_per_s=1e4), num_threads=1, batch_size=1)
    assert [it.name for it in found.nodes] == ["product", "cheap"]
    assert (found.total_s, found.flops) == (4.0, 2_000_000)
    assert found.nodes[0].share == 0.75
    assert found.nodes[0].share_of_roof == pytest.approx(2 / 3)  # 2 Mflop at 1 Mflop/s are 2 of its 3 seconds
    assert found.nodes[1].share_of_roof == pytest.approx(0.1)  # 1000 bytes at 10 kB/s
    assert [(it.operator, it.num_nodes) for it in found.operators] == [("MatMul", 1), ("Relu", 1)]
