"""The choice: nothing below the floor, nothing unproved, and the same whatever else was tried in vain."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.measurement import Interval, Measurement
from forwardpass.optimize import Target, Verdict
from forwardpass.optimize.choice import MIN_GAIN, Choice, Facts, choose

FLOOR = 0.9
BASELINE = "float"


def gain(low: float, value: float, high: float) -> Measurement:
    return Measurement(value=value, unit="ratio", interval=Interval(low=low, high=high), num_repetitions=9)


@st.composite
def some_facts(draw: st.DrawFn, *, name: str) -> Facts:
    low, value, high = sorted(draw(st.tuples(*[st.floats(0.2, 5.0)] * 3)))
    return Facts(
        name=name,
        gain=gain(low, value, high),
        score=draw(st.floats(0.5, 1.0)),
        latency_s=draw(st.floats(1e-4, 1.0)),
        size_bytes=draw(st.floats(1e3, 1e9)),
        can_be_served=draw(st.booleans()),
        shares_batches=draw(st.booleans()),
    )


BASE = Facts(name=BASELINE, gain=gain(1, 1, 1), score=0.95, latency_s=0.01, size_bytes=1e6)
CANDIDATES = st.integers(0, 6).flatmap(lambda count: st.tuples(*[some_facts(name=f"v{at}") for at in range(count)]))


def decide(candidates: tuple[Facts, ...]) -> Choice:
    return choose(
        (BASE, *candidates),
        baseline=BASELINE,
        floor_score=FLOOR,
        higher_is_better=True,
        target=Target.LATENCY,
        metric="accuracy",
    )


@given(CANDIDATES)
def test_what_is_chosen_is_above_the_floor_and_surely_better_or_the_baseline(candidates: tuple[Facts, ...]) -> None:
    choice = decide(candidates)
    winner = next(facts for facts in (BASE, *candidates) if facts.name == choice.chosen)
    assert winner.score >= FLOOR
    assert winner.can_be_served
    assert winner is BASE or winner.gain.interval.low > MIN_GAIN
    sure = [f for f in candidates if f.score >= FLOOR and f.can_be_served and f.gain.interval.low > MIN_GAIN]
    assert (winner is BASE) == (not sure)
    assert all(winner.gain.value * MIN_GAIN >= facts.gain.value for facts in sure)


@given(CANDIDATES)
def test_every_candidate_is_judged_once_with_a_reason(candidates: tuple[Facts, ...]) -> None:
    choice = decide(candidates)
    assert sorted(item.name for item in choice.judgements) == sorted(facts.name for facts in (BASE, *candidates))
    assert [item.name for item in choice.judgements if item.verdict is Verdict.CHOSEN] == [choice.chosen]
    assert all(item.reason for item in choice.judgements)
    below = {facts.name for facts in candidates if facts.score < FLOOR and facts.can_be_served}
    assert below == {item.name for item in choice.judgements if "is below the limit" in item.reason}


@given(CANDIDATES, some_facts(name="useless"))
def test_a_candidate_that_cannot_win_changes_nothing(candidates: tuple[Facts, ...], useless: Facts) -> None:
    assert decide((*candidates, replace(useless, score=0.1))).chosen == decide(candidates).chosen
    assert decide((*candidates, replace(useless, gain=gain(0.5, 0.9, 1.5)))).chosen == decide(candidates).chosen


def test_among_gains_that_noise_cannot_tell_apart_the_one_that_may_share_batches_wins() -> None:
    alone = Facts(
        name="alone", gain=gain(1.6, 1.8, 2.0), score=0.99, latency_s=0.005, size_bytes=1e5, shares_batches=False
    )
    together = Facts(name="together", gain=gain(1.5, 1.7, 1.9), score=0.95, latency_s=0.0055, size_bytes=1e5)
    exact = replace(together, name="exact", score=0.98)
    assert decide((alone, together)).chosen == "together"
    assert decide((alone, together, exact)).chosen == "exact"
    assert decide((replace(alone, gain=gain(2.5, 2.6, 2.7)), together)).chosen == "alone"


def test_an_error_is_better_when_it_is_lower() -> None:
    fast = Facts(name="fast", gain=gain(2, 2, 2), score=0.05, latency_s=0.005, size_bytes=1e6)
    chosen = choose(
        (replace(BASE, score=0.0), fast),
        baseline=BASELINE,
        floor_score=0.01,
        higher_is_better=False,
        target=Target.LATENCY,
        metric="relative-error",
    )
    assert chosen.chosen == BASELINE
    assert "relative-error 0.05 is above the limit of 0.01" in {item.reason for item in chosen.judgements}


def test_a_source_that_is_faster_than_everything_is_named() -> None:
    source = Facts(
        name="source", gain=gain(1.5, 1.6, 1.7), score=1.0, latency_s=0.006, size_bytes=0, can_be_served=False
    )
    assert "consider staying with its runtime" in decide((source,)).reason


def test_a_source_without_a_file_is_neither_smaller_nor_larger_than_one() -> None:
    source = Facts(name="source", gain=gain(1, 1, 1), score=1.0, latency_s=0.006, size_bytes=0, can_be_served=False)
    choice = choose(
        (BASE, source),
        baseline=BASELINE,
        floor_score=FLOOR,
        higher_is_better=True,
        target=Target.SIZE,
        metric="accuracy",
    )
    assert "consider staying" not in choice.reason
    (judgement,) = (it for it in choice.judgements if it.name == "source")
    assert judgement.reason == "the source; it has no file whose size could be compared"


def test_a_float_model_below_the_floor_is_kept_only_with_a_word_about_it() -> None:
    chosen = choose(
        (replace(BASE, score=0.8),),
        baseline=BASELINE,
        floor_score=FLOOR,
        higher_is_better=True,
        target=Target.LATENCY,
        metric="accuracy",
    )
    assert chosen.chosen == BASELINE
    assert chosen.reason.endswith("although its own accuracy of 0.8 is not within it")
