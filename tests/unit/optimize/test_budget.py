"""Measuring is fitted into the time that is left: it becomes shorter, then covers fewer variants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.samples import SampleGroup, Samples, SampleSplits
from forwardpass.errors import InvalidOption
from forwardpass.optimize.budget import Budget, Pace, fit_profile, parse_duration_s, profile_s
from forwardpass.optimize.sampling import LEAST_SAMPLES, fit_splits
from forwardpass.optimize.values import OptimizeSettings
from forwardpass.profile import ProfileSettings

PACES = st.builds(Pace, load_s=st.floats(0, 20), call_s=st.floats(0, 5))
WANTED = st.sampled_from([ProfileSettings(thread_counts=(1, 2)), ProfileSettings.quick()])


@given(WANTED, st.integers(1, 12), st.floats(-5, 2000), PACES)
def test_what_is_measured_fits_into_the_time(
    wanted: ProfileSettings, num_variants: int, left_s: float, pace: Pace
) -> None:
    settings, num_measured = fit_profile(wanted, num_variants, left_s, pace)
    assert 0 <= num_measured <= num_variants
    assert num_measured * profile_s(settings, pace) <= max(left_s, 0)
    assert profile_s(settings, pace) <= profile_s(wanted, pace)
    assert set(settings.batch_sizes) <= set(wanted.batch_sizes)


@given(WANTED, st.integers(1, 12), PACES)
def test_without_an_end_everything_is_measured_as_asked(wanted: ProfileSettings, num_variants: int, pace: Pace) -> None:
    assert fit_profile(wanted, num_variants, float("inf"), pace) == (wanted, num_variants)


def samples(num_samples: int, *, first: int = 0) -> Samples:
    values = np.arange(first, first + num_samples, dtype=np.float32).reshape(-1, 1)
    return Samples(groups=(SampleGroup(inputs={"x": values[::2]}), SampleGroup(inputs={"x": values[1::2]})))


SPLITS = SampleSplits(calibration=samples(400), validation=samples(300, first=400), test=samples(100, first=700))


@given(st.floats(1, 5000), st.floats(0, 5))
def test_samples_are_left_out_only_where_a_slow_model_needs_it_and_each_split_says_so(
    total_s: float, call_s: float
) -> None:
    settings = OptimizeSettings(max_calibration_samples=200)
    used = fit_splits(SPLITS, settings, Budget(total_s=total_s), Pace(call_s=call_s))
    sizes = {name: len(getattr(used.splits, name)) for name in LEAST_SAMPLES}
    whole = {"calibration": 200, "validation": 300, "test": 100}
    shortened = [name for name in whole if sizes[name] < whole[name]]
    assert [line.split()[3] for line in used.left_out] == shortened
    assert all(LEAST_SAMPLES[name] <= sizes[name] <= whole[name] for name in whole)


def test_without_a_budget_all_samples_are_used() -> None:
    used = fit_splits(SPLITS, OptimizeSettings(), Budget(total_s=None), Pace(call_s=60))
    assert (len(used.splits.calibration), len(used.splits.validation), used.left_out) == (256, 300, ())


@pytest.mark.parametrize("text", ["", "10", "-5m", "0s", "1 day", "m"])
def test_a_budget_that_does_not_parse_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidOption, match="expected a time, such as 90s, 10m or 1h"):
        parse_duration_s(text)


def test_budgets_in_every_unit() -> None:
    assert [parse_duration_s(text) for text in ("90s", "1.5m", "1h")] == [90, 90, 3600]
