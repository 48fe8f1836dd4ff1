"""How long dynamic axes may get, where memory is planned beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.convert.axes import dynamic_axes
from forwardpass.convert.limits import MAX_ROWS, axis_limits, within_limits
from forwardpass.convert.parity import shape_grid
from forwardpass.core.samples import SampleGroup, Samples
from forwardpass.errors import InvalidOption


def texts(*lengths: int) -> Samples:
    return Samples(groups=tuple(SampleGroup(inputs={"ids": np.zeros((2, length), np.int64)}) for length in lengths))


@given(lengths=st.sets(st.integers(1, 50), min_size=2, max_size=5))
def test_without_a_word_everything_that_the_samples_show_fits(lengths: set[int]) -> None:
    samples = texts(*lengths)
    axes = dynamic_axes(samples)
    limits = axis_limits(samples, axes, {})
    assert limits == {"batch": MAX_ROWS, "sequence": max(lengths)}
    calls = list(shape_grid(samples))
    assert len(list(within_limits(calls, axes, limits))) == len(calls)


@given(lengths=st.sets(st.integers(2, 50), min_size=2, max_size=5), num_rows=st.integers(2, 9))
def test_what_is_asked_for_counts_and_longer_calls_are_left_out(lengths: set[int], num_rows: int) -> None:
    samples = texts(*lengths)
    axes = dynamic_axes(samples)
    limits = axis_limits(samples, axes, {"batch": num_rows, "sequence": 99})
    assert limits == {"batch": num_rows, "sequence": 99}
    calls = list(shape_grid(samples))
    assert list(within_limits(calls, axes, limits)) == [call for call in calls if len(call["ids"]) <= num_rows]


def test_an_axis_that_is_named_and_never_varies_may_double() -> None:
    samples = texts(4)
    assert axis_limits(samples, dynamic_axes(samples, {"ids": {1: "length"}}), {})["length"] == 8


def test_less_than_the_samples_need_is_refused() -> None:
    samples = texts(4, 9)
    with pytest.raises(InvalidOption, match=r"'sequence=8' for --max-size: expected at least 9, which the samples"):
        axis_limits(samples, dynamic_axes(samples), {"sequence": 8})


def test_an_axis_that_is_not_dynamic_is_refused_with_those_that_are() -> None:
    samples = texts(4, 9)
    with pytest.raises(InvalidOption, match=r"for one of the dynamic axes batch, sequence"):
        axis_limits(samples, dynamic_axes(samples), {"width": 8})
