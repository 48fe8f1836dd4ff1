"""What is decided without a network: channel counts, the order of steps, layers of a student, words of the user."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.errors import InvalidOption
from forwardpass.lean import PruneSettings, SparsitySettings, StudentSettings, TrainSettings
from forwardpass.lean.planning import (
    Trial,
    channel_levels,
    channels_left,
    fewest_notches,
    kept_layers,
    learning_rate_factor,
    most_notches,
    order_notches,
)

COUNTS = st.integers(1, 300)


@given(num_channels=COUNTS, round_to=st.integers(1, 32), max_levels=st.integers(1, 9))
def test_levels_fall_are_multiples_and_leave_something(num_channels: int, round_to: int, max_levels: int) -> None:
    levels = channel_levels(num_channels, round_to=round_to, max_levels=max_levels)
    assert list(levels) == sorted(set(levels), reverse=True)
    assert all(level % round_to == 0 and 0 < level < num_channels for level in levels)
    assert len(levels) <= max_levels
    assert bool(levels) == (num_channels > round_to)


@st.composite
def trials(draw: st.DrawFn) -> list[Trial]:
    made = []
    for group in draw(st.sets(st.sampled_from("abcd"), min_size=1)):
        for num_channels in draw(st.sets(st.integers(1, 9), min_size=1)):
            error = draw(st.floats(0, 1))
            left = draw(st.integers(0, 1000))
            made.append(Trial(group=group, num_channels=num_channels, error=error, num_multiply_adds=left))
    return draw(st.permutations(made))


@given(made=trials())
def test_every_step_is_taken_once_and_a_group_only_shrinks(made: list[Trial]) -> None:
    notches = order_notches(made, num_multiply_adds=1000)
    assert sorted((it.group, it.num_channels) for it in notches) == sorted((it.group, it.num_channels) for it in made)
    for group in {trial.group for trial in made}:
        counts = [notch.num_channels for notch in notches if notch.group == group]
        assert counts == sorted(counts, reverse=True)
        assert channels_left(notches)[group] == counts[-1]


def test_what_costs_least_for_what_it_saves_goes_first() -> None:
    made = [
        Trial(group="cheap", num_channels=8, error=0.1, num_multiply_adds=500),
        Trial(group="dear", num_channels=8, error=0.1, num_multiply_adds=900),
        Trial(group="useless", num_channels=8, error=0.0, num_multiply_adds=1000),
    ]
    assert [it.group for it in order_notches(made, num_multiply_adds=1000)] == ["cheap", "dear", "useless"]


@given(num=st.integers(0, 200), limit=st.integers(0, 220))
def test_both_searches_find_the_edge(num: int, limit: int) -> None:
    assert fewest_notches(num, lambda number: number >= limit) == (limit if limit <= num else None)
    assert most_notches(num, lambda number: number <= limit) == min(num, limit)


@given(num_layers=st.integers(1, 60), share=st.floats(0.01, 1))
def test_a_student_keeps_distinct_layers_and_always_the_last(num_layers: int, share: float) -> None:
    num_kept = max(1, round(num_layers * share))
    kept = kept_layers(num_layers, num_kept)
    assert list(kept) == sorted(set(kept))
    assert len(kept) == num_kept
    assert kept[-1] == num_layers - 1


@given(num_steps=st.integers(1, 500))
def test_the_rate_rises_once_and_then_falls(num_steps: int) -> None:
    factors = [learning_rate_factor(step, num_steps) for step in range(num_steps)]
    top = factors.index(max(factors))
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


@pytest.mark.parametrize("text", ["50", "0%", "100%", "-5%", "half", "nan%"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    sentence = f"Invalid value '{text}' for --prune: expected a share of the multiply-adds such as 50%, or 'floor'."
    with pytest.raises(InvalidOption, match=re.escape(sentence)):
        PruneSettings.parse(text)
    with pytest.raises(InvalidOption, match="for --sparsity: expected a share of the weights such as 80%"):
        SparsitySettings.parse(text)


@pytest.mark.parametrize("text", ["", "layers=0", "layers=2width=50%", "width=0%", "depth=3", ",width=5%", "layers=2,"])
def test_a_student_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match=r"expected package\.module:factory, layers=2, width=50% or layers=2,width"):
        StudentSettings.parse(text)


def test_students_are_read() -> None:
    assert StudentSettings.parse("shop.models:small").reference == "shop.models:small"
    assert StudentSettings.parse("layers=3") == StudentSettings(num_layers=3)
    assert StudentSettings.parse("width=25%") == StudentSettings(width=0.25)


@pytest.mark.parametrize(
    "settings", [{"num_epochs": -1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"label_weight": 2.0}]
)
def test_a_training_that_cannot_be_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidOption):
        TrainSettings(**settings)  # type: ignore[arg-type]
