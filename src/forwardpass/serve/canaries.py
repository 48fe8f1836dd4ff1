"""Versions on trial: those of a split that are compared with the stable one, and taken out if they are worse.

Only requests that the split itself has given to a version are counted. Somebody who names the version could send it
what no other version gets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from forwardpass.core.batching import NORMAL_PRIORITY
from forwardpass.core.canary import CanaryGate, CanaryLimits, Outcome, Side, Verdict
from forwardpass.core.tensors import Array
from forwardpass.errors import DeadlineExceeded, NotReady, Overloaded, RequestError

if TYPE_CHECKING:
    from forwardpass.serve.request import Answer
    from forwardpass.serve.versions import ModelVersion

__all__ = ["Trials"]

OnVerdict = Callable[[str, Verdict], None]
"""Called with the number of a version and why it is to be taken out."""


class Trials:
    """The gates of one split: one for each version that is compared with the stable one."""

    def __init__(
        self, stable: ModelVersion, canaries: Sequence[ModelVersion], limits: CanaryLimits, on_verdict: OnVerdict
    ) -> None:
        self._stable = stable
        self._gates = {version.number: CanaryGate(limits) for version in canaries}
        self._limit_s = _limit_s(stable, canaries)
        self._on_verdict = on_verdict

    def drawn(self, version: ModelVersion) -> ModelVersion:
        """Return a version as the split gives it to a request: what becomes of the request is noted.

        It is made for each request: kept here, it would be in a circle, and the versions with it until the collector
        runs.
        """
        return cast("ModelVersion", _Drawn(version, self._noting(version)))

    def _noting(self, version: ModelVersion) -> Callable[[Mapping[str, Array] | RequestError, float], None]:
        return partial(self._note, version.number)

    def _note(self, number: str, result: Mapping[str, Array] | RequestError, seconds: float) -> None:
        outcome = _outcome(result, seconds, self._limit_s)
        if outcome is None:
            return
        now_s = time.monotonic()
        is_stable = number == self._stable.number
        for canary in tuple(self._gates) if is_stable else (number,):
            gate = self._gates.get(canary)
            verdict = gate.observe(Side.STABLE if is_stable else Side.CANARY, outcome, now_s=now_s) if gate else None
            if verdict is not None:
                del self._gates[canary]
                self._on_verdict(canary, verdict)


class _Drawn:
    """A version in the hands of a request that the split has given to it; everything else is the version's own."""

    def __init__(
        self, version: ModelVersion, note: Callable[[Mapping[str, Array] | RequestError, float], None]
    ) -> None:
        self._version = version
        self._note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._version, name)

    def submit(
        self,
        tensors: dict[str, Array],
        num_rows: int,
        answer: Answer,
        *,
        timeout_s: float | None = None,
        priority: int = NORMAL_PRIORITY,
    ) -> Callable[[], None]:
        """Queue a request, and note what becomes of it."""
        began_s = time.monotonic()

        def noted(result: dict[str, Array] | RequestError) -> None:
            self._note(result, time.monotonic() - began_s)
            answer(result)

        try:
            return self._version.submit(tensors, num_rows, noted, timeout_s=timeout_s, priority=priority)
        except RequestError as refusal:
            self._note(refusal, 0.0)
            raise


def _limit_s(stable: ModelVersion, canaries: Sequence[ModelVersion]) -> float:
    """Return what all are measured by: the stable version's target, whatever the others were shipped with."""
    targets = [version.slo.limit_s for version in canaries if version.slo is not None]
    return stable.slo.limit_s if stable.slo is not None else min(targets, default=float("inf"))


def _outcome(result: Mapping[str, Array] | RequestError, seconds: float, limit_s: float) -> Outcome | None:
    """Judge an answer; None for one that says nothing about the version."""
    if isinstance(result, NotReady):  # it was stopped
        return None
    if isinstance(result, DeadlineExceeded | Overloaded):
        return Outcome.SLOW
    if isinstance(result, RequestError):
        return Outcome.FAILED
    if not all(np.isfinite(array).all() for array in result.values() if array.dtype.kind == "f"):
        return Outcome.NOT_FINITE
    return Outcome.SLOW if seconds > limit_s else Outcome.GOOD
