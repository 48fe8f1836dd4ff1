from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.errors import InvalidOption
from forwardpass.loadtest.schedules import Arrivals, Phase, arrival_times, joined_phases, parse_trace

phases = st.builds(
    Phase,
    rate_per_s=st.floats(0.5, 500),
    duration_s=st.floats(0.1, 10),
    arrivals=st.sampled_from(Arrivals),
)


@given(phases, st.integers(0, 1000))
def test_times_are_ordered_within_the_phase_and_the_same_for_the_same_seed(phase: Phase, seed: int) -> None:
    times = arrival_times(phase, seed=seed)
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times < phase.duration_s)).all()
    np.testing.assert_array_equal(times, arrival_times(phase, seed=seed))


@pytest.mark.parametrize("arrivals", Arrivals)
def test_the_mean_rate_is_kept(arrivals: Arrivals) -> None:
    """A Poisson number of 20,000 is within 4 standard deviations (2.8 %) for all but a few seeds; this one is fixed."""
    times = arrival_times(Phase(rate_per_s=200, duration_s=100, arrivals=arrivals), seed=3)
    assert len(times) == pytest.approx(20_000, rel=0.03)


def test_poisson_gaps_are_exponential() -> None:
    """Kolmogorov and Smirnov: the greatest distance from the distribution is below 1.63/√n once in a hundred seeds."""
    gaps = np.sort(np.diff(arrival_times(Phase(rate_per_s=100, duration_s=200), seed=4)))
    expected = 1 - np.exp(-100 * gaps)
    seen = np.arange(1, len(gaps) + 1) / len(gaps)
    assert np.abs(seen - expected).max() < 1.63 / np.sqrt(len(gaps))


def test_bursts_come_in_the_first_fifth_of_each_second() -> None:
    times = arrival_times(Phase(rate_per_s=100, duration_s=20, arrivals=Arrivals.BURSTS), seed=5)
    assert (times % 1 < 0.2).all()
    assert set(np.floor(times)) == set(range(20))


@given(st.lists(phases, min_size=1, max_size=4), st.integers(0, 1000))
def test_phases_follow_each_other(given_phases: list[Phase], seed: int) -> None:
    times = joined_phases(tuple(given_phases), seed=seed)
    assert (np.diff(times) >= 0).all()
    assert len(times) == sum(len(arrival_times(it, seed=seed + at)) for at, it in enumerate(given_phases))


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50))
def test_a_trace_is_read_back_in_order_and_from_zero(times: list[float]) -> None:
    read = parse_trace("\n".join(["# recorded", "", *(f"{time!r}  # a note" for time in times)]), origin="trace.txt")
    ordered = np.sort(np.array(times))
    np.testing.assert_array_equal(read, ordered - ordered[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid value 't.txt with 0 times' for --trace: expected 1 to 5,000,000 times in seconds, one a line."),
        ("1\nsoon", "Invalid value 't.txt, line 2: soon' for --trace: expected one time in seconds a line."),
        ("nan", "Invalid value 't.txt, line 1: nan' for --trace: expected one time in seconds a line."),
    ],
)
def test_a_bad_trace_is_refused_in_a_sentence(text: str, message: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_trace(text, origin="t.txt")
    assert str(caught.value) == message
