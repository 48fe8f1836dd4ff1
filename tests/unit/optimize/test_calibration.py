"""Ranges found in a stream are those of the whole data, however it is cut."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forwardpass.core.tensors import Array
from forwardpass.optimize.calibration import (
    NUM_BINS,
    PERCENTILE,
    CalibrationMethod,
    Range,
    TensorHistogram,
    calibrate,
    choose_range,
    convergence,
)

VALUES = hnp.arrays(np.float32, st.integers(1, 400), elements=st.floats(-100, 100, width=32))


def histogram(values: Array, cuts: list[int]) -> TensorHistogram:
    parts = [part for part in np.split(values, sorted(cut % len(values) for cut in cuts)) if len(part)]
    return calibrated(parts)


def calibrated(calls: Iterable[Array]) -> TensorHistogram:
    kept = list(calls)
    return calibrate(lambda look: (look({"x": values}) for values in kept))["x"]


@given(VALUES, st.lists(st.integers(0, 1000), max_size=5))
def test_cutting_the_data_differently_changes_nothing(values: Array, cuts: list[int]) -> None:
    whole, cut = histogram(values, []), histogram(values, cuts)
    assert (whole.low, whole.high) == (cut.low, cut.high) == (values.min(), values.max())
    assert whole.counts is not None
    np.testing.assert_array_equal(whole.counts, cut.counts)
    assert whole.counts.sum() == len(values)


@given(VALUES)
def test_minmax_is_exact_and_every_range_holds_zero_inside_it(values: Array) -> None:
    found = histogram(values, [])
    full = choose_range(found, CalibrationMethod.MINMAX)
    assert full == Range(low=min(float(values.min()), 0.0), high=max(float(values.max()), 0.0))
    for method in CalibrationMethod:
        chosen = choose_range(found, method)
        assert full.low <= chosen.low <= 0.0 <= chosen.high <= full.high


def test_the_percentile_is_that_of_the_values_up_to_one_bin() -> None:
    values = np.random.default_rng(4).standard_normal(200_000).astype(np.float32)
    chosen = choose_range(histogram(values, [5, 77, 90_000]), CalibrationMethod.PERCENTILE)
    rare = (100 - PERCENTILE) / 2
    width = (values.max() - values.min()) / NUM_BINS
    assert abs(chosen.low - np.percentile(values, rare)) <= width
    assert abs(chosen.high - np.percentile(values, 100 - rare)) <= width


def test_one_outlier_does_not_make_the_scale_coarse_for_all_others() -> None:
    values = np.append(np.random.default_rng(4).standard_normal(50_000), 1000.0).astype(np.float32)
    found = histogram(values, [])
    assert choose_range(found, CalibrationMethod.MINMAX).high == 1000.0
    assert choose_range(found, CalibrationMethod.PERCENTILE).high < 10
    assert choose_range(found, CalibrationMethod.MSE).high < 1000.0


@given(st.lists(VALUES, min_size=1, max_size=40), st.sampled_from(CalibrationMethod))
def test_the_curve_of_convergence_ends_at_zero_and_that_of_all_values_only_falls(
    calls: list[Array], method: CalibrationMethod
) -> None:
    found = calibrated(calls)
    points = convergence([found], method)
    assert [point.num_calls for point in points] == sorted(
        {*(1 << e for e in range(6) if 1 << e <= len(calls)), len(calls)}
    )
    assert points[-1].distance == 0
    if method is CalibrationMethod.MINMAX:
        distances = [point.distance for point in points]
        assert distances == sorted(distances, reverse=True)


def test_a_stream_that_repeats_itself_has_settled_and_one_that_grows_has_not() -> None:
    values = np.random.default_rng(3).standard_normal(500).astype(np.float32)
    steady = calibrated([values] * 64)
    growing = calibrated(values * scale for scale in range(1, 65))
    for method in CalibrationMethod:
        assert max(point.distance for point in convergence([steady], method)) < 1e-3
        assert convergence([growing], method)[-2].distance > 0.3
