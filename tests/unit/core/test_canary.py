"""A canary that is like the stable version stays at the stated error rate; one that is grossly worse never does."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from forwardpass.core.canary import SLOT_S, CanaryGate, CanaryLimits, Outcome, Side, Verdict, spread_probability

BAD = st.sampled_from([Outcome.SLOW, Outcome.FAILED, Outcome.NOT_FINITE])


def trial(
    gate: CanaryGate,
    *,
    seed: int,
    num_requests: int,
    rates: Mapping[Side, float],
    outcome: Outcome = Outcome.SLOW,
    canary_share: float = 0.5,
    gap_s: float = 2 * SLOT_S,
) -> tuple[int, Verdict | None]:
    """Give requests to the sides by chance; return after how many there was a verdict, and which."""
    chance = random.Random(seed)
    for number in range(num_requests):
        side = Side.CANARY if chance.random() < canary_share else Side.STABLE
        became = outcome if chance.random() < rates[side] else Outcome.GOOD
        if (verdict := gate.observe(side, became, now_s=number * gap_s)) is not None:
            return number + 1, verdict
    return num_requests, None


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 40), st.integers(1, 40))
def test_the_probability_is_fishers(bad: int, good: int, other_bad: int, other_good: int) -> None:
    table = [[bad, good], [other_bad, other_good]]
    told = spread_probability(bad, bad + good, other_bad, other_bad + other_good)
    assert told == pytest.approx(fisher_exact(table, alternative="greater").pvalue, abs=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.0, 1.0), st.floats(0.05, 0.95), st.integers(0, 2**32), BAD)
def test_a_version_like_the_stable_one_is_taken_out_no_more_often_than_stated(
    rate: float, canary_share: float, seed: int, outcome: Outcome
) -> None:
    """At 5 % and 60 trials, more than 12 are less likely than 1 in 25,000 even if the whole rate were used up."""
    num_taken_out = 0
    for number in range(60):
        gate = CanaryGate(CanaryLimits(error_rate=0.05, tolerance=0.0))
        rates = dict.fromkeys(Side, rate)
        _, verdict = trial(
            gate, seed=seed + number, num_requests=400, rates=rates, outcome=outcome, canary_share=canary_share
        )
        num_taken_out += verdict is not None
    assert num_taken_out <= 12


@settings(max_examples=40, deadline=None)
@given(st.floats(0.6, 1.0), st.floats(0.0, 0.05), st.floats(0.1, 0.5), st.integers(0, 2**32), BAD)
def test_a_gross_difference_is_always_caught(
    canary: float, stable: float, canary_share: float, seed: int, outcome: Outcome
) -> None:
    rates = {Side.CANARY: canary, Side.STABLE: stable}
    num_requests, verdict = trial(
        CanaryGate(CanaryLimits()),
        seed=seed,
        num_requests=1000,
        rates=rates,
        outcome=outcome,
        canary_share=canary_share,
    )
    assert verdict is not None
    assert verdict.outcome is outcome
    assert num_requests <= 1000


def test_one_that_is_always_wrong_is_out_after_eight_of_its_answers() -> None:
    gate = CanaryGate(CanaryLimits())
    said = []
    for turn in range(20):
        for at, side in enumerate(Side):
            outcome = Outcome.NOT_FINITE if side is Side.CANARY else Outcome.GOOD
            said.append(gate.observe(side, outcome, now_s=turn + at / 2))
    first = next(number for number, verdict in enumerate(said) if verdict)
    assert first <= 2 * 9
    assert str(said[first]) == (
        "100% of its requests were answered with values that are not finite, 0% of the stable version's "
        "(8 observations)"
    )


def test_what_fails_as_one_batch_is_one_observation() -> None:
    """Thirty requests of one slow batch are one piece of bad luck, not thirty."""
    gate = CanaryGate(CanaryLimits())
    for turn in range(30):
        assert gate.observe(Side.STABLE, Outcome.GOOD, now_s=float(turn)) is None
    for turn in range(3):
        for _ in range(30):
            assert gate.observe(Side.CANARY, Outcome.SLOW, now_s=30.0 + turn) is None
    for turn in range(100):
        assert gate.observe(Side.CANARY, Outcome.GOOD, now_s=40.0 + turn) is None


def test_a_difference_within_the_tolerance_stays() -> None:
    rates = {Side.CANARY: 0.5, Side.STABLE: 0.2}
    assert trial(CanaryGate(CanaryLimits(tolerance=0.6)), seed=1, num_requests=3000, rates=rates)[1] is None
    assert trial(CanaryGate(CanaryLimits(tolerance=0.1)), seed=1, num_requests=3000, rates=rates)[1] is not None
