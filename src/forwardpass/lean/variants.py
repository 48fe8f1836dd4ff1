"""From a source and the user's wishes to ONNX variants with recipes, which the search then treats like all others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from forwardpass.convert import convert_to_onnx
from forwardpass.core.metrics import Metric, Prediction, score
from forwardpass.core.protocols import Progress
from forwardpass.core.samples import Samples, SampleSplits
from forwardpass.core.slo import QualityFloor
from forwardpass.core.tensors import Array
from forwardpass.core.variants import Recipe, Step, Variant
from forwardpass.lean.counting import call
from forwardpass.lean.distilling import distil_module, open_student
from forwardpass.lean.planning import num_weight_bits
from forwardpass.lean.pruning import Pruning, prune_module
from forwardpass.lean.rounding import round_copy
from forwardpass.lean.sparsity import mask_zeros, zero_weights
from forwardpass.lean.training import train_module
from forwardpass.lean.values import LeanSettings, PruneSettings, SparsitySettings, StudentSettings
from forwardpass.profile import describe_machine
from forwardpass.runtimes.torch import named_outputs

__all__ = ["LeanWork", "make_lean_variants"]

MAX_ROWS = 32
QUANTISE_AWARE = "quantise-aware"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeanWork:
    """What the variants are made from, and how they become ONNX."""

    teacher: nn.Module
    splits: SampleSplits
    lessons: Samples
    """What is learned from; apart from validation and test."""
    metric: Metric
    floor: QualityFloor
    settings: LeanSettings
    folder: Path
    checkpoints: Path
    """Where the trainings keep their state."""
    opset: int | None = None
    axes: Mapping[str, Mapping[int, str]] | None = None

    def checkpoint(self, name: str) -> Path:
        """Return where the training of a variant keeps its state."""
        return self.checkpoints / f"{name}.safetensors"

    def tidy(self) -> None:
        """Remove the checkpoints of trainings that are finished."""
        if self.checkpoints.is_dir():
            for file in self.checkpoints.glob("*.safetensors*"):
                file.unlink()
            self.checkpoints.rmdir()


def make_lean_variants(work: LeanWork, *, progress: Progress) -> tuple[Variant, ...]:
    """Make every variant that is asked for: pruned, zeroed, distilled, trained with rounding.

    Raises:
        ConversionError: it cannot be pruned, or the result cannot be converted.
        UsageError: the samples, the student or a share do not fit the source.
    """
    wishes = work.settings
    makers: list[Callable[[Progress], Variant]] = []
    if wishes.prune is not None:
        makers.append(partial(_pruned, work, wishes.prune))
    if wishes.sparsity is not None:
        makers.append(partial(_zeroed, work, wishes.sparsity))
    if wishes.student is not None:
        makers.append(partial(_distilled, work, wishes.student))
    if wishes.quantise_aware:
        makers.append(partial(_quantise_aware, work))
    return tuple(make(_part(progress, number, len(makers))) for number, make in enumerate(makers))


def _pruned(work: LeanWork, settings: PruneSettings, progress: Progress) -> Variant:
    name = "pruned" if settings.share is None else f"pruned-{_percent(settings.share)}"

    def refine(module: nn.Module, attempt: int, progress: Progress) -> nn.Module:
        tuned = copy.deepcopy(module)
        _train(work, tuned, f"{name}-{attempt}", progress)
        return tuned

    limit = work.floor.limit(_score(work, work.teacher), higher_is_better=work.metric.higher_is_better)

    def holds(module: nn.Module) -> bool:
        value = _score(work, module)
        return value >= limit if work.metric.higher_is_better else value <= limit

    pruning = prune_module(
        work.teacher, work.splits.calibration, settings=settings, refine=refine, holds=holds, progress=progress
    )
    return _convert(work, name, pruning.module, (_prune_step(pruning, settings), _train_step(work)), progress)


def _zeroed(work: LeanWork, settings: SparsitySettings, progress: Progress) -> Variant:
    name = f"sparse-{_percent(settings.share)}"
    before = zero_weights(work.teacher, settings)
    mask_zeros(before.module)
    _train(work, before.module, name, progress)
    zeroing = zero_weights(before.module, settings)
    step = Step(
        operation="zero-weights",
        parameters=(
            ("share", round(zeroing.share, 4)),
            ("counted", "per layer" if settings.per_layer else "over the network"),
            ("compressed_bytes_of_source", before.compressed_bytes_before),
            ("compressed_bytes", zeroing.compressed_bytes),
        ),
    )
    return _convert(work, name, zeroing.module, (step, _train_step(work)), progress)


def _distilled(work: LeanWork, settings: StudentSettings, progress: Progress) -> Variant:
    student = open_student(work.teacher, work.splits.calibration, settings, progress=progress)
    made = distil_module(
        work.teacher,
        student,
        work.lessons,
        settings=work.settings.training,
        checkpoint=work.checkpoint("distilled"),
        progress=progress,
    )
    step = Step(
        operation="distil",
        parameters=(
            ("student", settings.reference or _words(settings)),
            ("num_multiply_adds_of_source", made.num_multiply_adds_teacher),
            ("num_multiply_adds", made.num_multiply_adds),
        ),
    )
    return _convert(work, "distilled", made.module, (step, _train_step(work)), progress)


def _quantise_aware(work: LeanWork, progress: Progress) -> Variant:
    """Train a copy that rounds. What is kept are its weights in float: the search quantises them like all others."""
    num_bits = num_weight_bits(describe_machine().instruction_sets)
    rounded = round_copy(work.teacher, work.splits.calibration, num_weight_bits=num_bits)
    _train(work, rounded.module, QUANTISE_AWARE, progress)
    step = Step(
        operation="round-in-training",
        parameters=(("weight_bits", num_bits), ("activation_bits", 8), ("num_layers", len(rounded.names))),
    )
    return _convert(work, QUANTISE_AWARE, rounded.as_trained(), (step, _train_step(work)), progress)


def _train(work: LeanWork, module: nn.Module, name: str, progress: Progress) -> None:
    """Let a leaner copy of the source recover, with the source as its teacher."""
    train_module(
        module,
        work.lessons,
        teacher=work.teacher,
        settings=work.settings.training,
        checkpoint=work.checkpoint(name),
        progress=progress,
    )


def _convert(work: LeanWork, name: str, module: nn.Module, steps: tuple[Step, ...], progress: Progress) -> Variant:
    conversion = convert_to_onnx(
        module,
        work.splits.calibration,
        out=work.folder / f"{name}.onnx",
        opset=work.opset,
        axes=work.axes,
        progress=progress,
    )
    recipe = Recipe(steps=(*steps, *conversion.variant.recipe.steps))
    return replace(conversion.variant, name=name, recipe=recipe)


def _prune_step(pruning: Pruning, settings: PruneSettings) -> Step:
    channels = ", ".join(f"{it.name}: {it.num_channels_before} to {it.num_channels}" for it in pruning.groups)
    kept = "; ".join(f"{it.name}: {it.reason}" for it in pruning.skipped)
    return Step(
        operation="prune-channels",
        parameters=(
            ("share", "floor" if settings.share is None else settings.share),
            ("round_to", pruning.round_to),
            ("num_multiply_adds_of_source", pruning.num_multiply_adds_before),
            ("num_multiply_adds", pruning.num_multiply_adds),
            ("channels", channels),
            *((("left_alone", kept),) if kept else ()),
        ),
    )


def _train_step(work: LeanWork) -> Step:
    training = work.settings.training
    return Step(
        operation="train",
        parameters=(
            ("teacher", "source"),
            ("labels", work.lessons.has_labels),
            ("num_samples", len(work.lessons)),
            ("num_epochs", training.num_epochs),
            ("batch_size", training.batch_size),
            ("learning_rate", training.learning_rate),
            ("seed", training.seed),
        ),
    )


def _score(work: LeanWork, module: nn.Module) -> float:
    """Return the metric of a module on the validation samples, against the source where there are no labels."""
    predictions = []
    module.eval()
    for group in work.splits.validation.batches(MAX_ROWS):
        ours, theirs = _answers(module, group.inputs), _answers(work.teacher, group.inputs)
        reference = dict(zip(ours, theirs.values(), strict=True))
        predictions.append(Prediction(outputs=ours, reference=reference, labels=group.labels))
    return score(work.metric, predictions).value


def _answers(module: nn.Module, inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {name: value.numpy() for name, value in named_outputs(call(module, inputs)).items()}


def _words(settings: StudentSettings) -> str:
    layers = f"layers={settings.num_layers}" if settings.num_layers else ""
    width = f"width={_percent(settings.width)}%" if settings.width else ""
    return ",".join(filter(None, (layers, width)))


def _percent(share: float) -> str:
    return f"{share * 100:g}"


def _part(progress: Progress, number: int, num_parts: int) -> Progress:
    def show(text: str, *, done: float) -> None:
        progress(text, done=min(1.0, (number + done) / num_parts))

    return show
