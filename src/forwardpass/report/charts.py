"""Charts as inline SVG: pure functions from values to text, drawn in the colours of the page around them.

Why not a plotting library: docs/decisions/0002-charts-as-inline-svg.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from forwardpass.report.axes import Axis, fit_axis, ticks_of
from forwardpass.report.svg import element, group, text_width

__all__ = [
    "Bar",
    "BarPart",
    "Emphasis",
    "Point",
    "ScatterPoint",
    "Series",
    "line_chart",
    "scatter_chart",
    "stacked_bars",
]

WIDTH = 480.0
HEIGHT = 300.0
NUM_TONES = 8
NUM_PART_TONES = 4
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 26.0, 44.0
_LINE_HEIGHT = 14.0

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A value with its interval, and what a reader sees on hovering."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line. `tone` numbers its colour, so that a variant keeps its colour through all charts of a page."""

    name: str
    points: tuple[Point, ...]
    tone: int


class Emphasis(StrEnum):
    """How much a point of a scatter chart matters."""

    CHOSEN = "chosen"
    FRONT = "front"
    """Not beaten by any other in both directions."""
    PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterPoint:
    """A labelled value with intervals in both directions."""

    name: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float
    title: str
    emphasis: Emphasis = Emphasis.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class BarPart:
    """One part of a bar; `tone` numbers its colour, 0 and 1 for the surroundings, 2 and 3 for what matters."""

    label: str
    value: float
    tone: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar made of parts, with a note at its end."""

    name: str
    parts: tuple[BarPart, ...]
    note: str


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_format: Format,
    x_ticks: Sequence[float],
    log_x: bool = False,
    log_y: bool = False,
    limit: float | None = None,
) -> str:
    """Draw lines with a band for their intervals; `limit` adds a dashed line across."""
    points = [point for line in series for point in line.points]
    heights = [height for point in points for height in (point.low, point.y, point.high)]
    heights += [limit] if limit is not None else []
    x_axis = fit_axis([*x_ticks, *(point.x for point in points)], start=_LEFT + 8, end=WIDTH - _RIGHT - 8, is_log=log_x)
    y_axis = fit_axis(heights, start=HEIGHT - _BOTTOM, end=_TOP, is_log=log_y, from_zero=True)
    parts = _frame(x_axis, y_axis, x_ticks, x_label=x_label, y_label=y_label, x_format="{:g}".format, y_format=y_format)
    if limit is not None:
        parts.append(_limit_line(y_axis, limit))
    for line in series:
        parts += _draw_line(line, x_axis, y_axis)
    return _document(parts, title=title, height=HEIGHT)


def scatter_chart(
    points: Sequence[ScatterPoint],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_format: Format,
    y_format: Format,
    log_x: bool = False,
    x_limit: float | None = None,
    y_limit: float | None = None,
) -> str:
    """Draw labelled points with whiskers; the limits are dashed lines that a good point keeps to."""
    xs = [x for point in points for x in (point.x_low, point.x, point.x_high)]
    ys = [y for point in points for y in (point.y_low, point.y, point.y_high)]
    xs += [x_limit] if x_limit is not None else []
    ys += [y_limit] if y_limit is not None else []
    x_axis = fit_axis(xs, start=_LEFT + 8, end=WIDTH - _RIGHT - 8, is_log=log_x)
    y_axis = fit_axis(ys, start=HEIGHT - _BOTTOM, end=_TOP)
    parts = _frame(
        x_axis, y_axis, _thin(ticks_of(x_axis)), x_label=x_label, y_label=y_label, x_format=x_format, y_format=y_format
    )
    if y_limit is not None:
        parts.append(_limit_line(y_axis, y_limit))
    if x_limit is not None:
        at = x_axis.place(x_limit)
        parts.append(element("line", class_="limit", x1=at, x2=at, y1=_TOP, y2=HEIGHT - _BOTTOM))
    for point in points:
        parts += _draw_scatter_point(point, x_axis, y_axis)
    return _document(parts + _place_labels(points, x_axis, y_axis), title=title, height=HEIGHT)


def stacked_bars(bars: Sequence[Bar], *, title: str, value_format: Format) -> str:
    """Draw one bar a row with its name above it; the parts keep their colours from bar to bar."""
    tones = {part.label: part.tone for bar in bars for part in bar.parts}
    longest = max((sum(part.value for part in bar.parts) for bar in bars), default=0.0)
    notes = max((text_width(bar.note) for bar in bars), default=0.0)
    axis = Axis(low=0.0, high=longest or 1.0, start=0.0, end=WIDTH - min(notes + 10, WIDTH / 2))
    parts, top = _legend(tones)
    for bar in bars:
        parts += _draw_bar(bar, axis, top=top, value_format=value_format)
        top += 44
    return _document(parts, title=title, height=top)


# --- frame ---------------------------------------------------------------------------------------------------------


def _document(parts: list[str], *, title: str, height: float) -> str:
    return group(
        [element("title", title), *parts],
        name="svg",
        xmlns="http://www.w3.org/2000/svg",
        class_="chart",
        role="img",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
    )


def _frame(
    x_axis: Axis,
    y_axis: Axis,
    x_ticks: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    x_format: Format,
    y_format: Format,
) -> list[str]:
    """Draw grid lines, tick labels and axis labels."""
    bottom = HEIGHT - _BOTTOM
    parts = [element("text", y_label, class_="axis-label", x=0.0, y=12.0)]
    for tick in _thin(ticks_of(y_axis)):
        at = y_axis.place(tick)
        parts.append(element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=at, y2=at))
        parts.append(element("text", y_format(tick), class_="tick", x=_LEFT - 8, y=at + 4, text_anchor="end"))
    for tick in x_ticks:
        label = x_format(tick)
        parts.append(
            element(
                "text", label, class_="tick", x=_inside(x_axis.place(tick), label), y=bottom + 18, text_anchor="middle"
            )
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(element("text", x_label, class_="axis-label", x=middle, y=HEIGHT - 6, text_anchor="middle"))
    return parts


def _thin(ticks: list[float]) -> list[float]:
    """Leave out every second tick while there are more than eight."""
    return _thin(ticks[::2]) if len(ticks) > 8 else ticks


def _inside(middle: float, label: str) -> float:
    """Move the middle of a label so that it does not leave the picture."""
    half = text_width(label) / 2
    return min(max(middle, half), WIDTH - half) if half < WIDTH / 2 else WIDTH / 2


def _limit_line(y_axis: Axis, limit: float) -> str:
    at = y_axis.place(limit)
    return element("line", class_="limit", x1=_LEFT, x2=WIDTH - _RIGHT, y1=at, y2=at)


def _tone(number: int) -> str:
    return f"tone-{number % NUM_TONES}"


# --- lines ---------------------------------------------------------------------------------------------------------


def _draw_line(line: Series, x_axis: Axis, y_axis: Axis) -> list[str]:
    if not line.points:
        return []
    places = [(x_axis.place(point.x), y_axis.place(point.y)) for point in line.points]
    above = [(x_axis.place(point.x), y_axis.place(point.high)) for point in line.points]
    below = [(x_axis.place(point.x), y_axis.place(point.low)) for point in reversed(line.points)]
    dots = [
        element("circle", class_="dot", cx=x, cy=y, r=3.5, title=f"{line.name}: {point.title}")
        for (x, y), point in zip(places, line.points, strict=True)
    ]
    band = element("polygon", class_="band", points=_path([*above, *below]))
    return [group([band, element("polyline", class_="line", points=_path(places)), *dots], class_=_tone(line.tone))]


def _path(places: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


# --- scatter -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Box:
    """A rectangle that a label or a dot takes up."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


_PICTURE = _Box(left=_LEFT, top=_TOP - 8, right=WIDTH, bottom=HEIGHT - _BOTTOM)
_LABEL_SHIFTS = (
    (8.0, -8.0),
    (8.0, 14.0),
    (-8.0, -8.0),
    (-8.0, 14.0),
    (0.0, -12.0),
    (0.0, 20.0),
    (8.0, 28.0),
    (8.0, -22.0),
)
"""Where a label may stand beside its dot: the sign of the first number says on which side its text goes on."""


def _draw_scatter_point(point: ScatterPoint, x_axis: Axis, y_axis: Axis) -> list[str]:
    x, y = x_axis.place(point.x), y_axis.place(point.y)
    across = element("line", class_="whisker", x1=x_axis.place(point.x_low), x2=x_axis.place(point.x_high), y1=y, y2=y)
    upright = element("line", class_="whisker", x1=x, x2=x, y1=y_axis.place(point.y_low), y2=y_axis.place(point.y_high))
    radius = 6.0 if point.emphasis is Emphasis.CHOSEN else 4.5
    dot = element("circle", class_="dot", cx=x, cy=y, r=radius, title=f"{point.name}: {point.title}")
    return [group([across, upright, dot], class_=f"point {point.emphasis}")]


def _place_labels(points: Sequence[ScatterPoint], x_axis: Axis, y_axis: Axis) -> list[str]:
    """Put each label where it covers least, the most important points first."""
    order = sorted(points, key=lambda point: list(Emphasis).index(point.emphasis))
    places = [(x_axis.place(point.x), y_axis.place(point.y)) for point in order]
    taken = [_Box(left=x - 5, top=y - 5, right=x + 5, bottom=y + 5) for x, y in places]
    taken += [_whisker_box(point, x_axis, y_axis) for point in order]
    labels = []
    for point, (x, y) in zip(order, places, strict=True):
        boxes = [_label_box(point.name, x + dx, y + dy, side=dx) for dx, dy in _LABEL_SHIFTS]
        best = min(boxes, key=lambda box: _cost(box, taken))
        taken.append(best)
        kind = f"point-label {point.emphasis}"
        labels.append(element("text", point.name, class_=kind, x=best.left, y=best.bottom - 3))
    return labels


def _whisker_box(point: ScatterPoint, x_axis: Axis, y_axis: Axis) -> _Box:
    x = x_axis.place(point.x)
    return _Box(left=x - 1, top=y_axis.place(point.y_high), right=x + 1, bottom=y_axis.place(point.y_low))


def _label_box(text: str, x: float, y: float, *, side: float) -> _Box:
    width = text_width(text)
    left = x if side > 0 else x - width if side < 0 else x - width / 2
    return _Box(left=left, top=y - _LINE_HEIGHT + 3, right=left + width, bottom=y + 3)


def _cost(box: _Box, taken: list[_Box]) -> float:
    """Return how much of a label is hidden or outside; outside counts more."""
    area = (box.right - box.left) * (box.bottom - box.top)
    return sum(box.overlap(other) for other in taken) + 3 * (area - box.overlap(_PICTURE))


# --- bars ----------------------------------------------------------------------------------------------------------


_LEGEND_ROOM = 1.25
"""Names of operators, such as FusedGemm, have more wide letters than the labels that the estimate is made for."""


def _legend(tones: Mapping[str, int]) -> tuple[list[str], float]:
    """Draw the names of the parts in as many lines as they need; return them and where the bars begin."""
    parts, x, y = [], 0.0, 14.0
    for label, tone in tones.items():
        width = 17 + _LEGEND_ROOM * text_width(label) + 16
        if x and x + width > WIDTH:
            x, y = 0.0, y + 20
        parts.append(element("rect", class_=_part_class(tone), x=x, y=y - 10, width=11.0, height=11.0, rx=2.0))
        parts.append(element("text", label, class_="tick", x=x + 17, y=y))
        x += width
    return parts, y + 14


def _draw_bar(bar: Bar, axis: Axis, *, top: float, value_format: Format) -> list[str]:
    parts = [element("text", bar.name, class_="bar-name", x=0.0, y=top + 14)]
    so_far = 0.0
    for part in bar.parts:
        left, right = axis.place(so_far), axis.place(so_far + part.value)
        so_far += part.value
        title = f"{bar.name}, {part.label}: {value_format(part.value)}"
        width = max(right - left - 1, 0.5)
        parts.append(
            element("rect", class_=_part_class(part.tone), x=left, y=top + 20, width=width, height=16.0, title=title)
        )
    parts.append(element("text", bar.note, class_="tick", x=axis.place(so_far) + 8, y=top + 32.5))
    return parts


def _part_class(tone: int) -> str:
    return f"part part-{tone % NUM_PART_TONES}"
