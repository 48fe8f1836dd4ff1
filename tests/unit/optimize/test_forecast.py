"""A variant is left out only beside one that keeps the floor and is foretold to be about as fast, or faster."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forwardpass.optimize.forecast import ALWAYS_COMPARED, AS_IN_FLOAT, TWINS, Forecast

NAMES = ["int8-static", "int8-static-whole", "int8-dynamic", "int8-dynamic-smooth", "int8-mixed", "int8-weights"]
SAVED = st.dictionaries(st.sampled_from(NAMES), st.floats(-1e-2, 1e-2), min_size=1)
HELD = st.lists(st.sampled_from(NAMES), unique=True)


@given(SAVED, st.sampled_from(NAMES), HELD)
def test_what_may_win_is_never_left_out(saved_s: dict[str, float], name: str, held: list[str]) -> None:
    reason = Forecast(saved_s=saved_s).needless(name, held)
    rivals = [saved_s[it] for it in held if it in saved_s]
    is_known_to_gain = saved_s.get(name, 1.0) > 0
    if name not in saved_s or (is_known_to_gain and not rivals and TWINS.get(name) not in held):
        assert not reason
    if is_known_to_gain and name in ALWAYS_COMPARED:
        assert not reason
    if reason and is_known_to_gain:
        assert TWINS.get(name) in held or saved_s[name] <= 1.05 * max(rivals)


@given(SAVED, st.sampled_from(NAMES), HELD)
def test_less_is_left_out_beside_fewer(saved_s: dict[str, float], name: str, held: list[str]) -> None:
    forecast = Forecast(saved_s=saved_s)
    if forecast.needless(name, held[:-1]):
        assert forecast.needless(name, held)


def test_what_computes_as_in_float_is_left_out_with_nothing_beside_it() -> None:
    forecast = Forecast(saved_s=dict.fromkeys(AS_IN_FLOAT, 0.0))
    assert all(forecast.needless(name, []) for name in AS_IN_FLOAT)
