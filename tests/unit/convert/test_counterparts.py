"""The first value that another form of a model does not have: by name, and where there are no names by what it is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.convert.counterparts import InnerValue, first_different, first_without_counterpart, has_counterpart
from forwardpass.core.tensors import Array

TOLERANCE = 1e-4


def chain(length: int, seed: int) -> list[InnerValue]:
    """Return a chain of nodes `n0`, `n1`, … from the input `x`, each computed from the one before it."""
    generator = np.random.default_rng(seed)
    return [
        InnerValue(
            name=f"n{at}",
            node=f"n{at}",
            inputs=("x" if at == 0 else f"n{at - 1}", f"weights{at}"),
            array=generator.standard_normal((2, 3, 4)).astype(np.float32),
        )
        for at in range(length)
    ]


def laid_out_anew(array: Array, generator: np.random.Generator) -> Array:
    order = generator.permutation(array.ndim)
    moved = np.ascontiguousarray(array.transpose(order))
    return moved.reshape(moved.shape[0], -1) if generator.integers(2) else moved


@given(length=st.integers(2, 8), seed=st.integers(0, 2**16), data=st.data())
def test_the_broken_node_is_named_whatever_was_fused_before_it(length: int, seed: int, data: st.DataObject) -> None:
    values = chain(length, seed)
    broken = data.draw(st.integers(0, length - 1))
    kept = {broken - 1} | data.draw(st.sets(st.integers(0, max(0, broken - 1))))  # the last good one shows
    generator = np.random.default_rng(seed + 1)
    found = [laid_out_anew(values[at].array, generator) for at in sorted(kept) if 0 <= at < broken]
    found += [value.array + generator.standard_normal(value.array.shape) for value in values[broken:]]
    assert first_without_counterpart(values, ["x"], found, tolerance=TOLERANCE) == f"n{broken}"


@given(length=st.integers(1, 8), seed=st.integers(0, 2**16), data=st.data())
def test_nothing_is_named_where_the_end_agrees(length: int, seed: int, data: st.DataObject) -> None:
    values = chain(length, seed)
    kept = {length - 1} | data.draw(st.sets(st.integers(0, length - 1)))
    generator = np.random.default_rng(seed)
    found = [laid_out_anew(values[at].array, generator) for at in sorted(kept)]
    assert first_without_counterpart(values, ["x"], found, tolerance=TOLERANCE) == ""


def test_constants_and_sizes_are_never_named() -> None:
    good, bad = chain(2, seed=0)
    constant = InnerValue(name="c", node="constant", inputs=("w",), array=np.arange(6, dtype=np.float32))
    sizes = InnerValue(name="s", node="sizes", inputs=("x",), array=np.array([2, 3]))
    assert first_without_counterpart([constant, sizes, good, bad], ["x"], [good.array], tolerance=TOLERANCE) == "n1"


def test_by_names_the_first_that_differs_counts_and_others_are_passed_over() -> None:
    values = chain(4, seed=0)
    found = {value.name: value.array for value in values if value.name != "n1"}
    assert first_different(values, found, tolerance=TOLERANCE) == ""
    found["n2"] = found["n2"] * 1.01
    found["n3"] = found["n3"] * 2
    assert first_different(values, found, tolerance=TOLERANCE) == "n2"
    found["n0"] = np.zeros((1, 1))  # something else that has the name
    assert first_different(values, found, tolerance=TOLERANCE) == "n2"


def test_zeros_prove_nothing() -> None:
    assert not has_counterpart(np.zeros((2, 2), np.float32), [np.zeros((2, 2), np.float32)], tolerance=TOLERANCE)
