"""A line of the checklist says why it got its verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forwardpass.core.checklist import CheckLine, Verdict
from forwardpass.core.measurement import Interval, Measurement
from forwardpass.ship.lines import quality_lines
from tests.unit.ship.test_auditing import optimization


def between(value: float, low: float, high: float) -> Measurement:
    return Measurement(value=value, unit="", interval=Interval(low=low, high=high), num_repetitions=1)


def line_of_the_test_split(score: Measurement) -> CheckLine:
    """Return the line for a score on the test split, where the limit is 0.99."""
    found = optimization()
    chosen = replace(
        found.find(found.chosen), validation=between(0.995, 0.99, 1.0), test=score, test_difference=between(0, 0, 0)
    )
    _, line = quality_lines(chosen, found)
    return line


@pytest.mark.parametrize(
    ("score", "verdict", "is_explained"),
    [
        (between(0.995, 0.991, 0.999), Verdict.MET, False),
        (between(0.985, 0.980, 0.991), Verdict.MET, True),
        (between(0.970, 0.960, 0.980), Verdict.MISSED, False),
    ],
)
def test_a_score_below_the_limit_that_keeps_it_says_that_its_interval_does(
    score: Measurement, verdict: Verdict, is_explained: bool
) -> None:
    line = line_of_the_test_split(score)
    assert line.verdict is verdict
    assert line.note.endswith("; its interval reaches the limit, which was set on the validation samples") is (
        is_explained
    )
