"""The declared shapes of outputs become those that were seen: fixed where nothing varied, named where it did."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forwardpass.convert.shapes import SeenShapes, true_outputs
from forwardpass.core.tensors import Dimension, Signature, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("batch", "length", 4))
CALLS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=6)
DECLARED = st.lists(st.one_of(st.integers(1, 9), st.sampled_from(["batch", "length", "other"])), min_size=3, max_size=3)


def signature(*declared: Dimension) -> Signature:
    return Signature(inputs=(X,), outputs=(TensorSpec(name="y", dtype="float32", shape=declared),))


def seen(calls: list[tuple[int, int]]) -> list[SeenShapes]:
    return [SeenShapes(inputs={"x": (b, t, 4)}, outputs={"y": (b, 2 * t, 7)}) for b, t in calls]


@given(CALLS, DECLARED)
def test_what_is_declared_afterwards_holds_in_every_call_and_needs_no_second_correction(
    calls: list[tuple[int, int]], declared: list[Dimension]
) -> None:
    corrected = true_outputs(signature(*declared), seen(calls)).get("y", tuple(declared))
    for batch, length in calls:
        sizes = {"batch": batch, "length": length}
        for dim, size in zip(corrected, (batch, 2 * length, 7), strict=True):
            assert size == (sizes.get(dim, size) if isinstance(dim, str) else dim)
    assert true_outputs(signature(*corrected), seen(calls)) == {}


def test_an_axis_is_named_after_the_input_axis_that_it_follows() -> None:
    wrong = signature(2, 6, 7)
    assert true_outputs(wrong, seen([(1, 3), (2, 3), (2, 5)])) == {"y": ("batch", "y_axis1", 7)}


def test_a_shape_of_another_rank_is_replaced() -> None:
    assert true_outputs(signature("batch"), seen([(1, 3), (2, 3), (2, 5)])) == {"y": ("batch", "y_axis1", 7)}
