"""What to do about a cold start follows from what was measured, and never costs an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.core.measurement import Interval, Measurement
from forwardpass.profile import StartAdvice, StartStudy, StartTrial
from forwardpass.profile.page import render_profile_page
from tests.models import MACHINE
from tests.unit.profile.examples import example_profile
from tests.unit.profile.test_page import HOSTILE, outline


def between(low: float, high: float) -> Measurement:
    return Measurement(value=(low + high) / 2, unit="s", interval=Interval(low=low, high=high), num_repetitions=7)


def trial(saved: tuple[float, float] = (0.1, 0.2), slowdown: tuple[float, float] = (0.98, 1.02)) -> StartTrial:
    return StartTrial(
        what="weights mapped",
        how="type this",
        own_s=between(0.2, 0.3),
        saved_s=between(*saved),
        slowdown=between(*slowdown),
    )


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        (trial(), StartAdvice.TAKE),
        (replace(trial(), is_portable=False), StartAdvice.THIS_PROCESSOR),
        (replace(trial(), is_same_answer=False), StartAdvice.OTHER_ANSWERS),
        (trial(slowdown=(1.2, 1.4)), StartAdvice.SLOWER_CALLS),
        (trial(slowdown=(0.9, 1.4)), StartAdvice.TAKE),
        (trial(saved=(-0.01, 0.2)), StartAdvice.NO_GAIN),
        (trial(saved=(-0.2, -0.1)), StartAdvice.LOSS),
        (StartTrial(what="x", how="y", failure="it cannot be written"), StartAdvice.FAILED),
    ],
)
def test_only_what_surely_saves_and_costs_nothing_is_to_be_taken(found: StartTrial, advice: StartAdvice) -> None:
    assert found.advice is advice


spans = st.tuples(st.floats(-1, 1), st.floats(0, 1)).map(lambda span: (span[0], span[0] + span[1]))
trials = st.builds(
    lambda saved, slowdown, same, portable: replace(
        trial(saved, (abs(slowdown[0]), abs(slowdown[0]) + 0.1)), is_same_answer=same, is_portable=portable
    ),
    spans, spans, st.booleans(), st.booleans(),
)  # fmt: skip


@given(st.lists(trials, max_size=6))
def test_the_best_way_answers_the_same_and_saves_most_of_those_to_take(found: list[StartTrial]) -> None:
    study = StartStudy(as_it_is_s=between(1, 2), model_s=between(0.5, 1), trials=tuple(found))
    takeable = [it for it in found if it.advice is StartAdvice.TAKE]
    assert (study.best is None) == (not takeable)
    if study.best is not None:
        assert study.best.is_same_answer
        assert study.best.saved_s is not None
        assert all(it.saved_s is not None and it.saved_s.value <= study.best.saved_s.value for it in takeable)
    assert sorted(map(id, study.ordered)) == sorted(map(id, found))


def test_the_page_shows_every_way_with_its_words_and_is_safe() -> None:
    failed = StartTrial(what="own format", how="", failure=HOSTILE)
    study = StartStudy(
        as_it_is_s=between(0.4, 0.5), model_s=between(0.2, 0.3), trials=(trial(), failed), note="Keep processes alive."
    )
    page = outline(render_profile_page([replace(example_profile(), starts=study)], MACHINE, "shop"))
    for words in (
        "weights mapped",
        "150 ms",
        "1.00× as long",
        "same bytes",
        "take it",
        HOSTILE,
        "Keep processes alive.",
    ):
        assert words in page.text.replace("\u00a0", " ")
    assert "How to cut the cold start" not in render_profile_page([example_profile()], MACHINE, "shop")
