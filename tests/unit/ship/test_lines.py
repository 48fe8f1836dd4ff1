"""A line of the checklist says why it got its verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forwardpass.core.checklist import CheckLine, Verdict
from forwardpass.core.measurement import Interval, Measurement
from forwardpass.core.slo import QualityFloor
from forwardpass.ship.lines import quality_lines
from tests.unit.ship.test_auditing import optimization


def between(value: float, low: float, high: float) -> Measurement:
    return Measurement(value=value, unit="", interval=Interval(low=low, high=high), num_repetitions=1)


def line_of_the_test_split(
    score: Measurement, difference: Measurement, floor: QualityFloor, *, source: float = 0.95
) -> CheckLine:
    """Return the line for a score on the test split, on which the source scores otherwise than on validation."""
    found = optimization()
    first, *others = found.candidates
    found = replace(found, candidates=(replace(first, test=between(source, source, source)), *others))
    chosen = replace(
        found.find(found.chosen), validation=between(0.995, 0.99, 1.0), test=score, test_difference=difference
    )
    _, line = quality_lines(chosen, found, floor)
    return line


@pytest.mark.parametrize(
    ("difference", "verdict", "is_explained"),
    [
        (between(0.0, 0.0, 0.0), Verdict.MET, False),
        (between(-0.005, -0.008, -0.002), Verdict.MET, False),
        (between(-0.012, -0.016, -0.008), Verdict.MET, True),
        (between(-0.020, -0.030, -0.012), Verdict.MISSED, False),
    ],
)
def test_a_drop_on_the_test_split_is_one_from_what_the_source_scores_there(
    difference: Measurement, verdict: Verdict, is_explained: bool
) -> None:
    score = between(0.95 + difference.value, 0.90, 0.99)
    line = line_of_the_test_split(score, difference, QualityFloor(max_drop=0.01, is_relative=False))
    assert (line.verdict, line.limit) == (verdict, "0.94")
    assert line.note.endswith("; its interval reaches the limit") is is_explained


@pytest.mark.parametrize(
    ("absolute", "verdict", "is_explained"),
    [(0.945, Verdict.MET, False), (0.965, Verdict.MET, True), (0.975, Verdict.MISSED, False)],
)
@pytest.mark.parametrize("max_drop", [0.01, float("inf")])
def test_an_absolute_floor_holds_on_the_test_split_as_it_is(
    absolute: float, verdict: Verdict, is_explained: bool, max_drop: float
) -> None:
    floor = QualityFloor(max_drop=max_drop, is_relative=False, absolute=absolute)
    line = line_of_the_test_split(between(0.95, 0.93, 0.97), between(0, 0, 0), floor)
    assert (line.verdict, line.limit) == (verdict, f"{absolute:g}")
    assert line.note.endswith("; its interval reaches the limit") is is_explained


def test_where_less_is_better_the_limit_lies_above() -> None:
    found = replace(optimization(), higher_is_better=False)
    first, *others = found.candidates
    found = replace(found, candidates=(replace(first, test=between(0.2, 0.2, 0.2)), *others))

    def verdict(high: float) -> Verdict:
        chosen = replace(
            found.find(found.chosen),
            validation=between(0.2, 0.2, 0.2),
            test=between(0.25, 0.2, 0.3),
            test_difference=between(0.05, high - 0.02, high),
        )
        return list(quality_lines(chosen, found, QualityFloor(max_drop=0.04, is_relative=False)))[1].verdict

    assert (verdict(0.055), verdict(0.07)) == (Verdict.MET, Verdict.MISSED)
