"""What shortens a cold start: the ways that were tried, what each saved, and whether to take it.

Nothing is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from forwardpass.core.measurement import Measurement

__all__ = ["StartAdvice", "StartStudy", "StartTrial"]

SURE_SLOWDOWN = 1.1
"""Two processes that run one and the same file can differ by so much for as long as they live."""


class StartAdvice(StrEnum):
    """What to do about a way to shorten the cold start, in the words of a table."""

    TAKE = "take it"
    THIS_PROCESSOR = "only on this processor"
    SLOWER_CALLS = "slower calls"
    OTHER_ANSWERS = "other answers"
    NO_GAIN = "no sure gain"
    LOSS = "longer"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTrial:
    """A way to shorten the cold start, tried in fresh processes that took turns with the variant as it is.

    `own_s` is what a process spends from the first import to the first answer; Python's own start is the same for all
    and left out. `saved_s` is how much less that is than as it is, `slowdown` how many times as long a call takes
    afterwards (in processor time, unless the number of threads is what was changed), both over pairs of processes.
    """

    what: str
    how: str
    """What to type or to set."""
    own_s: Measurement | None = None
    saved_s: Measurement | None = None
    slowdown: Measurement | None = None
    is_same_answer: bool = True
    """Whether all answers are the same bytes."""
    is_portable: bool = True
    """False for a file that suits this kind of processor alone."""
    failure: str = ""

    @property
    def advice(self) -> StartAdvice:
        """What to do about it: only what is surely shorter, answers the same and costs no latency is to be taken."""
        if self.saved_s is None or self.slowdown is None:
            return StartAdvice.FAILED
        if self.saved_s.interval.high < 0:
            return StartAdvice.LOSS
        if self.saved_s.interval.low <= 0:
            return StartAdvice.NO_GAIN
        if not self.is_same_answer:
            return StartAdvice.OTHER_ANSWERS
        if self.slowdown.interval.low > SURE_SLOWDOWN:
            return StartAdvice.SLOWER_CALLS
        return StartAdvice.TAKE if self.is_portable else StartAdvice.THIS_PROCESSOR


@dataclass(frozen=True, slots=True, kw_only=True)
class StartStudy:
    """What was tried against the cold start of one variant."""

    as_it_is_s: Measurement
    """From the first import to the first answer."""
    model_s: Measurement
    """Of that, loading the model and running it once: what the form of the file can change."""
    trials: tuple[StartTrial, ...]
    note: str = ""
    """What a reader should know beside the trials, such as why nothing was tried on the file."""

    @property
    def best(self) -> StartTrial | None:
        """The trial to take: the one that saves most of those that cost nothing."""
        good = [trial for trial in self.trials if trial.advice is StartAdvice.TAKE]
        return max(good, key=lambda trial: trial.saved_s.value if trial.saved_s is not None else 0.0, default=None)

    @property
    def ordered(self) -> tuple[StartTrial, ...]:
        """The trials, the one that saves most first."""
        return tuple(
            sorted(
                self.trials, key=lambda trial: trial.saved_s.value if trial.saved_s is not None else -1e9, reverse=True
            )
        )
