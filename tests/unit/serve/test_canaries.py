"""Versions on trial are measured by one target; time stands still but for what a version takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from forwardpass.core.canary import CanaryLimits, Verdict
from forwardpass.core.slo import Slo
from forwardpass.serve import canaries
from forwardpass.serve.canaries import Trials

NUM_REQUESTS = 60


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


class Version:
    """Answers at once, by the clock after `takes_s`."""

    def __init__(self, number: str, clock: Clock, *, takes_s: float, target: str | None) -> None:
        self.number = number
        self.slo = Slo.parse(target) if target else None
        self._clock = clock
        self._takes_s = takes_s

    def submit(self, _: Any, __: int, answer: Callable[[Any], None], **___: Any) -> Callable[[], None]:
        self._clock.now_s += self._takes_s
        answer({"scores": np.ones((1, 2), np.float32)})
        return lambda: None


@pytest.mark.parametrize(
    ("stable_target", "canary_target", "canary_takes_s", "is_withdrawn"),
    [
        ("p95=50ms", "p95=50ms", 0.3, True),
        ("p95=50ms", None, 0.3, True),  # it was shipped without a target
        ("p95=50ms", "p95=1s", 0.3, True),  # or with an easier one
        ("p95=50ms", "p95=5ms", 0.01, False),  # a stricter one is no reason: the stable version would miss it, too
        (None, "p95=50ms", 0.3, True),
        (None, None, 0.3, False),
    ],
)
def test_a_canary_is_measured_by_the_target_of_the_stable_version(
    stable_target: str | None,
    canary_target: str | None,
    canary_takes_s: float,
    is_withdrawn: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(canaries, "time", clock)
    stable: Any = Version("1", clock, takes_s=0.01, target=stable_target)
    canary: Any = Version("2", clock, takes_s=canary_takes_s, target=canary_target)
    told: list[tuple[str, Verdict]] = []
    trials = Trials(stable, [canary], CanaryLimits(), lambda number, verdict: told.append((number, verdict)))
    for _ in range(NUM_REQUESTS):
        for version in (stable, canary):
            trials.drawn(version).submit({}, 1, lambda result: None)
    assert [number for number, _ in told] == ["2"] * is_withdrawn
