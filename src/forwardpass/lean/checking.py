"""What can be told of leaner networks before anything is made: training takes minutes, a mistake need not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from forwardpass.convert.torch_sources import fitting_samples
from forwardpass.core.samples import Samples, SampleSplits
from forwardpass.errors import InvalidSamples
from forwardpass.lean.counting import call
from forwardpass.lean.distilling import check_student_of
from forwardpass.lean.pruning import check_prunable
from forwardpass.lean.rounding import check_something_rounds
from forwardpass.lean.training import NO_CLASS, are_classes
from forwardpass.lean.values import LeanSettings
from forwardpass.runtimes.torch import TorchRuntime, named_outputs

__all__ = ["check_wishes"]


def check_wishes(
    source: TorchRuntime, splits: SampleSplits, lessons: Samples, settings: LeanSettings, *, name: str
) -> None:
    """Refuse what cannot be learned from these samples or made of this source, as far as a look at it tells.

    Raises:
        InvalidSamples: the source does not take them, or a label is no class of its first output.
        InvalidOption: as many layers are to stay as there are.
        InvalidReference: the user's factory does not give a module.
        InvalidStudent: the student does not answer like the source, or there are no layers to leave out.
        CannotPrune: the module cannot be followed, or all of its layers are too narrow.
        NothingToQuantise: it has no layer that rounds.
        MissingExtra: torch-pruning is not installed.
    """
    with torch.random.fork_rng(devices=[]):  # a factory may draw its first weights
        fitting_samples(source, splits.calibration, name)
        if settings.train_data:
            fitting_samples(source, lessons, settings.train_data)
        _check_labels(source, lessons, origin=settings.train_data or name)
        if settings.student is not None:
            check_student_of(source.module, splits.calibration, settings.student)
        if settings.prune is not None:
            check_prunable(source.module, splits.calibration, settings.prune)
        if settings.quantise_aware:
            check_something_rounds(source.module)


def _check_labels(source: TorchRuntime, lessons: Samples, *, origin: str) -> None:
    """Refuse classes that the source has no score for."""
    group = lessons.groups[0]
    output, scores = next(iter(named_outputs(call(source.module, group.take(slice(0, 2)).inputs)).items()))
    if not are_classes(scores, group):
        return
    num_classes = scores.shape[1]
    strange = [label for label in _labels(lessons) if not 0 <= label < num_classes and label != NO_CLASS]
    if strange:
        raise InvalidSamples(
            origin=origin,
            reason=f"they have the label {strange[0]}, and the output '{output}' has scores for {num_classes} classes",
            hint=f"Labels are 0 to {num_classes - 1}.",
        )


def _labels(lessons: Samples) -> Iterator[int]:
    for group in lessons.groups:
        yield from np.unique(group.labels).tolist() if group.labels is not None else ()
