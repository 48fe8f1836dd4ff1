"""Whether a new version of a model may keep its share of the requests: facts and time in, a decision out.

Each request of a split is given to one of the versions by chance, so as long as two versions are equally good, what
goes wrong is spread over them by chance, too, whatever the load, the clients and the machine do. Fisher's exact test
says how likely a spread as uneven as the one that was seen is then. It is looked at again and again while answers come
in, so each look gets a part of the error rate, and all looks together get all of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from math import exp, lgamma

__all__ = ["ERROR_RATE", "TOLERANCE", "CanaryGate", "CanaryLimits", "Outcome", "Side", "Verdict", "spread_probability"]

ERROR_RATE = 0.001
TOLERANCE = 0.02
FIRST_LOOK = 8
"""Observations of both sides before anything is said: fewer cannot be significant at the usual error rate."""
LOOK_GROWTH = 1.5
SLOT_S = 0.005
"""Answers of one version that come closer together are one observation, since those of a batch share its fate."""


class Outcome(StrEnum):
    """What became of a request."""

    GOOD = "good"
    SLOW = "slow"
    """It missed the target, or was refused because it would."""
    FAILED = "failed"
    NOT_FINITE = "not-finite"
    """The answer holds NaN or an infinity."""


BAD = (Outcome.FAILED, Outcome.NOT_FINITE, Outcome.SLOW)


class Side(StrEnum):
    """Who answered."""

    STABLE = "stable"
    CANARY = "canary"


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryLimits:
    """When a version is taken out.

    `error_rate` is the chance that a version which is just like the stable one is ever taken out. A version that is
    worse by no more than `tolerance`, a share of its requests, stays however sure that is.
    """

    error_rate: float = ERROR_RATE
    tolerance: float = TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a version is taken out: the shares of its requests and of the stable one's that went wrong."""

    outcome: Outcome
    canary_share: float
    stable_share: float
    num_observed: int

    def __str__(self) -> str:
        words = {
            Outcome.SLOW: "missed the target",
            Outcome.FAILED: "failed",
            Outcome.NOT_FINITE: "were answered with values that are not finite",
        }[self.outcome]
        return (
            f"{self.canary_share:.0%} of its requests {words}, {self.stable_share:.0%} of the stable version's "
            f"({self.num_observed} observations)"
        )


@dataclass(slots=True)
class _Counted:
    """What was seen of one side; the slot is still open for answers that belong to the same observation."""

    num_observed: int = 0
    bad: Counter[Outcome] = field(default_factory=Counter)
    slot: Counter[Outcome] = field(default_factory=Counter)
    slot_began_s: float = 0.0

    def add(self, outcome: Outcome, now_s: float) -> None:
        self.close(now_s)
        if not self.slot:
            self.slot_began_s = now_s
        self.slot[outcome] += 1

    def close(self, now_s: float) -> None:
        """End the slot if it is over: it is as bad as most of it."""
        if not self.slot or now_s - self.slot_began_s < SLOT_S:
            return
        num = self.slot.total()
        for outcome in BAD:
            self.bad[outcome] += 2 * self.slot[outcome] > num
        self.num_observed += 1
        self.slot.clear()

    def share(self, outcome: Outcome) -> float:
        return self.bad[outcome] / self.num_observed


class CanaryGate:
    """Compares a canary with the stable version, request by request; knows no clock, socket or model."""

    def __init__(self, limits: CanaryLimits) -> None:
        self._limits = limits
        self._sides = {side: _Counted() for side in Side}
        self._num_looks = 0
        self._next_look = float(FIRST_LOOK)

    def observe(self, side: Side, outcome: Outcome, *, now_s: float) -> Verdict | None:
        """Take in what became of a request that the split gave to a side; return why to take the canary out, if so."""
        for counted in self._sides.values():
            counted.close(now_s)
        self._sides[side].add(outcome, now_s)
        return self._look()

    def _look(self) -> Verdict | None:
        if min(counted.num_observed for counted in self._sides.values()) < self._next_look:
            return None
        self._num_looks += 1
        self._next_look *= LOOK_GROWTH
        spent = self._limits.error_rate / (len(BAD) * self._num_looks * (self._num_looks + 1))
        for outcome in BAD:
            if self._is_worse(outcome, spent):
                return self._verdict(outcome)
        return None

    def _is_worse(self, outcome: Outcome, error_rate: float) -> bool:
        canary, stable = self._sides[Side.CANARY], self._sides[Side.STABLE]
        if canary.share(outcome) - stable.share(outcome) <= self._limits.tolerance:
            return False
        return (
            spread_probability(canary.bad[outcome], canary.num_observed, stable.bad[outcome], stable.num_observed)
            <= error_rate
        )

    def _verdict(self, outcome: Outcome) -> Verdict:
        canary, stable = self._sides[Side.CANARY], self._sides[Side.STABLE]
        return Verdict(
            outcome=outcome,
            canary_share=canary.share(outcome),
            stable_share=stable.share(outcome),
            num_observed=canary.num_observed,
        )


def spread_probability(num_bad: int, num: int, num_other_bad: int, num_other: int) -> float:
    """Return how likely at least `num_bad` of all the bad ones fall among `num` by chance (Fisher, one-sided).

    >>> round(spread_probability(3, 4, 1, 4), 4)  # Fisher's lady tasting tea
    0.2429
    """
    all_bad, everything = num_bad + num_other_bad, num + num_other
    most = min(num, all_bad)
    rest = _log_choose(everything, num)
    terms = (
        exp(_log_choose(all_bad, k) + _log_choose(everything - all_bad, num - k) - rest)
        for k in range(num_bad, most + 1)
        if num - k <= everything - all_bad
    )
    return min(1.0, sum(terms))


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
