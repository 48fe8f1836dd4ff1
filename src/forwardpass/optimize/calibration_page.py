"""How INT8 static found its ranges: which method came nearest, and whether more samples would still move them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from forwardpass.core.variants import Step
from forwardpass.optimize.calibration import ConvergencePoint, read_convergence
from forwardpass.optimize.candidates import CALIBRATION, CALIBRATION_ERRORS, RANGES_FROM_FINAL
from forwardpass.optimize.values import Optimization
from forwardpass.report.charts import Point, Series, line_chart
from forwardpass.report.page import (
    Column,
    Figure,
    RowGroup,
    Section,
    render_figures,
    render_key,
    render_notes,
    render_table,
)

__all__ = ["calibration_section"]

_METHODS = """\
minmax: the range holds all values. percentile: all but the rarest. mse: where clipping and rounding cost least.
The errors are those of the first output against the float model, over some calibration samples: the least was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calibrated:
    """A variant whose ranges come from samples."""

    name: str
    method: str
    errors: str
    curve: tuple[ConvergencePoint, ...]


def calibration_section(optimization: Optimization) -> Iterator[Section]:
    """Yield the curves and the comparison of the methods, if any variant was calibrated."""
    found = [
        calibrated
        for candidate in optimization.candidates
        for step in candidate.variant.recipe.steps
        if (calibrated := _read(candidate.variant.name, step)) is not None
    ]
    if not found:
        return
    figure = _figure(found)
    columns = [Column(title="Variant"), Column(title="Method"), Column(title="Errors of the methods", kind="wrap")]
    rows: list[list[str | Markup]] = [[item.name, item.method, item.errors] for item in found]
    yield Section(
        title="Calibration",
        lead="Where the 8-bit scale of every activation ends is read off the calibration samples. A curve that has not "
        "come down before its right half asks for more of them.",
        parts=(
            render_key([item.name for item in found]),
            Markup('<div class="half">{}</div>').format(render_figures([figure])),
            render_table(columns, [RowGroup(rows=rows)], name="Calibration methods"),
            render_notes(_METHODS.splitlines()),
        ),
    )


def _read(name: str, step: Step) -> _Calibrated | None:
    told = dict(step.parameters)
    if RANGES_FROM_FINAL not in told:
        return None
    return _Calibrated(
        name=name,
        method=str(told.get(CALIBRATION, "")),
        errors=str(told.get(CALIBRATION_ERRORS, "")),
        curve=read_convergence(str(told[RANGES_FROM_FINAL])),
    )


def _figure(found: list[_Calibrated]) -> Figure:
    title = "Distance of the ranges from those of all samples"
    svg = line_chart(
        [
            Series(name=item.name, points=tuple(_point(item.name, it) for it in item.curve), tone=tone)
            for tone, item in enumerate(found)
        ],
        title=title,
        x_label="calibration samples",
        y_label="share of the range",
        y_format=lambda value: f"{value:.0%}".replace("%", " %"),
        x_ticks=[point.num_calls for point in found[0].curve],
        log_x=True,
    )
    return Figure(title=title, svg=svg)


def _point(name: str, point: ConvergencePoint) -> Point:
    share = f"{point.distance:.1%}".replace("%", " %")
    title = f"{name}, {point.num_calls} samples: {share}"
    return Point(x=point.num_calls, y=point.distance, low=point.distance, high=point.distance, title=title)
