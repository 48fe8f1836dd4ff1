"""Running the candidates on the user's metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from forwardpass.core.metrics import Metric
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import SampleSplits
from forwardpass.core.slo import QualityFloor
from forwardpass.core.variants import Variant
from forwardpass.errors import ForwardpassError
from forwardpass.optimize.entries import SHARE_OF_MAKING, SHARE_OF_SCORING, Entry, as_sentence
from forwardpass.optimize.evaluation import Answers, answer, score_answers, score_error

__all__ = ["Scorer", "finish_scores", "score_all", "score_one"]


@dataclass(slots=True, kw_only=True, eq=False)
class Scorer:
    """Runs variants over the splits; the answers of the first one, the source, are the reference of all."""

    splits: SampleSplits
    metric: Metric
    allowed: QualityFloor
    own: float = math.nan
    """The score of the source on the validation split."""
    defers_test: bool = False
    """Whether the test split is left for `score_test`, when it is known what stays in the search."""
    reference: Answers | None = None
    """What the source answers for the validation split."""
    test_reference: Answers | None = None

    def score(self, entry: Entry) -> None:
        """Score a candidate on validation and, unless that is deferred, on test."""
        answers = answer(entry.variant, self.splits.validation)
        self.reference = self.reference or answers
        entry.validation = score_answers(self.metric, answers, self.reference, self.splits.validation)
        if math.isnan(self.own):
            self.own = entry.validation.value
        entry.error = score_error(answers, self.reference, self.splits.validation)
        if not self.defers_test:
            self.score_test(entry)

    def score_test(self, entry: Entry) -> None:
        """Score a candidate on test."""
        answers = answer(entry.variant, self.splits.test)
        self.test_reference = self.test_reference or answers
        entry.test = score_answers(self.metric, answers, self.test_reference, self.splits.test)

    def validate(self, variant: Variant) -> float:
        """Return the score of a variant on the validation split, which is all that a search may see."""
        assert self.reference is not None, "the source is scored before anything is searched for"
        answers = answer(variant, self.splits.validation)
        return score_answers(self.metric, answers, self.reference, self.splits.validation).value

    @property
    def floor(self) -> float:
        """The score that a variant has to keep, from what is allowed and the score of the source."""
        return self.allowed.limit(self.own, higher_is_better=self.metric.higher_is_better)

    def to_spare(self, entries: Iterable[Entry]) -> dict[str, float]:
        """Return the share of what may be lost that is left, by name, to the candidates that keep the floor."""
        left = {it.variant.name: it.validation.value - self.floor for it in self.held(entries) if it.validation}
        return {name: amount / ((self.own - self.floor) or math.inf) for name, amount in left.items()}

    def holds(self, score: float) -> bool:
        """Tell whether a score keeps the floor."""
        return score >= self.floor if self.metric.higher_is_better else score <= self.floor

    def held(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return those of the candidates that keep the floor."""
        return [entry for entry in entries if entry.validation is not None and self.holds(entry.validation.value)]


def score_all(entries: Sequence[Entry], scorer: Scorer, progress: Progress, *, needed: frozenset[str]) -> None:
    """Score candidates in order; the source comes first, for its answers are the reference."""
    for number, entry in enumerate(entries):
        progress(f"scoring {entry.variant.name}", done=SHARE_OF_MAKING + SHARE_OF_SCORING * number / len(entries))
        score_one(entry, scorer, is_needed=entry.variant.name in needed)


def score_one(entry: Entry, scorer: Scorer, *, is_needed: bool) -> None:
    """Score a candidate; without the source and the float model there is nothing to compare with."""
    _unless_it_fails(entry, scorer.score, is_needed=is_needed)


def finish_scores(entries: Sequence[Entry], scorer: Scorer, progress: Progress, *, needed: frozenset[str]) -> None:
    """Score on the test split what was not yet; the source comes first, for its answers are the reference."""
    for entry in entries:
        if entry.test is None and not entry.failure:
            progress(f"scoring {entry.variant.name} on the test split", done=SHARE_OF_MAKING + SHARE_OF_SCORING)
            _unless_it_fails(entry, scorer.score_test, is_needed=entry.variant.name in needed)


def _unless_it_fails(entry: Entry, score: Callable[[Entry], None], *, is_needed: bool) -> None:
    if entry.failure:
        return
    try:
        score(entry)
    except ForwardpassError as error:
        if is_needed:
            raise
        entry.failure = str(error)
    except Exception as error:  # a runtime's own classes share no base but this one
        if is_needed:
            raise
        entry.failure = as_sentence(error)
