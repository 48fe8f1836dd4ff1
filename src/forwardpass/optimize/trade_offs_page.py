"""What is given up for what: every variant in the plane of two quantities, and which of them nothing else beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forwardpass.core.measurement import Interval, Measurement
from forwardpass.optimize.values import Candidate, Optimization, Verdict
from forwardpass.report.charts import Emphasis, ScatterPoint, scatter_chart
from forwardpass.report.format import format_bytes, format_seconds
from forwardpass.report.page import Figure

__all__ = ["pareto_front", "trade_off_figures"]


LOG_FROM_RANGE = 3.0
"""An axis over a wider range than this is logarithmic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantity:
    """An axis: what it is called, how it is read and written, and which end of it is good."""

    name: str
    label: str
    read: Callable[[Candidate], Measurement | None]
    write: Callable[[float], str]
    higher_is_better: bool = False
    limit: float | None = None


def trade_off_figures(optimization: Optimization) -> list[Figure]:
    """Return the planes that a choice is made in."""
    score = _Quantity(
        name=optimization.metric,
        label=f"{optimization.metric} on the test split",
        read=lambda candidate: candidate.test,
        write=lambda value: f"{value:.4g}",
        higher_is_better=optimization.higher_is_better,
        limit=optimization.floor_score,
    )
    latency = _Quantity(name="latency", label="latency p50 at batch 1", read=_latency, write=format_seconds)
    size = _Quantity(name="size", label="size on disk", read=_size, write=format_bytes)
    cold_start = _Quantity(name="cold start", label="cold start", read=_cold_start, write=format_seconds)
    side = "Higher" if score.higher_is_better else "Lower"
    return [
        _figure(optimization, latency, score, note=f"Left is faster. {side} is better; dashed is the floor."),
        _figure(optimization, size, score, note=f"Left is smaller. {side} is better."),
        _figure(
            optimization, cold_start, score, note="Left is sooner: a new process to its first answer, files in memory."
        ),
        _figure(
            optimization, latency, size, note="Left is faster, lower is smaller. Without sources that are no file."
        ),
    ]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell of each point whether no other is as good in both directions and better in one; lower is better in both.

    >>> pareto_front([(1.0, 3.0), (2.0, 2.0), (2.0, 3.0), (3.0, 1.0)])
    [True, True, False, True]
    """
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def _figure(optimization: Optimization, across: _Quantity, up: _Quantity, *, note: str) -> Figure:
    found = []
    for candidate in optimization.candidates:
        x, y = across.read(candidate), up.read(candidate)
        if x is not None and y is not None:
            found.append((candidate, x, y))
    sign = -1.0 if up.higher_is_better else 1.0
    front = pareto_front([(x.value, sign * y.value) for _, x, y in found])
    title = f"{across.name.capitalize()} against {up.name}"
    best = ", ".join(candidate.variant.name for (candidate, _, _), is_best in zip(found, front, strict=True) if is_best)
    svg = scatter_chart(
        [
            _point(candidate, x, y, across, up, is_best=is_best)
            for (candidate, x, y), is_best in zip(found, front, strict=True)
        ],
        title=f"{title}. Not beaten: {best}.",
        x_label=across.label,
        y_label=up.label,
        x_format=across.write,
        y_format=up.write,
        log_x=_is_wide([x.value for _, x, _ in found]),
        y_limit=up.limit,
    )
    return Figure(title=title, svg=svg, note=f"{note} Not beaten in both: {best}.")


def _is_wide(values: Sequence[float]) -> bool:
    """Tell whether an axis should be logarithmic: a source that is far slower would push all others together."""
    return bool(values) and min(values) > 0 and max(values) > LOG_FROM_RANGE * min(values)


def _point(
    candidate: Candidate, x: Measurement, y: Measurement, across: _Quantity, up: _Quantity, *, is_best: bool
) -> ScatterPoint:
    name = candidate.variant.name
    is_chosen = candidate.verdict is Verdict.CHOSEN
    return ScatterPoint(
        name=name,
        x=x.value,
        x_low=x.interval.low,
        x_high=x.interval.high,
        y=y.value,
        y_low=y.interval.low,
        y_high=y.interval.high,
        title=f"{name}: {across.write(x.value)}, {up.write(y.value)}",
        emphasis=Emphasis.CHOSEN if is_chosen else Emphasis.FRONT if is_best else Emphasis.PLAIN,
    )


def _latency(candidate: Candidate) -> Measurement | None:
    return candidate.profile.best_latency.p50_s if candidate.profile is not None else None


def _size(candidate: Candidate) -> Measurement | None:
    num_bytes = candidate.profile.file_bytes if candidate.profile is not None else None
    if num_bytes is None:
        return None
    exact = Interval(low=float(num_bytes), high=float(num_bytes))
    return Measurement(value=float(num_bytes), unit="bytes", interval=exact, num_repetitions=1)


def _cold_start(candidate: Candidate) -> Measurement | None:
    return candidate.profile.cold_start.total_s if candidate.profile is not None else None
