"""Measuring is fitted into the time that is left: it becomes shorter, then covers fewer variants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.errors import InvalidOption
from forwardpass.optimize.budget import fit_profile, parse_duration_s, profile_s
from forwardpass.profile import ProfileSettings

WANTED = st.sampled_from([ProfileSettings(thread_counts=(1, 2)), ProfileSettings.quick()])


@given(WANTED, st.integers(1, 12), st.floats(-5, 2000))
def test_what_is_measured_fits_into_the_time(wanted: ProfileSettings, num_variants: int, left_s: float) -> None:
    settings, num_measured = fit_profile(wanted, num_variants, left_s)
    assert 0 <= num_measured <= num_variants
    assert num_measured * profile_s(settings) <= max(left_s, 0)
    assert profile_s(settings) <= profile_s(wanted)
    assert set(settings.batch_sizes) <= set(wanted.batch_sizes)


@given(WANTED, st.integers(1, 12))
def test_without_an_end_everything_is_measured_as_asked(wanted: ProfileSettings, num_variants: int) -> None:
    assert fit_profile(wanted, num_variants, float("inf")) == (wanted, num_variants)


@pytest.mark.parametrize("text", ["", "10", "-5m", "0s", "1 day", "m"])
def test_a_budget_that_does_not_parse_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidOption, match="expected a time, such as 90s, 10m or 1h"):
        parse_duration_s(text)


def test_budgets_in_every_unit() -> None:
    assert [parse_duration_s(text) for text in ("90s", "1.5m", "1h")] == [90, 90, 3600]
