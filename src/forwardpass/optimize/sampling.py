"""How many of the samples a search with a budget can afford: answering them all, a slow model would do nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from forwardpass.core.samples import Samples, SampleSplits
from forwardpass.optimize.budget import Budget, Pace
from forwardpass.optimize.values import OptimizeSettings

__all__ = ["RUNS_OF_CALIBRATION", "UsedSamples", "fit_splits"]

SHARE_FOR_CALIBRATION, SHARE_FOR_SCORING = 0.15, 0.04
"""Of the budget: for running the calibration samples of one variant, and each of the other splits once."""
RUNS_OF_CALIBRATION = 10
"""How many calls a calibration sample costs: twice with all tensors looked at, and trials of the methods."""
LEAST_SAMPLES = {"calibration": 16, "validation": 16, "test": 16}
"""What is used however slow the model is: fewer would say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UsedSamples:
    """The samples that a search works with, and a sentence for each split of which it leaves some out."""

    splits: SampleSplits
    left_out: tuple[str, ...]


def fit_splits(splits: SampleSplits, settings: OptimizeSettings, budget: Budget, pace: Pace) -> UsedSamples:
    """Return as much of each split as the budget affords, evenly from all its groups; all of it without a budget."""
    calibration = splits.calibration.head(settings.max_calibration_samples)
    whole = replace(splits, calibration=calibration)
    if budget.total_s is None:
        return UsedSamples(splits=whole, left_out=())
    row_s = max(pace.call_s, 1e-9)
    fits = {
        "calibration": SHARE_FOR_CALIBRATION * budget.total_s / (RUNS_OF_CALIBRATION * row_s),
        "validation": SHARE_FOR_SCORING * budget.total_s / row_s,
        "test": SHARE_FOR_SCORING * budget.total_s / row_s,
    }
    used = {name: _part(getattr(whole, name), fits[name], LEAST_SAMPLES[name]) for name in fits}

    def left_out() -> Iterator[str]:
        for name, samples in used.items():
            if (total := len(getattr(whole, name))) > len(samples):
                reason = f"the budget of {budget.total_s:g} s is too short for all"
                yield f"{len(samples)} of {total} {name} samples were used: {reason}"

    return UsedSamples(
        splits=SampleSplits(calibration=used["calibration"], validation=used["validation"], test=used["test"]),
        left_out=tuple(left_out()),
    )


def _part(samples: Samples, fitting: float, least: int) -> Samples:
    """Return as many as fit, in powers of two: an interrupted search that measures its pace anew takes the same."""
    if fitting >= len(samples):
        return samples
    return samples.head(max(2 ** (int(fitting).bit_length() - 1) if fitting >= 1 else 0, least))
