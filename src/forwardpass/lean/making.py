"""Pruned and distilled networks on the way into a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from forwardpass.core.metrics import Metric
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples, SampleSplits
from forwardpass.core.slo import QualityFloor
from forwardpass.core.variants import Variant
from forwardpass.errors import InvalidOption, InvalidSamples
from forwardpass.lean.values import LeanSettings
from forwardpass.samples import load_samples

if TYPE_CHECKING:
    from forwardpass.convert import TorchSource

__all__ = ["check_lean", "lean_variants", "load_lessons", "trainable"]


def load_lessons(settings: LeanSettings, splits: SampleSplits) -> Samples:
    """Return what networks learn from: the samples of the settings, or without any the calibration split.

    Raises:
        InvalidSamples: one of them is also in the validation or test split.
    """
    if not settings.train_data:
        return splits.calibration
    lessons = load_samples(settings.train_data)
    _check_unseen(lessons, splits, settings.train_data)
    return lessons


def trainable(source: TorchSource | Path) -> TorchSource:
    """Return the source if it is a network and no finished graph.

    Raises:
        InvalidOption: it is a file.
    """
    if isinstance(source, Path):
        raise InvalidOption(
            option="MODEL",
            value=str(source),
            expected="a PyTorch source (package.module:factory with --weights): --prune, --sparsity, --distill and "
            "--quantise-aware train the network, and an ONNX file holds a finished graph",
        )
    return source


def check_lean(source: TorchSource | Path, splits: SampleSplits, lessons: Samples, settings: LeanSettings) -> None:
    """Refuse before the conversion what could not be made afterwards; see `check_wishes` for what it raises.

    Raises:
        InvalidOption: the source is an ONNX file, which holds a graph and not the network.
    """
    if settings.is_empty:
        return
    teacher = trainable(source)
    from forwardpass.convert.torch_sources import open_source, source_left_as_found

    with source_left_as_found(teacher):
        runtime = open_source(teacher)
        from forwardpass.lean.checking import check_wishes

        check_wishes(runtime, splits, lessons, settings, name=teacher.reference)


@contextmanager
def lean_variants(
    source: TorchSource | Path,
    splits: SampleSplits,
    metric: Metric,
    *,
    lessons: Samples,
    folder: Path,
    checkpoints: Path,
    floor: QualityFloor,
    settings: LeanSettings,
    opset: int | None,
    axes: Mapping[str, Mapping[int, str]] | None,
    progress: Progress,
) -> Iterator[tuple[Variant, ...]]:
    """Make what is asked for; the checkpoints of its trainings are removed when the block has come to its end.

    Raises:
        InvalidOption: the source is an ONNX file, which holds a graph and not the network.
    """
    if settings.is_empty:
        yield ()
        return
    teacher = trainable(source)
    from forwardpass.lean.variants import LeanWork, make_lean_variants
    from forwardpass.runtimes.torch import load_module

    work = LeanWork(
        teacher=load_module(teacher.reference, weights=teacher.weights),
        splits=splits,
        lessons=lessons,
        metric=metric,
        floor=floor,
        settings=settings,
        folder=folder,
        checkpoints=checkpoints,
        opset=opset,
        axes=axes,
    )
    yield make_lean_variants(work, progress=progress)
    work.tidy()


def _check_unseen(lessons: Samples, splits: SampleSplits, origin: str) -> None:
    try:
        replace(splits, calibration=lessons).check_disjoint(origin=origin)
    except InvalidSamples as error:
        reason = "some of them are in the validation or test split of --data, too, where a network is judged by them"
        hint = "Learn from others, or leave --train-data out to learn from the calibration split."
        raise InvalidSamples(origin=origin, reason=reason, hint=hint) from error
