"""The choice: facts in, verdicts with reasons out. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from forwardpass.core.measurement import Measurement
from forwardpass.optimize.values import Target, Verdict

__all__ = ["MIN_GAIN", "Choice", "Facts", "Judgement", "choose"]

MIN_GAIN = 1.10
"""A variant replaces the float model only if the lower end of its gain's interval is above this. On a shared
machine, copies of one file were measured to differ by up to 13 % in 95 of 100 comparisons, more than intervals say; and
FP32 is what everything else was checked with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one candidate.

    `gain` is how many times better than the baseline it is at the target; `score` is the metric on the validation
    split.
    """

    name: str
    gain: Measurement
    score: float
    latency_s: float
    size_bytes: float
    can_be_served: bool = True
    """False for a source that is no file of its own."""
    shares_batches: bool = True
    """False if rows of a batch change each other's answers, so that requests are served one at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What became of one candidate, and why."""

    name: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The winner with the reason, and a judgement on every candidate."""

    chosen: str
    reason: str
    judgements: tuple[Judgement, ...]


def choose(
    candidates: Sequence[Facts],
    *,
    baseline: str,
    floor_score: float,
    higher_is_better: bool,
    target: Target,
    metric: str,
) -> Choice:
    """Choose the candidate with the greatest sure gain among those above the floor; without one, keep the baseline.

    Gains that differ by less than the noise count as equal: then a variant whose requests may share a batch wins, and
    after that the better score.
    """
    sign = 1.0 if higher_is_better else -1.0
    above = [facts for facts in candidates if sign * facts.score >= sign * floor_score]
    better = [facts for facts in above if facts.can_be_served and facts.name != baseline and _is_sure(facts)]
    greatest = max((facts.gain.value for facts in better), default=0.0)
    equals = [facts for facts in better if facts.gain.value * MIN_GAIN >= greatest]
    best = max(equals, key=lambda facts: (facts.shares_batches, sign * facts.score, facts.gain.value), default=None)
    chosen = best.name if best else baseline
    judgements = []
    for facts in candidates:
        if facts.name == chosen:
            continue
        judgements.append(
            _judge(facts, above, sign=sign, baseline=baseline, floor=floor_score, metric=metric, target=target)
        )
    reason = _reason(best, candidates, above, baseline=baseline, floor=floor_score, target=target, metric=metric)
    judgements.append(Judgement(name=chosen, verdict=Verdict.CHOSEN, reason=reason))
    return Choice(chosen=chosen, reason=reason, judgements=tuple(judgements))


def _is_sure(facts: Facts) -> bool:
    return facts.gain.interval.low > MIN_GAIN


def _judge(
    facts: Facts, above: Sequence[Facts], *, sign: float, baseline: str, floor: float, metric: str, target: Target
) -> Judgement:
    """Say of a candidate that was not chosen whether it is worth keeping."""
    if not facts.can_be_served:
        return Judgement(name=facts.name, verdict=Verdict.SOURCE, reason=f"the source; {_compared(facts, target)}")
    if facts not in above:
        side = "below" if sign > 0 else "above"
        reason = f"{metric} {facts.score:.4g} is {side} the limit of {floor:.4g}"
        return Judgement(name=facts.name, verdict=Verdict.REJECTED, reason=reason)
    if facts.name == baseline:
        return Judgement(
            name=facts.name, verdict=Verdict.KEPT, reason="the float model that the others are compared with"
        )
    dominating = next(_dominating(facts, above, sign, target), None)
    if dominating is not None:
        what = "latency, size, cold start" if target is Target.COLD_START else "latency, size"
        reason = f"{dominating.name} is at least as good in {what} and {metric}; {_compared(facts, target)}"
        return Judgement(name=facts.name, verdict=Verdict.REJECTED, reason=reason)
    return Judgement(name=facts.name, verdict=Verdict.KEPT, reason=_compared(facts, target))


def _dominating(facts: Facts, others: Sequence[Facts], sign: float, target: Target) -> Iterator[Facts]:
    """Yield candidates that are nowhere worse and somewhere better."""
    for other in others:
        if other.name == facts.name or not other.can_be_served:
            continue
        ours, theirs = _costs(facts, sign, target), _costs(other, sign, target)
        if theirs != ours and all(their <= our for their, our in zip(theirs, ours, strict=True)):
            yield other


def _costs(facts: Facts, sign: float, target: Target) -> tuple[float, ...]:
    """Return what a candidate costs, each the less the better; a cold start counts where it is the target."""
    costs = (facts.latency_s, facts.size_bytes, -sign * facts.score)
    return (*costs, -facts.gain.value) if target is Target.COLD_START else costs


def _reason(
    best: Facts | None,
    candidates: Sequence[Facts],
    above: Sequence[Facts],
    *,
    baseline: str,
    floor: float,
    target: Target,
    metric: str,
) -> str:
    if best is None:
        reason = f"No other variant with {metric} within the limit of {floor:.4g} is measurably better"
        own = next(facts for facts in candidates if facts.name == baseline)
        if own not in above:
            reason += f", although its own {metric} of {own.score:.4g} is not within it"
    else:
        reason = f"{_compared(best, target)}, with {metric} {best.score:.4g} within the limit of {floor:.4g}"
    winner = best or next(facts for facts in candidates if facts.name == baseline)
    for facts in candidates:
        if not facts.can_be_served and facts.gain.interval.low > winner.gain.interval.high:
            reason += f". The source itself is faster ({_compared(facts, target)}): consider staying with its runtime"
    return reason


def _compared(facts: Facts, target: Target) -> str:
    gain = facts.gain
    value, span = f"{gain.value:.2f} times", f"({gain.interval.low:.2f} to {gain.interval.high:.2f})"
    if target is Target.SIZE and not facts.size_bytes:
        return "it has no file whose size could be compared"
    if target is Target.SIZE:
        return f"{value} as small as the float model"
    if target is Target.COST:
        return f"{value} the rows for the money of the float model {span}"
    if target is Target.COLD_START:
        return f"{value} as fast as the float model to its first answer {span}"
    words = "as fast as" if target is Target.LATENCY else "the throughput of"
    return f"{value} {words} the float model {span}"
