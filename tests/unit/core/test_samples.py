"""The three splits never overlap, whatever the data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.samples import SampleGroup, Samples, SampleSplits, split_samples
from forwardpass.errors import InvalidSamples


def samples_of(values: list[int]) -> Samples:
    array = np.array(values, dtype=np.int64)
    return Samples(groups=(SampleGroup(inputs={"x": array[:, None]}, labels=array * 2),))


def values_of(samples: Samples) -> list[int]:
    return [int(value) for group in samples.groups for value in group.inputs["x"][:, 0]]


@given(st.lists(st.integers(0, 60), min_size=30, max_size=200).filter(lambda values: len(set(values)) >= 10))
def test_splitting_loses_nothing_and_never_puts_equal_samples_into_two_splits(values: list[int]) -> None:
    splits = split_samples(samples_of(values), origin="values")
    parts = [values_of(part) for part in (splits.calibration, splits.validation, splits.test)]
    assert sorted(value for part in parts for value in part) == sorted(values)
    assert not any(
        set(one) & set(other) for one, other in ((parts[0], parts[1]), (parts[1], parts[2]), (parts[0], parts[2]))
    )
    splits.check_disjoint(origin="values")


@given(st.permutations(list(range(40))))
def test_the_order_of_the_samples_does_not_change_their_split(order: list[int]) -> None:
    assert set(values_of(split_samples(samples_of(order), origin="o").test)) == set(
        values_of(split_samples(samples_of(sorted(order)), origin="o").test)
    )


def test_labels_stay_with_their_samples() -> None:
    splits = split_samples(samples_of(list(range(50))), origin="values")
    for part in (splits.calibration, splits.validation, splits.test):
        for group in part.groups:
            assert group.labels is not None
            np.testing.assert_array_equal(group.labels, group.inputs["x"][:, 0] * 2)


def test_overlapping_splits_are_refused() -> None:
    one, other = samples_of([1, 2, 3]), samples_of([3, 4])
    with pytest.raises(InvalidSamples) as caught:
        SampleSplits(calibration=one, validation=samples_of([9]), test=other).check_disjoint(origin="data")
    assert str(caught.value) == (
        "Cannot use the samples of 'data': the splits calibration and test share at least one sample. "
        "Remove it from one of them, or give one file and let forwardpass split it."
    )


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(InvalidSamples, match="3 distinct samples cannot be split"):
        split_samples(samples_of([1, 2, 3, 3, 3]), origin="data")


def test_the_head_represents_every_shape() -> None:
    groups = tuple(SampleGroup(inputs={"x": np.zeros((count, width))}) for count, width in ((50, 2), (1, 3), (20, 4)))
    assert [len(group) for group in Samples(groups=groups).head(9).groups] == [4, 1, 4]


def test_batches_keep_one_shape_and_the_limit() -> None:
    groups = tuple(SampleGroup(inputs={"x": np.zeros((count, width))}) for count, width in ((5, 2), (3, 3)))
    assert [len(batch) for batch in Samples(groups=groups).batches(2)] == [2, 2, 1, 2, 1]
