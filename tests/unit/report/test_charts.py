"""Charts hold all their points, are valid XML and escape what they are given, whatever the values are."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass.report.axes import fit_axis, ticks_of
from forwardpass.report.charts import (
    HEIGHT,
    WIDTH,
    Bar,
    BarPart,
    Emphasis,
    Point,
    ScatterPoint,
    Series,
    line_chart,
    scatter_chart,
    stacked_bars,
)

VALUES = st.floats(min_value=1e-9, max_value=1e12)
TEXTS = st.text(alphabet="<>&'\"ab \n\x00\x1f\ud800\ufffeé中", max_size=30)


@st.composite
def series(draw: st.DrawFn) -> Series:
    sizes = sorted(draw(st.sets(st.integers(1, 512), min_size=0, max_size=6)))
    points = []
    for size in sizes:
        low, middle, high = sorted(draw(st.tuples(VALUES, VALUES, VALUES)))
        points.append(Point(x=size, y=middle, low=low, high=high, title=draw(TEXTS)))
    return Series(name=draw(TEXTS), points=tuple(points), tone=draw(st.integers(0, 20)))


@st.composite
def scatter_points(draw: st.DrawFn) -> ScatterPoint:
    x_low, x, x_high = sorted(draw(st.tuples(VALUES, VALUES, VALUES)))
    y_low, y, y_high = sorted(draw(st.tuples(VALUES, VALUES, VALUES)))
    return ScatterPoint(
        name=draw(TEXTS),
        x=x,
        x_low=x_low,
        x_high=x_high,
        y=y,
        y_low=y_low,
        y_high=y_high,
        title=draw(TEXTS),
        emphasis=draw(st.sampled_from(Emphasis)),
    )


def parse(svg: str) -> ET.Element:
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    return ET.fromstring(svg)


def find(root: ET.Element, name: str) -> list[ET.Element]:
    return list(root.iter(f"{{http://www.w3.org/2000/svg}}{name}"))


def assert_inside(root: ET.Element, *, num_dots: int) -> None:
    dots = find(root, "circle")
    assert len(dots) == num_dots
    for dot in dots:
        assert 0 < float(dot.attrib["cx"]) < WIDTH
        assert 0 < float(dot.attrib["cy"]) < HEIGHT
    for line in find(root, "line"):
        assert all(0 <= float(line.attrib[name]) <= WIDTH for name in ("x1", "x2", "y1", "y2"))


@given(lines=st.lists(series(), max_size=4), title=TEXTS, log_x=st.booleans(), log_y=st.booleans(), limit=VALUES)
def test_a_line_chart_holds_every_point(
    lines: list[Series], title: str, log_x: bool, log_y: bool, limit: float
) -> None:
    svg = line_chart(
        lines,
        title=title,
        x_label="batch size",
        y_label="latency",
        y_format="{:g}".format,
        x_ticks=sorted({point.x for line in lines for point in line.points}),
        log_x=log_x,
        log_y=log_y,
        limit=limit,
    )
    assert_inside(parse(svg), num_dots=sum(len(line.points) for line in lines))


def test_points_beyond_the_last_tick_keep_their_distance() -> None:
    """A run of 14 seconds with a tick at 10 is drawn to its end."""
    points = tuple(Point(x=at, y=1.0, low=1.0, high=1.0, title="") for at in (0.0, 10.0, 12.0, 14.0))
    svg = line_chart(
        [Series(name="p50", points=points, tone=0)],
        title="",
        x_label="",
        y_label="",
        y_format="{:g}".format,
        x_ticks=[0.0, 5.0, 10.0],
    )
    places = [float(dot.attrib["cx"]) for dot in find(parse(svg), "circle")]
    assert places[3] - places[2] == pytest.approx(places[2] - places[1], abs=0.1)


@given(points=st.lists(scatter_points(), max_size=8), log_x=st.booleans())
def test_a_scatter_chart_holds_every_point_and_names_each(points: list[ScatterPoint], log_x: bool) -> None:
    svg = scatter_chart(
        points,
        title="t",
        x_label="latency",
        y_label="accuracy",
        x_format="{:g}".format,
        y_format="{:g}".format,
        log_x=log_x,
        y_limit=1.0,
    )
    root = parse(svg)
    assert_inside(root, num_dots=len(points))
    labels = [text for text in find(root, "text") if "point-label" in text.attrib["class"]]
    assert len(labels) == len(points)


@given(values=st.lists(st.lists(st.floats(0, 1e9), min_size=1, max_size=5), min_size=1, max_size=5))
def test_the_lengths_of_bars_are_in_proportion(values: list[list[float]]) -> None:
    bars = [
        Bar(name=f"b{at}", parts=tuple(BarPart(label=str(n), value=v, tone=n) for n, v in enumerate(row)), note="")
        for at, row in enumerate(values)
    ]
    root = parse(stacked_bars(bars, title="t", value_format="{:g}".format))
    longest = max(sum(row) for row in values)
    for rect in find(root, "rect"):
        assert float(rect.attrib["x"]) + float(rect.attrib["width"]) <= WIDTH + 1
    names = [rect for rect in find(root, "rect") if "height" in rect.attrib and rect.attrib["height"] == "16"]
    drawn = [float(rect.attrib["width"]) for rect in names]
    flat = [value for row in values for value in row]
    if longest:
        for width, value in zip(drawn, flat, strict=True):
            assert width == pytest.approx(max(value / longest * (WIDTH - 10) - 1, 0.5), abs=0.1)


def test_what_came_from_outside_is_escaped() -> None:
    name = "<script>alert('1')</script> & \"co\" \x00\ud800"
    point = Point(x=1, y=1, low=1, high=1, title=name)
    line = Series(name=name, points=(point,), tone=0)
    svg = line_chart([line], title=name, x_label=name, y_label=name, y_format=str, x_ticks=[1.0])
    assert "<script" not in svg
    assert "<script>alert('1')</script> & \"co\" " in [title.text for title in find(parse(svg), "title")]


@given(values=st.lists(VALUES, min_size=1, max_size=5), is_log=st.booleans())
def test_an_axis_has_a_few_ticks_all_on_it_and_keeps_the_order(values: list[float], is_log: bool) -> None:
    axis = fit_axis(values, start=0, end=100, is_log=is_log)
    ticks = ticks_of(axis)
    assert 2 <= len(ticks) <= 25
    places = [axis.place(tick) for tick in ticks]
    assert places == sorted(places)
    assert places[0] >= -1e-6
    assert places[-1] <= 100 + 1e-6
