"""The parts of a page: text is escaped once, markup is left alone, numbers keep their units."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from forwardpass.core.measurement import Interval, Measurement
from forwardpass.report.format import format_bytes, format_seconds
from forwardpass.report.page import (
    Column,
    RowGroup,
    Section,
    State,
    render_measurement,
    render_page,
    render_paragraph,
    render_state,
    render_table,
)

TEXTS = st.text(alphabet="<>&'\"ab ", max_size=20)


@given(cell=TEXTS, title=TEXTS)
def test_text_is_escaped_once_and_markup_not_again(cell: str, title: str) -> None:
    table = render_table([Column(title=title)], [RowGroup(rows=[[cell], [render_state(cell, State.GOOD)]])])
    page = render_page(title=title, subtitle="", sections=[Section(title=title, parts=(table,))])
    assert f'<td class="">{escape(cell)}</td>' in page
    assert f'<td class=""><span class="state good">{escape(cell)}</span></td>' in page
    assert f"<title>{escape(title)}</title>" in page


def test_a_number_and_its_unit_stay_on_one_line_and_other_words_do_not() -> None:
    assert "41\u00a0ms, 3\u00a0%; 2 sheep" in render_paragraph("41 ms, 3 %; 2 sheep")


def test_the_spread_of_a_measurement_is_set_back() -> None:
    measured = Measurement(value=0.0041, unit="s", interval=Interval(low=0.004, high=0.0043), num_repetitions=9)
    assert render_measurement(measured) == '4.10\u00a0ms <span class="spread">±0.20</span>'


@given(seconds=st.floats(1e-6, 1e4), num_bytes=st.floats(1, 1e13))
def test_a_formatted_number_is_within_half_a_percent_of_the_number(seconds: float, num_bytes: float) -> None:
    factors = {"s": 1, "ms": 1e-3, "µs": 1e-6, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
    for value, text in ((seconds, format_seconds(seconds)), (num_bytes, format_bytes(num_bytes))):
        number, unit = text.replace(",", "").split()
        assert abs(float(number) * factors[unit] / value - 1) <= 0.0051
