"""A variant is left out only beside one that keeps the floor and is foretold to be about as fast, or faster."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forwardpass.optimize.candidates import WHOLE
from forwardpass.optimize.forecast import ALWAYS_COMPARED, AS_IN_FLOAT, ENOUGH_TO_SPARE, TWINS, Forecast

NAMES = ["int8-static", "int8-static-whole", "int8-dynamic", "int8-static-smooth", "int8-mixed", "int8-weights"]
SAVED = st.dictionaries(st.sampled_from(NAMES), st.floats(-1e-2, 1e-2), min_size=1)
HELD = st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1))
"""What keeps the floor, with the share of what may be lost that it has to spare."""


@given(SAVED, st.sampled_from(NAMES), HELD)
def test_what_may_win_is_never_left_out(saved_s: dict[str, float], name: str, held: dict[str, float]) -> None:
    reason = Forecast(saved_s=saved_s).needless(name, held)
    rivals = [saved_s[it] for it in held if it in saved_s]
    if not reason or saved_s[name] <= 0:
        return
    if any(TWINS.get(twin) == name for twin in held) and WHOLE not in saved_s:
        return  # it is as fast, and nearer to the source
    assert name not in ALWAYS_COMPARED
    has_good_twin = held.get(TWINS.get(name, ""), 0.0) >= ENOUGH_TO_SPARE
    assert has_good_twin or saved_s[name] < 1.05 * max(rivals)


@given(SAVED, st.sampled_from(NAMES), HELD)
def test_less_is_left_out_beside_fewer(saved_s: dict[str, float], name: str, held: dict[str, float]) -> None:
    forecast = Forecast(saved_s=saved_s)
    if forecast.needless(name, dict(list(held.items())[:-1])):
        assert forecast.needless(name, held)


@given(st.sampled_from(NAMES), HELD)
def test_of_what_nothing_is_known_nothing_is_left_out(name: str, held: dict[str, float]) -> None:
    assert not Forecast(saved_s={}).needless(name, held)


def test_a_variant_that_keeps_the_floor_only_just_gets_its_twin() -> None:
    forecast = Forecast(saved_s={"int8-static": 1.0, "int8-static-smooth": 1.0})
    assert not forecast.needless("int8-static-smooth", {"int8-static": 0.1})
    assert forecast.needless("int8-static-smooth", {"int8-static": 0.6})


def test_without_convolutions_the_smoothed_form_comes_first_and_makes_the_plain_one_needless() -> None:
    saved_s = {"int8-static": 1.0, "int8-static-smooth": 1.0}
    names = ["int8-static-whole", "int8-static", "int8-dynamic", "int8-static-smooth", "int8-dynamic-smooth"]
    products = Forecast(saved_s=saved_s)
    assert products.order(names) == tuple(names[at] for at in (0, 3, 1, 4, 2))
    assert "nearer to the source" in products.needless("int8-static", {"int8-static-smooth": 0.0})
    convolutions = Forecast(saved_s={**saved_s, WHOLE: 1.0})
    assert convolutions.order(names) == tuple(names)
    assert not convolutions.needless("int8-static", {"int8-static-smooth": 0.0})


def test_what_computes_as_in_float_is_left_out_with_nothing_beside_it() -> None:
    forecast = Forecast(saved_s=dict.fromkeys(AS_IN_FLOAT, 0.0))
    assert all(forecast.needless(name, {}) for name in AS_IN_FLOAT)
